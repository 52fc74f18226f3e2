//! Where a figure comes from: the machine, how busy it was, and the commit.

use std::{path::Path, process::Command};

use procfs::{Current as _, LoadAverage, Meminfo};
use serde::{Deserialize, Serialize};

/// The machine that measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many cores the system has.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Memory, in GiB.
    pub memory_gib: f64,
    /// How many processes wanted to run in the minute before: figures from a busy machine mean
    /// little.
    pub load_before: f64,
}

impl Machine {
    /// This one. What cannot be learnt is said to be unknown.
    pub fn here() -> Self {
        let cpus = procfs::CpuInfo::current().ok();
        let name = cpus.as_ref().and_then(|cpus| cpus.model_name(0).map(str::to_owned));
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let memory = Meminfo::current().map_or(0, |memory| memory.mem_total);
        Self {
            processor: name.unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel,
            memory_gib: (memory as f64 / f64::from(1 << 30) * 10.0).round() / 10.0,
            load_before: LoadAverage::current().map_or(0.0, |load| f64::from(load.one)),
        }
    }

    /// In a line.
    pub fn describe(&self) -> String {
        format!(
            "{}, {} cores, {:.1} GiB, Linux {}, load {:.1} before the run",
            self.processor, self.cores, self.memory_gib, self.kernel, self.load_before
        )
    }

    /// Whether others used it.
    pub fn was_busy(&self) -> bool {
        self.load_before > 0.5 * self.cores as f64
    }
}

/// The commit of the repository around this program or, if there is none, around the present
/// directory, with a mark if files differ from it; `unknown` outside of repositories.
pub fn commit() -> String {
    let program = std::env::current_exe().ok();
    let around_program = program.as_deref().and_then(Path::parent).and_then(commit_of);
    around_program.or_else(|| commit_of(Path::new("."))).unwrap_or_else(|| "unknown".to_owned())
}

fn commit_of(directory: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(directory).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (git(&["rev-parse", "--short=12", "HEAD"]), git(&["status", "--porcelain", "-uno"])) {
        (Some(commit), Some(changes)) if changes.is_empty() => Some(commit),
        (Some(commit), _) => Some(format!("{commit}+")),
        _ => None,
    }
}

/// Now, in seconds since 1970.
pub fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
