//! The switch of the demo, as a process of its own, which can be killed and started again.

use std::{
    fs::{self, File},
    net::SocketAddrV4,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use hovercraft::NodeId;

use super::replicas::{ReplicasError, failed, free_addresses};

/// Killed when it is dropped; it stops by itself when its standard input ends.
#[derive(Debug)]
pub(super) struct Switch {
    binary: PathBuf,
    address: SocketAddrV4,
    /// Holds its configuration and what it logs.
    directory: PathBuf,
    child: Option<Child>,
}

impl Switch {
    /// Prepares a switch that runs the `hovercraft` command at `binary`.
    pub(super) fn prepare(binary: &Path, directory: &Path) -> Result<Self, ReplicasError> {
        let address = free_addresses(1).map_err(failed("find a free UDP port"))?[0];
        let directory = directory.join("switch");
        fs::create_dir_all(&directory)
            .map_err(failed(format!("write to {}", directory.display())))?;
        Ok(Self { binary: binary.to_owned(), address, directory, child: None })
    }

    /// What it says in the configuration of a replica.
    pub(super) fn replica_settings(&self) -> String {
        format!("switch = \"{}\"\ndissemination = \"switch\"", self.address)
    }

    pub(super) fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Starts it, if it does not run, for these replicas.
    pub(super) fn start(
        &mut self,
        members: &[(NodeId, SocketAddrV4)],
    ) -> Result<(), ReplicasError> {
        assert!(self.child.is_none(), "the switch runs already");
        let member = |(id, address): &(NodeId, SocketAddrV4)| {
            format!("    {{ id = {id}, address = \"{address}\" }},\n")
        };
        let members: String = members.iter().map(member).collect();
        let text = format!(
            "address = \"{}\"\nmembers = [\n{members}]\n[admission]\nlimit = 16384\nage_ms = 1000\n",
            self.address
        );
        let (path, log) = (self.directory.join("switch.toml"), self.directory.join("log.txt"));
        let log = fs::write(&path, text)
            .and_then(|()| File::options().create(true).append(true).open(log));
        let log = log.map_err(failed(format!("write to {}", self.directory.display())))?;
        let started = Command::new(&self.binary)
            .args(["switch", "--until-stdin-ends", "--config"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // What is typed at the terminal is meant for this process.
            .process_group(0)
            .spawn();
        self.child = Some(started.map_err(failed(format!("run {}", self.binary.display())))?);
        Ok(())
    }

    /// Kills it with SIGKILL. The future is done when it is gone.
    pub(super) async fn kill(&mut self) -> Result<(), ReplicasError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let killed = child.kill();
        let gone = tokio::task::spawn_blocking(move || child.wait()).await;
        let gone = gone.expect("waiting does not panic, and the runtime still runs");
        killed.and(gone).map_err(failed("kill the switch"))?;
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, and is only waited for.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
