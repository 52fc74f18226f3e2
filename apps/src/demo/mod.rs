//! `hovercraft demo`: a cluster of processes loses its leader under load, and nothing else.

mod measure;
mod picture;
mod progress;
pub mod replicas;
mod summary;
mod switch;
mod timeline;
pub mod workload;

use std::{
    env,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use hovercraft::{Client, ConnectError, Mode, NodeId};
use hovercraft_jepsen::{
    History, Outcome,
    versions::{Findings, check},
};
use tempfile::TempDir;

use crate::kv::Kv;
use measure::Acknowledged;
use progress::Progress;
use replicas::{Replicas, ReplicasError};
use summary::{Observed, Summary, line};
use switch::Switch;
use timeline::Timeline;
use workload::{Shared, Workload};

/// Callers share so many sessions, so that several requests of one are outstanding, and several
/// sessions are.
const SESSIONS_MAX: u32 = 8;

/// What is to be shown.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) mode: Mode,
    pub(crate) replicas: u16,
    pub(crate) clients: u32,
    /// How long the load lasts.
    pub(crate) duration: Duration,
    /// Whether the leader is killed.
    pub(crate) with_fault: bool,
    /// Where the result goes as JSON.
    pub(crate) json: Option<PathBuf>,
    /// Where the history goes.
    pub(crate) history: Option<PathBuf>,
    /// Where everything of the replicas stays.
    pub(crate) keep: Option<PathBuf>,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DemoError {
    /// A file or a directory of the user's cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The directory to keep everything in holds something.
    #[error("{} is not empty; name a directory that is, or one that does not exist", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The replicas do not run.
    #[error(transparent)]
    Replicas(#[from] ReplicasError),
    /// The replicas take no requests.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl DemoError {
    /// Whether other arguments would do.
    pub(crate) fn is_bad_input(&self) -> bool {
        matches!(self, Self::File { .. } | Self::NotEmpty { .. })
    }
}

/// Carries out the plan, prints what came of it to `output`, and returns whether that is good. No
/// process is left when this returns, or is dropped.
pub(crate) async fn run(plan: &Plan, output: &mut impl Write) -> Result<bool, DemoError> {
    let directory = Directory::make(plan.keep.as_deref())?;
    let mut json = create(plan.json.as_deref())?;
    let mut history_file = create(plan.history.as_deref())?;

    let (observed, history) = match observe(plan, directory.path()).await {
        Ok(seen) => seen,
        Err(error) => {
            if let Some(kept) = directory.keep_unless(false) {
                // What the replicas logged may tell more. If nobody can read it, so be it.
                let _ = writeln!(io::stderr(), "  logs and data are in {}", kept.display());
            }
            return Err(error);
        }
    };
    let acknowledged = Acknowledged::new(&history);
    let summary = Summary::new(observed, &acknowledged);
    let picture = match &plan.keep {
        Some(directory) => directory.join("demo.svg"),
        None => PathBuf::from("hovercraft-demo.svg"),
    };
    let drawn = picture::draw(&summary, &acknowledged);
    let drawn = fs::write(&picture, drawn).map_err(cannot("write", &picture));

    let mut text = summary.to_string();
    text += &match drawn {
        Ok(()) => line("picture", picture.display()),
        Err(error) => line("no picture", error),
    };
    if let Some(kept) = directory.keep_unless(summary.is_ok()) {
        text += &line("logs and data", kept.display());
    }
    text += &line("verdict", summary.verdict());
    // If nobody can read it there is nobody to tell.
    let _ = output.write_all(text.as_bytes());
    if let Some((file, path)) = &mut json {
        file.write_all(summary.to_json().as_bytes()).map_err(cannot("write", path))?;
        file.flush().map_err(cannot("write", path))?;
    }
    if let Some((file, path)) = &mut history_file {
        history.write(file).map_err(cannot("write", path))?;
    }
    Ok(summary.is_ok())
}

/// Runs the replicas and the load, and returns what was seen.
async fn observe(plan: &Plan, directory: &Path) -> Result<(Observed, History), DemoError> {
    let &Plan { mode, replicas: count, clients, duration, with_fault, .. } = plan;
    let mut progress = Progress::new(duration);
    let noun = if count == 1 { "replica" } else { "replicas" };
    progress.stage(&format!("starting {count} {noun} in {}", directory.display()));
    let binary = env::current_exe().map_err(|source| {
        let action = "find the hovercraft command".to_owned();
        ReplicasError::System { action, source }
    })?;
    let mut switch = match mode {
        Mode::HovercRaftPlusPlus => Some(Switch::prepare(&binary, directory)?),
        _ => None,
    };
    let by_switch = switch.as_ref().map(Switch::replica_settings).unwrap_or_default();
    let settings = |_: NodeId| format!("mode = \"{mode}\"\ndurability = \"sync\"\n{by_switch}");
    let mut replicas = Replicas::prepare(&binary, directory, count, settings)?;
    if let Some(switch) = &mut switch {
        switch.start(&replicas.members())?;
    }
    if mode == Mode::Unreplicated {
        replicas.start(0)?;
    } else {
        replicas.start_and_initialise().await?;
    }
    let members = replicas.members();
    let mut connections = Vec::new();
    for _ in 0..clients.min(SESSIONS_MAX) {
        let client = Client::builder().members(members.iter().map(|member| member.1)).mode(mode);
        let client = match &switch {
            Some(switch) => client.switch(switch.address()),
            None => client,
        };
        connections.push(client.connect().await?);
    }
    let kvs: Vec<_> = connections.iter().cloned().map(Kv::new).collect();

    progress.stage(&format!("{clients} callers read and write for {} s", duration.as_secs()));
    let workload = Workload::start(&kvs, clients, duration);
    let shared = workload.shared.clone();
    let mut timeline =
        timeline::play(&mut replicas, &mut switch, duration, with_fault, &shared, &mut progress)
            .await;
    progress.end();
    progress.stage("checking");
    let mut history = workload.stop().await;
    let load = history.operations.len();
    let findings =
        examine(&mut replicas, mode, &kvs[0], &shared, &mut timeline, &mut history).await;

    let count_of = |which: fn(&Outcome) -> bool| {
        history.operations[..load].iter().filter(|it| which(&it.outcome)).count() as u64
    };
    let answers: Vec<_> = connections.iter().flat_map(|it| it.stats().answered_by).collect();
    let answered_by = members.iter().map(|(id, address)| {
        let answers = answers.iter().filter(|(replier, _)| replier == address);
        (*id, answers.map(|(_, count)| count).sum())
    });
    let observed = Observed {
        mode,
        replicas: count,
        clients,
        acknowledged: count_of(|outcome| matches!(outcome, Outcome::Ok(_))),
        unknown: count_of(|outcome| matches!(outcome, Outcome::Info)),
        not_executed: count_of(|outcome| matches!(outcome, Outcome::Fail)),
        answered_by: answered_by.collect(),
        timeline,
        findings,
    };
    Ok((observed, history))
}

/// After the load: waits until the replicas are level, reads everything, and checks the history.
async fn examine(
    replicas: &mut Replicas,
    mode: Mode,
    kv: &Kv<Client>,
    shared: &Shared,
    timeline: &mut Timeline,
    history: &mut History,
) -> Option<Findings> {
    const PATIENCE: Duration = Duration::from_secs(10);
    if mode != Mode::Unreplicated
        && let Err(error) = replicas.level(PATIENCE).await
    {
        timeline.accidents.push(error.to_string());
    }
    // Any replica may answer a read, and each should have the chance.
    let times = 4 * replicas.members().len();
    match workload::read_everything(kv, times, shared, history).await {
        Ok(state) => Some(check(history, &state)),
        Err(error) => {
            timeline.accidents.push(format!("the state at the end cannot be read: {error}"));
            None
        }
    }
}

/// Where the replicas keep everything.
enum Directory {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Directory {
    fn make(keep: Option<&Path>) -> Result<Self, DemoError> {
        let Some(path) = keep else {
            let made = tempfile::Builder::new().prefix("hovercraft-demo-").tempdir();
            return Ok(Self::Temporary(made.map_err(cannot("write to", &env::temp_dir()))?));
        };
        fs::create_dir_all(path).map_err(cannot("make", path))?;
        if fs::read_dir(path).map_err(cannot("read", path))?.next().is_some() {
            return Err(DemoError::NotEmpty { path: path.to_owned() });
        }
        Ok(Self::Kept(path.to_owned()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(directory) => directory.path(),
        }
    }

    /// Where everything stays: where it should, or, if something went wrong, where it is.
    fn keep_unless(self, is_ok: bool) -> Option<PathBuf> {
        match self {
            Self::Kept(path) => Some(path),
            Self::Temporary(directory) => (!is_ok).then(|| directory.keep()),
        }
    }
}

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DemoError {
    let path = path.to_owned();
    move |source| DemoError::File { action, path, source }
}

/// A file that is written at the end, made now, so that a mistake shows before anything runs.
type Output = (BufWriter<File>, PathBuf);

fn create(path: Option<&Path>) -> Result<Option<Output>, DemoError> {
    let Some(path) = path else { return Ok(None) };
    let file = File::create(path).map_err(cannot("write", path))?;
    Ok(Some((BufWriter::new(file), path.to_owned())))
}
