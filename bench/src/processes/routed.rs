//! An unreplicated service on several workers, behind a switch that routes.

use std::{net::SocketAddrV4, path::Path, process::Command, time::Duration};

use hovercraft::{
    Mode, NodeId,
    admin::{self, AdminError},
    switch::RouterStatus,
};

use super::{
    ClusterError, STATUS_PATIENCE, Setup, SwitchSetup, free_addresses,
    process::{Process, failed},
};

/// How the workers are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutedSetup {
    /// How many.
    pub workers: u16,
    /// Who gets a request, as in a switch's configuration file.
    pub policy: &'static str,
    /// The longest queue of a worker under `jbsq`.
    pub bound: u32,
}

/// Workers and a switch as processes; killed when this is dropped.
#[derive(Debug)]
pub struct Routed {
    address: SocketAddrV4,
    _processes: Vec<Process>,
    /// Removed after the processes are gone.
    _data: tempfile::TempDir,
}

impl Routed {
    /// Starts them with the `hovercraft` command at `binary`, and waits until all answer.
    pub async fn start(binary: &Path, setup: RoutedSetup) -> Result<Self, ClusterError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let data = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
        let mut addresses = free_addresses(setup.workers + 1).map_err(failed("find free ports"))?;
        let address = addresses.pop().expect("one more than there are workers");
        let start = |subcommand, name: &str, text: &str| {
            Process::start(Command::new(binary), binary, subcommand, (data.path(), name, text))
        };
        let mut processes = vec![start("switch", "switch", &setup.text(address, &addresses))?];
        let worker = Setup {
            mode: Mode::Unreplicated,
            switch: Some(SwitchSetup { disseminates: true, admission: None }),
            ..Setup::default()
        };
        for (id, worker_at) in (1..).map(NodeId).zip(&addresses) {
            let member = [(id, *worker_at)];
            let text = worker.node_text(id, &member, Some(address), data.path());
            processes.push(start("node", &id.to_string(), &text)?);
        }
        let routed = Self { address, _processes: processes, _data: data };
        for worker in addresses {
            wait_for(PATIENCE, || admin::status(worker, STATUS_PATIENCE)).await?;
        }
        wait_for(PATIENCE, || admin::switch_status(address, STATUS_PATIENCE)).await?;
        Ok(routed)
    }

    /// Where the switch is.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// What the router says of itself.
    pub async fn status(&self) -> Result<Option<RouterStatus>, AdminError> {
        Ok(admin::switch_status(self.address, STATUS_PATIENCE).await?.router)
    }
}

/// Asks until there is an answer: who is not up yet does not hear.
async fn wait_for<T, F>(patience: Duration, ask: impl Fn() -> F) -> Result<T, AdminError>
where
    F: Future<Output = Result<T, AdminError>>,
{
    let start = std::time::Instant::now();
    loop {
        match ask().await {
            Err(_) if start.elapsed() < patience => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
}

impl RoutedSetup {
    fn text(&self, address: SocketAddrV4, workers: &[SocketAddrV4]) -> String {
        let Self { policy, bound, .. } = self;
        let workers: Vec<_> = workers.iter().map(|worker| format!("\"{worker}\"")).collect();
        // A worker that is too slow must queue what comes, not refuse it: that is what is compared.
        format!(
            "address = \"{address}\"\naggregates = false\n[router]\nworkers = [{}]\n\
             policy = \"{policy}\"\nbound = {bound}\nage_ms = 60000\nwaiting_max = 65536\n",
            workers.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hovercraft::switch::Routing;
    use hovercraft_apps::switch_config::SwitchFile;

    use super::*;

    #[test]
    fn the_command_reads_what_is_written_for_it() {
        let address = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        for (policy, routing) in [("jbsq", Routing::Jbsq(2)), ("round-robin", Routing::RoundRobin)]
        {
            let setup = RoutedSetup { workers: 2, policy, bound: 2 };
            let text = setup.text(address(7010), &[address(7001), address(7002)]);
            let file = SwitchFile::parse(&text, Path::new("switch.toml")).expect("a configuration");
            let router = file.config.router.expect("a router");
            assert_eq!((router.routing, router.workers.len()), (routing, 2));
        }
    }
}
