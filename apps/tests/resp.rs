//! The Redis gateway, from outside: bytes on a socket, and Redis's own programs.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hovercraft::{CallError, Client, Mode, Node, NodeId};
use hovercraft_apps::{
    backend::{Backend, InProcess},
    kv::KvService,
    resp::Gateway,
};
use r2p2::{ClientConfig, ClientEndpoint, Options, Outbox, Policy, Time};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::timeout,
};

const REQUEST_BYTES_MAX: u32 = 8 << 20;

/// A service in this process that counts requests, and fails or waits when it is told to.
#[derive(Clone)]
struct Observed {
    service: InProcess<KvService>,
    calls: Arc<AtomicUsize>,
    queries: Arc<AtomicUsize>,
    fails: Arc<Mutex<Option<CallError>>>,
    open: Arc<Semaphore>,
}

impl Observed {
    fn new() -> Self {
        Self {
            service: InProcess::new(KvService::default()),
            calls: Arc::default(),
            queries: Arc::default(),
            fails: Arc::default(),
            open: Arc::new(Semaphore::new(1)),
        }
    }

    async fn pass(&self) -> Result<(), CallError> {
        drop(self.open.acquire().await.expect("never closed"));
        self.fails.lock().expect("no panic").clone().map_or(Ok(()), Err)
    }
}

impl Backend for Observed {
    async fn call(&self, command: Bytes) -> Result<Bytes, CallError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.pass().await?;
        self.service.call(command).await
    }

    async fn query(&self, query: Bytes) -> Result<Bytes, CallError> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        self.pass().await?;
        self.service.query(query).await
    }
}

/// A gateway that serves until it is told to stop.
struct Running {
    address: SocketAddr,
    backend: Observed,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

async fn start() -> Running {
    let backend = Observed::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let gateway = Gateway::new(listener, backend.clone(), REQUEST_BYTES_MAX).expect("it is bound");
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(gateway.serve(async {
        // It also ends with the test.
        let _ = stopped.await;
    }));
    Running { address, backend, stop, served }
}

impl Running {
    /// Sends `input`, ends the sending side if `end`, and reads until the answers are `expected`.
    async fn exchange(&self, input: impl AsRef<[u8]>, expected: &str) {
        let mut stream = TcpStream::connect(self.address).await.expect("listening");
        exchange(&mut stream, input, expected).await;
    }
}

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

async fn exchange(stream: &mut TcpStream, input: impl AsRef<[u8]>, expected: &str) {
    stream.write_all(input.as_ref()).await.expect("writable");
    assert_eq!(read_text(stream, expected.len()).await, expected);
}

/// Reads `length` bytes, or as many as come before the end or before patience does.
async fn read_text(stream: &mut TcpStream, length: usize) -> String {
    let mut text = Vec::new();
    let read = timeout(PATIENCE, stream.take(length as u64).read_to_end(&mut text)).await;
    if !matches!(read, Ok(Ok(_))) {
        text.extend(b" ... and nothing more");
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The bytes of a value.
fn bulk(value: &str) -> String {
    format!("${}\r\n{value}\r\n", value.len())
}

/// The bytes of a request.
fn request(words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    let arguments = words.iter().map(|word| bulk(word));
    format!("*{}\r\n", words.len()) + &arguments.collect::<Vec<_>>().concat()
}

#[tokio::test]
async fn every_data_command_answers_as_redis_does() {
    let gateway = start().await;
    let mut stream = TcpStream::connect(gateway.address).await.expect("listening");
    for (words, expected) in [
        ("GET a", "$-1\r\n"),
        ("SET a 1", "+OK\r\n"),
        ("set a 2 nx", "$-1\r\n"),
        ("SET a 2 XX", "+OK\r\n"),
        ("SET b 2 XX", "$-1\r\n"),
        ("SET a 1 NX XX", "-ERR syntax error\r\n"),
        ("SET a 1 EX 10", "-ERR SET takes NX and XX here; option 'EX' is not supported\r\n"),
        ("SETNX a 1", ":0\r\n"),
        ("GET a", "$1\r\n2\r\n"),
        ("STRLEN a", ":1\r\n"),
        ("INCR a", ":3\r\n"),
        ("INCRBY a 10", ":13\r\n"),
        ("DECR a", ":12\r\n"),
        ("DECRBY a 2", ":10\r\n"),
        ("DECRBY a -9223372036854775808", "-ERR increment or decrement would overflow\r\n"),
        ("INCRBY a x", "-ERR value is not an integer or out of range\r\n"),
        ("MSET x text y 7", "+OK\r\n"),
        ("MSET x 1 y", "-ERR wrong number of arguments for 'mset' command\r\n"),
        ("INCR x", "-ERR value is not an integer or out of range\r\n"),
        ("MGET a none y", "*3\r\n$2\r\n10\r\n$-1\r\n$1\r\n7\r\n"),
        ("EXISTS a none y y", ":3\r\n"),
        ("TYPE a", "+string\r\n"),
        ("TYPE none", "+none\r\n"),
        ("DBSIZE", ":3\r\n"),
        ("KEYS [xy]", "*2\r\n$1\r\nx\r\n$1\r\ny\r\n"),
        ("SCAN 0", "*2\r\n$1\r\n0\r\n*3\r\n$1\r\na\r\n$1\r\nx\r\n$1\r\ny\r\n"),
        ("SCAN 0 MATCH x* COUNT 100", "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nx\r\n"),
        ("SCAN 0 COUNT 0", "-ERR syntax error\r\n"),
        ("SCAN x", "-ERR invalid cursor\r\n"),
        ("DEL a a none", ":1\r\n"),
        ("UNLINK x y", ":2\r\n"),
        ("GET", "-ERR wrong number of arguments for 'get' command\r\n"),
        ("FLUSHALL", "-ERR unknown command 'FLUSHALL'\r\n"),
    ] {
        exchange(&mut stream, request(words), expected).await;
    }
}

#[tokio::test]
async fn connection_commands_answer_what_clients_ask_at_their_start() {
    let gateway = start().await;
    let mut stream = TcpStream::connect(gateway.address).await.expect("listening");
    for (words, expected) in [
        ("PING", "+PONG\r\n"),
        ("PING hi", "$2\r\nhi\r\n"),
        ("ECHO hi", "$2\r\nhi\r\n"),
        ("SELECT 0", "+OK\r\n"),
        ("SELECT 1", "-ERR DB index is out of range: there is only 0\r\n"),
        ("CLIENT GETNAME", "$-1\r\n"),
        ("CLIENT SETNAME me", "+OK\r\n"),
        ("CLIENT GETNAME", "$2\r\nme\r\n"),
        ("CLIENT SETINFO LIB-NAME x", "+OK\r\n"),
        ("CLIENT ID", ":1\r\n"),
        ("CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        ("CONFIG GET append*", "*2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"),
        ("COMMAND COUNT", ":27\r\n"),
        ("COMMAND DOCS", "*0\r\n"),
        (
            "COMMAND INFO get",
            "*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n",
        ),
        ("HELLO 4", "-NOPROTO unsupported protocol version\r\n"),
    ] {
        exchange(&mut stream, request(words), expected).await;
    }
}

#[tokio::test]
async fn hello_changes_the_dialect_from_its_own_answer_on() {
    let gateway = start().await;
    let mut stream = TcpStream::connect(gateway.address).await.expect("listening");
    let pipeline = request("GET a") + &request("HELLO 3");
    exchange(&mut stream, pipeline, "$-1\r\n%7\r\n").await;
    // The members of a map come in any order.
    let members = "$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n\
                   $5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n\
                   $4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n";
    let text = read_text(&mut stream, members.len()).await;
    assert!(text.contains("$5\r\nproto\r\n:3\r\n"), "{text:?}");
    assert!(text.contains("$7\r\nmodules\r\n*0\r\n"), "{text:?}");
    exchange(&mut stream, request("GET a"), "_\r\n").await;
    exchange(&mut stream, request("RESET"), "+RESET\r\n").await;
    exchange(&mut stream, request("GET a"), "$-1\r\n").await;
}

#[tokio::test]
async fn a_pipeline_is_one_replicated_request_and_keeps_its_order() {
    let gateway = start().await;
    let mut pipeline = String::new();
    let mut expected = String::new();
    for n in 0..100 {
        pipeline += &request(&format!("SET k {n}"));
        pipeline += &request("PING");
        pipeline += &request("GET k");
        expected += "+OK\r\n+PONG\r\n";
        expected += &bulk(&n.to_string());
    }
    gateway.exchange(&pipeline, &expected).await;
    // The kernel may hand a long pipeline over in parts.
    let calls = gateway.backend.calls.load(Ordering::Relaxed);
    assert!(calls <= 3, "{calls} requests");
    assert_eq!(gateway.backend.queries.load(Ordering::Relaxed), 0);
    let reads = request("GET k").repeat(10);
    gateway.exchange(reads, &"$2\r\n99\r\n".repeat(10)).await;
    assert_eq!(gateway.backend.calls.load(Ordering::Relaxed), calls, "reads are queries");
}

#[tokio::test]
async fn a_pipeline_of_large_replies_is_answered_in_full_and_in_order() {
    let gateway = start().await;
    let value = "x".repeat(3 << 20);
    let mut stream = TcpStream::connect(gateway.address).await.expect("listening");
    exchange(&mut stream, request(&format!("SET k {value}")), "+OK\r\n").await;
    let writes = ["SET k 1", "GET k", "SET k 2", "INCR k", "GET k"].map(request).concat();
    let pipeline = request("GET k").repeat(3) + &writes;
    let large = bulk(&value).repeat(3);
    exchange(&mut stream, pipeline, &format!("{large}+OK\r\n$1\r\n1\r\n+OK\r\n:3\r\n$1\r\n3\r\n"))
        .await;
}

#[tokio::test]
async fn answers_to_failures_say_what_became_of_the_command() {
    let gateway = start().await;
    let time = Duration::from_secs(5);
    for (error, expected) in [
        (CallError::Cancelled(time), "-TRYAGAIN not executed: it was cancelled after 5s\r\n"),
        (CallError::ReplyTooLarge, "-ERR executed, but the reply is too large\r\n"),
        (CallError::TimedOut(time), "-UNKNOWN outcome unknown: no reply within 5s\r\n"),
    ] {
        *gateway.backend.fails.lock().expect("no panic") = Some(error);
        let pipeline = request("SET a 1") + &request("PING") + &request("INCR b");
        let expected = format!("{expected}+PONG\r\n{expected}");
        gateway.exchange(pipeline, &expected).await;
    }
}

#[tokio::test]
async fn lines_of_words_are_requests_too() {
    let gateway = start().await;
    gateway.exchange("PING\r\nset a 1\n\r\nget a\r\n", "+PONG\r\n+OK\r\n$1\r\n1\r\n").await;
}

#[tokio::test]
async fn a_request_comes_in_any_pieces() {
    let gateway = start().await;
    let mut stream = TcpStream::connect(gateway.address).await.expect("listening");
    stream.set_nodelay(true).expect("a socket");
    for byte in request("SET a hello").bytes() {
        stream.write_all(&[byte]).await.expect("writable");
        tokio::task::yield_now().await;
    }
    exchange(&mut stream, request("GET a"), "+OK\r\n$5\r\nhello\r\n").await;
}

#[tokio::test]
async fn after_what_is_no_request_the_connection_ends() {
    let gateway = start().await;
    let large = format!("*3\r\n$3\r\nSET\r\n$1\r\na\r\n${REQUEST_BYTES_MAX}\r\n");
    for (input, expected) in [
        ("*1\r\n*1\r\n", "-ERR Protocol error: expected '$'\r\n"),
        (&large, "-ERR Protocol error: the request is larger than the limit of this cluster\r\n"),
        ("QUIT\r\nPING\r\n", "+OK\r\n"),
    ] {
        let mut stream = TcpStream::connect(gateway.address).await.expect("listening");
        exchange(&mut stream, "PING\r\n".to_owned() + input, &format!("+PONG\r\n{expected}")).await;
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection stays open");
        assert!(rest.is_empty(), "more than the error: {rest:?}");
    }
}

#[tokio::test]
async fn a_scan_visits_every_key_once_and_survives_deletes() {
    let gateway = start().await;
    let mut stream = TcpStream::connect(gateway.address).await.expect("listening");
    let sets: Vec<_> = (10..60).map(|n| request(&format!("SET key:{n} v"))).collect();
    exchange(&mut stream, sets.concat(), &"+OK\r\n".repeat(50)).await;
    let mut cursor = "0".to_owned();
    let mut seen = Vec::new();
    loop {
        let scan = request(&format!("SCAN {cursor} MATCH key:* COUNT 7"));
        stream.write_all(scan.as_bytes()).await.expect("writable");
        let lines = read_page(&mut stream).await;
        cursor.clone_from(&lines[2]);
        let keys = lines[4..].iter().skip(1).step_by(2).cloned();
        seen.extend(keys);
        if cursor == "0" {
            break;
        }
        // The key that the cursor stands for may go.
        let last: u32 = seen.last().expect("a page")[4..].parse().expect("a number");
        if last == 16 {
            exchange(&mut stream, request("DEL key:17"), ":1\r\n").await;
        }
    }
    let expected: Vec<String> = (10..60).filter(|n| *n != 17).map(|n| format!("key:{n}")).collect();
    assert_eq!(seen, expected);
    let unknown = "-ERR unknown cursor: every replica keeps the cursors that it gave last; start \
                   again with 0\r\n";
    exchange(&mut stream, request("SCAN 12345"), unknown).await;
}

/// Reads `*2`, the cursor, `*n`, and n keys; returns the lines.
async fn read_page(stream: &mut TcpStream) -> Vec<String> {
    let mut text = Vec::new();
    loop {
        let lines: Vec<String> =
            String::from_utf8_lossy(&text).split_terminator("\r\n").map(str::to_owned).collect();
        if let Some(count) = lines.get(3)
            && text.ends_with(b"\r\n")
            && lines.len() == 4 + 2 * count[1..].parse::<usize>().expect("a count")
        {
            return lines;
        }
        let read = timeout(PATIENCE, stream.read_buf(&mut text)).await;
        assert!(matches!(read, Ok(Ok(1..))), "ended after {lines:?}");
    }
}

#[tokio::test]
async fn keys_refuses_to_look_at_too_many() {
    let gateway = start().await;
    let mut stream = TcpStream::connect(gateway.address).await.expect("listening");
    let pairs = (0..10_001).map(|n| format!(" k{n} v")).collect::<Vec<_>>().concat();
    exchange(&mut stream, request(&format!("MSET{pairs}")), "+OK\r\n").await;
    let refused = "-ERR KEYS looks at no more than 10000 keys, and more begin like the pattern; \
                   use SCAN\r\n";
    exchange(&mut stream, request("KEYS *"), refused).await;
    exchange(&mut stream, request("KEYS k1000[0]"), "*1\r\n$6\r\nk10000\r\n").await;
}

#[tokio::test]
async fn what_was_taken_up_is_answered_when_the_gateway_stops() {
    let gateway = start().await;
    let gate = Arc::clone(&gateway.backend.open);
    let closed = gate.acquire().await.expect("never closed");
    let mut idle = TcpStream::connect(gateway.address).await.expect("listening");
    let mut busy = TcpStream::connect(gateway.address).await.expect("listening");
    busy.write_all(request("SET a 1").as_bytes()).await.expect("writable");
    while gateway.backend.calls.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    gateway.stop.send(()).expect("it serves");
    assert_eq!(idle.read(&mut [0]).await.expect("an orderly end"), 0);
    drop(closed);
    let mut answer = Vec::new();
    busy.read_to_end(&mut answer).await.expect("an orderly end");
    assert_eq!(answer, b"+OK\r\n");
    gateway.served.await.expect("no panic");
}

/// Runs one of Redis's programs with `input` on its standard input, and returns its output; none
/// if it is not installed.
async fn run_program(
    gateway: &Running,
    program: &'static str,
    arguments: &[&str],
    input: &'static str,
) -> Option<String> {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &gateway.address.port().to_string()]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn()?;
        // The input is short enough to fit the pipe; what is not read is no error.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        child.wait_with_output()
    });
    match run.await.expect("no panic") {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} failed: {text}{errors}");
            Some(text)
        }
        Err(error) => {
            eprintln!("skipped: cannot run {program}: {error}");
            None
        }
    }
}

#[tokio::test]
async fn a_session_of_redis_cli_works_in_both_dialects() {
    let input = "SET a \"hello world\"\nGET a\nGET none\nINCR n\nINCRBY n 9\nMGET a none n\n\
                 SET a 1 NX\nEXISTS a none\nSCAN 0 MATCH a*\nDEL a n\nDBSIZE\nNONSENSE\nPING\n";
    let expected = "OK\nhello world\n\n1\n10\nhello world\n\n10\n\n1\n0\na\n2\n0\n\
                    ERR unknown command 'NONSENSE'\n\nPONG\n";
    for dialect in ["-2", "-3"] {
        let gateway = start().await;
        let Some(output) = run_program(&gateway, "redis-cli", &[dialect], input).await else {
            return;
        };
        assert_eq!(output, expected, "redis-cli {dialect}");
    }
}

#[tokio::test]
async fn redis_cli_scans_all_keys() {
    let input = "MSET k1 v k2 v k3 v k4 v k5 v k6 v k7 v k8 v k9 v x1 v x2 v x3 v x4 v x5 v\n";
    let gateway = start().await;
    let Some(output) = run_program(&gateway, "redis-cli", &[], input).await else {
        return;
    };
    assert_eq!(output, "OK\n");
    let scan = ["--scan", "--pattern", "*"];
    let output = run_program(&gateway, "redis-cli", &scan, "").await.expect("it ran before");
    assert_eq!(output, "k1\nk2\nk3\nk4\nk5\nk6\nk7\nk8\nk9\nx1\nx2\nx3\nx4\nx5\n");
}

#[tokio::test]
async fn redis_benchmark_works() {
    let arguments = ["-t", "set,get,incr,mset", "-n", "2000", "-q", "-P", "4", "-c", "20"];
    let gateway = start().await;
    let Some(output) = run_program(&gateway, "redis-benchmark", &arguments, "").await else {
        return;
    };
    assert!(output.contains("INCR") && output.contains("requests per second"), "{output}");
    assert!(!output.contains("rror"), "{output}");
    gateway.exchange(request("GET counter:__rand_int__"), "$4\r\n2000\r\n").await;
}

/// Sends a write into the session of another client, with a sequence that nobody has come to, and
/// waits until it is answered: from then on the session refuses its own client.
fn end_session(of: u64, at: SocketAddrV4) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    let mut endpoint = ClientEndpoint::new(ClientConfig::default(), 1);
    let mut outbox = Outbox::new();
    let session = Some(r2p2::Session { client: of, sequence: 1 << 62, lowest: 1 << 62 });
    let options = Options { session, ..Options::NONE };
    let body = Bytes::from_static(b"no command");
    endpoint
        .request(Time::ZERO, &[at].into(), Policy::Replicated, options, body, &mut outbox)
        .expect("it is small");
    outbox.drain(|batch| {
        for datagram in batch.datagrams() {
            socket.send_to(datagram, at).expect("it is small");
        }
    });
    socket.recv(&mut [0; 2048]).expect("it is answered");
}

#[tokio::test]
async fn a_session_that_somebody_else_has_ended_is_left_and_commands_go_on() {
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let node = Node::builder(NodeId(1), any).mode(Mode::Unreplicated);
    let node = node.start(KvService::default()).expect("a free port");
    let client = Client::builder().members([node.address()]).connect().await.expect("it is there");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let gateway = Gateway::new(listener, client, REQUEST_BYTES_MAX).expect("it is bound");
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(gateway.serve(async {
        let _ = stopped.await;
    }));
    let mut stream = TcpStream::connect(address).await.expect("listening");
    exchange(&mut stream, request("SET a 1"), "+OK\r\n").await;
    let server = node.address();
    tokio::task::spawn_blocking(move || end_session(1, server)).await.expect("no panic");
    // The first write says that it may or may not be done; a query would just be asked again.
    exchange(&mut stream, request("SET a 2"), "-UNKNOWN outcome unknown: ").await;
    drop(stream);
    let mut stream = TcpStream::connect(address).await.expect("listening");
    exchange(&mut stream, request("GET a"), "$1\r\n1\r\n").await;
    exchange(&mut stream, request("SET a 3"), "+OK\r\n").await;
    drop(stop);
    served.await.expect("no panic");
    node.stop().expect("it runs");
}
