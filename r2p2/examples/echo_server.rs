//! An R2P2 server that echoes, or answers with a fixed number of bytes. Original R2P2 clients may
//! call it too.
//!
//! `cargo run --release -p r2p2 --example echo_server -- --listen 127.0.0.1:9000`

use std::process::ExitCode;

use bytes::Bytes;
use clap::Parser;
use r2p2::Server;

#[derive(Parser)]
struct Arguments {
    /// The address to serve at; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: String,
    /// Answer with so many bytes, "abc…zabc…", instead of the request.
    #[arg(long)]
    reply_size: Option<usize>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help is good, and everything else is wrong usage.
            let code = if error.use_stderr() { 3 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let server = match Server::bind(&arguments.listen).await {
        Ok(server) => server,
        Err(error) => {
            eprintln!("echo_server: --listen {}: {error}", arguments.listen);
            return ExitCode::from(3);
        }
    };
    match serve(server, arguments.reply_size).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo_server: {error}");
            ExitCode::from(2)
        }
    }
}

async fn serve(server: Server, reply_size: Option<usize>) -> std::io::Result<()> {
    println!("serving at {}", server.local_address()?);
    let fixed: Option<Bytes> =
        reply_size.map(|size| (0..size).map(|i| b'a' + (i % 26) as u8).collect());
    let handler = |request| {
        let reply = fixed.clone().unwrap_or(request);
        async move { reply }
    };
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            eprintln!("echo_server: cannot be interrupted cleanly: {error}");
            std::future::pending::<()>().await;
        }
    };
    server.serve_until(handler, interrupted).await
}
