//! The command from outside: processes, exit codes, what is printed; a cluster on loopback.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;

fn hovercraft(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hovercraft"));
    command.args(arguments).output().expect("the command was built")
}

fn exit_code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_is_good_and_bad_usage_is_three() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["help", "kv"],
        &["node", "--help"],
        &["init", "--help"],
        &["status", "--help"],
        &["kv", "--help"],
        &["kv", "cas", "--help"],
        &["log", "--help"],
        &["log", "dump", "--help"],
    ] {
        let output = hovercraft(arguments);
        assert_eq!(exit_code(&output), 0, "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?} says nothing");
    }
    for arguments in [
        &[][..],
        &["fly"],
        &["node"],
        &["node", "--config", "no-such-file"],
        &["init"],
        &["log", "check"],
        &["log", "check", "no-such-directory"],
        &["init", "--members", "127.0.0.1:1,127.0.0.1:1"],
        &["status", "--members", "nonsense"],
        &["kv", "get", "a"],
        &["kv", "get", "--members", "127.0.0.1:1"],
        &["kv", "incr", "a", "x", "--members", "127.0.0.1:1"],
        &["kv", "set", "a", "1", "--nx", "--xx", "--members", "127.0.0.1:1"],
        &["kv", "get", "a", "--members", "127.0.0.1:1", "--config", "x"],
    ] {
        let output = hovercraft(arguments);
        assert_eq!(exit_code(&output), 3, "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?} says nothing");
    }
}

#[test]
fn a_bad_configuration_is_named_with_its_field() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("node.toml");
    std::fs::write(&file, sample(1, [1, 2, 3]).replace("#queue_bound = 128", "queue_bound = 0"))
        .expect("writable");
    let output = hovercraft(&["node", "--config", file.to_str().expect("a plain name")]);
    assert_eq!(exit_code(&output), 3);
    let said = text(&output.stderr);
    assert!(said.contains("node.toml: queue_bound is 0; allowed is 1 to 65536"), "{said}");
}

/// The sample with another id and other ports.
fn sample(id: usize, ports: [u16; 3]) -> String {
    let mut sample = include_str!("../hovercraft.sample.toml")
        .replace("id = 1\n", &format!("id = {id}\n"))
        .replace("data-1", &format!("data-{id}"));
    for (replica, port) in (1..).zip(ports) {
        sample = sample.replace(&format!("127.0.0.1:700{replica}"), &format!("127.0.0.1:{port}"));
    }
    sample
}

/// Three replicas with data in a directory that goes with them.
struct Cluster {
    directory: TempDir,
    replicas: Vec<Child>,
    resp_port: u16,
}

impl Cluster {
    fn start() -> Self {
        let directory = TempDir::new().expect("a directory");
        // Taken together, so that they differ, and given back together.
        let sockets = [(); 4].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
        let [first, second, third, resp_port] =
            sockets.each_ref().map(|socket| socket.local_addr().expect("bound").port());
        drop(sockets);
        let resp = SocketAddr::from((Ipv4Addr::LOCALHOST, resp_port)).to_string();
        let mut replicas = Vec::new();
        for id in 1..=3 {
            let file = directory.path().join(format!("{id}.toml"));
            std::fs::write(&file, sample(id, [first, second, third])).expect("writable");
            let mut command = Command::new(env!("CARGO_BIN_EXE_hovercraft"));
            command.arg("node").arg("--config").arg(&file).stderr(Stdio::null());
            if id == 2 {
                command.args(["--resp", &resp]);
            }
            replicas.push(command.spawn().expect("the command was built"));
        }
        Self { directory, replicas, resp_port }
    }

    /// Runs a subcommand for this cluster.
    fn run(&self, arguments: &[&str]) -> Output {
        let config = self.directory.path().join("1.toml");
        let config = ["--config", config.to_str().expect("a plain name")];
        hovercraft(&[arguments, &config].concat())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for replica in &mut self.replicas {
            // It may have ended.
            let _ = replica.kill();
            let _ = replica.wait();
        }
    }
}

#[test]
fn a_cluster_is_made_used_looked_at_and_stopped() {
    let mut cluster = Cluster::start();
    // It waits for the replicas, and doing it again does no harm.
    for _ in 0..2 {
        let output = cluster.run(&["init"]);
        assert_eq!(exit_code(&output), 0, "{}", text(&output.stderr));
        assert!(text(&output.stdout).ends_with("of 3 replicas\n"));
    }
    for (arguments, code, expected) in [
        (&["kv", "set", "a", "1"][..], 0, "OK\n"),
        (&["kv", "get", "a"], 0, "1\n"),
        (&["kv", "get", "none"], 0, "(nil)\n"),
        (&["kv", "cas", "a", "2", "3"], 1, "not done: the condition does not hold\n"),
        (&["kv", "incr", "a", "41"], 0, "42\n"),
        (&["kv", "scan"], 0, "a\t42\n"),
    ] {
        let output = cluster.run(arguments);
        let printed = text(&output.stdout) + &text(&output.stderr);
        assert_eq!((exit_code(&output), printed.as_str()), (code, expected), "{arguments:?}");
    }
    check_status(&cluster);
    check_redis(&cluster);
    for replica in &mut cluster.replicas {
        let pid = replica.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().expect("kill runs").success());
        assert_eq!(replica.wait().expect("a child").code(), Some(0), "an orderly stop");
    }
    assert!(Path::new(&cluster.directory.path().join("data-3")).exists());
    let output = cluster.run(&["status", "--timeout", "1"]);
    assert_eq!(exit_code(&output), 1, "nobody answers");
}

fn check_status(cluster: &Cluster) {
    let output = cluster.run(&["status", "--json"]);
    assert_eq!(exit_code(&output), 0, "{}", text(&output.stdout));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let replicas = status["replicas"].as_array().expect("an array");
    assert_eq!(replicas.len(), 3);
    let leaders = replicas.iter().filter(|replica| replica["role"] == "leader");
    assert_eq!(leaders.count(), 1);
    let table = text(&cluster.run(&["status"]).stdout);
    assert_eq!(table.lines().count(), 4, "{table}");
}

fn check_redis(cluster: &Cluster) {
    let port = cluster.resp_port.to_string();
    match Command::new("redis-cli").args(["-p", &port, "INCR", "a"]).output() {
        Ok(output) => assert_eq!(text(&output.stdout), "43\n", "{}", text(&output.stderr)),
        Err(error) => eprintln!("skipped: cannot run redis-cli: {error}"),
    }
}
