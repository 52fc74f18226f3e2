//! One process of the `hovercraft` command.

use std::{
    ffi::OsStr,
    fs, io,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use super::ClusterError;
use crate::usage::Usage;

/// A process; killed when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

impl Process {
    /// Writes a configuration to `directory` under a name, and runs `command` (which runs `binary`) as
    /// `SUBCOMMAND --config` of it.
    pub(super) fn start(
        mut command: Command,
        binary: &Path,
        subcommand: &str,
        (directory, name, text): (&Path, impl AsRef<OsStr>, &str),
    ) -> Result<Self, ClusterError> {
        let config = directory.join(name.as_ref()).with_extension("toml");
        fs::write(&config, text).map_err(failed("write a configuration"))?;
        let child = command
            .arg(subcommand)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .env("HOVERCRAFT_LOG", "error")
            .spawn()
            .map_err(|source| ClusterError::Binary { binary: binary.to_owned(), source })?;
        Ok(Self { child })
    }

    /// What it has cost so far; none if it is gone.
    pub(super) fn usage(&self) -> Option<Usage> {
        Usage::of(self.child.id())
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(super) fn kill(&mut self) {
        // One that has ended already is only waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Says what was tried.
pub(super) fn failed(action: &str) -> impl FnOnce(io::Error) -> ClusterError + use<> {
    let action = action.to_owned();
    move |source| ClusterError::Io { action, source }
}
