//! Runs a switch in this process.

use hovercraft::switch::RunningSwitch;
use tokio::signal::unix::{SignalKind, signal};

use crate::{node::RunError, switch_config::SwitchFile};

/// Runs a switch until it fails, or until the process gets SIGTERM or SIGINT.
pub fn run(file: SwitchFile) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let SwitchFile { address, config, spin } = file;
        let switch = RunningSwitch::start(address, config, spin)?;
        tracing::info!(address = %switch.address(), "the switch runs");
        let stopper = switch.stopper();
        let mut ended = tokio::task::spawn_blocking(|| switch.join());
        tokio::select! {
            biased;
            end = &mut ended => return Ok(end.expect("joining does not panic")?),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stopper.stop();
        Ok(ended.await.expect("joining does not panic")?)
    })
}
