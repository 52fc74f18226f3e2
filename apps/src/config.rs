//! The configuration of a replica: a TOML file, checked field by field.
//!
//! `hovercraft.sample.toml` documents every field.

use std::{
    collections::HashSet,
    fs, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    time::Duration,
};

use hovercraft::{
    Client, ClientBuilder, ClusterLimits, Execution, Mode, Multicast, NodeId,
    core::{Policy, Timing},
    storage::{Durability, StoreKind},
};
use serde::Deserialize;

/// A cluster as its clients and operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// All replicas and their addresses.
    pub members: Vec<(NodeId, SocketAddrV4)>,
    /// How a request reaches all replicas (P3).
    pub dissemination: Dissemination,
    /// A group by which requests may come.
    pub multicast: Option<Multicast>,
    /// The switch: it passes requests on, or aggregates in the mode `hovercraft++`, or both.
    pub switch: Option<SocketAddrV4>,
    /// What the replicas do with requests.
    pub mode: Mode,
    /// What `init` writes into the first configuration (P20).
    pub limits: ClusterLimits,
}

impl Cluster {
    /// Begins to build a client of the cluster.
    pub fn client(&self) -> ClientBuilder {
        let members = self.members.iter().map(|(_, address)| *address);
        let client = Client::builder().members(members).mode(self.mode);
        match (self.dissemination, self.multicast, self.switch) {
            (Dissemination::Multicast, Some(Multicast { group, interface }), _) => {
                client.multicast(group, interface)
            }
            (Dissemination::Switch, _, Some(switch)) => client.switch(switch),
            _ => client,
        }
    }
}

/// How a request reaches all replicas (P3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dissemination {
    /// The client sends a datagram to each.
    FanOut,
    /// The client sends one to a multicast group.
    Multicast,
    /// The client sends one to the switch.
    Switch,
}

/// How a replica is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This replica; one of the members.
    pub id: NodeId,
    /// What all replicas share.
    pub cluster: Cluster,
    /// The data directory; there is one in every mode but `unreplicated`.
    pub data: Option<PathBuf>,
    /// What an acknowledgement promises (P37).
    pub durability: Durability,
    /// How often it syncs in the durability `interval`.
    pub sync_interval: Duration,
    /// Which store keeps the log.
    pub store: StoreKind,
    /// Who answers (P16).
    pub policy: Policy,
    /// How many entries may wait for one replier (P15).
    pub queue_bound: usize,
    /// Heartbeats and elections (P33).
    pub timing: Timing,
    /// How many requests may be in the system (P24).
    pub admission_limit: usize,
    /// About how many bytes of log are kept.
    pub log_bytes_max: usize,
    /// The service that it replicates.
    pub service: Service,
    /// Where the service runs.
    pub execution: Execution,
    /// How long it looks for work before it sleeps.
    pub spin: Duration,
    /// Where it speaks the Redis protocol, if it does.
    pub resp: Option<SocketAddr>,
}

/// The services that the command can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// The key-value service.
    #[default]
    Kv,
    /// The service of the paper's evaluation.
    Synthetic,
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is not TOML, or has a field that is unknown, missing or of another type.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, and what is possible there.
        source: Box<toml::de::Error>,
    },
    /// A field has a value that is not allowed.
    #[error("{}: {field} {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What it is, and what is allowed.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file. A relative data directory is taken from the file's directory.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| {
            let path = path.to_owned();
            ConfigError::Read { path, source }
        })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file that is at `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|source| {
            let (path, source) = (path.to_owned(), Box::new(source));
            ConfigError::Syntax { path, source }
        })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        file.check(directory).map_err(|Wrong { field, problem }| {
            let path = path.to_owned();
            ConfigError::Field { path, field, problem }
        })
    }
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    id: u16,
    members: Vec<FileMember>,
    data: Option<PathBuf>,
    #[serde(default)]
    mode: FileMode,
    dissemination: Option<Dissemination>,
    switch: Option<SocketAddrV4>,
    multicast: Option<FileMulticast>,
    #[serde(default)]
    durability: FileDurability,
    #[serde(default = "default_sync_interval_ms")]
    sync_interval_ms: u32,
    #[serde(default)]
    store: FileStore,
    #[serde(default)]
    policy: FilePolicy,
    #[serde(default = "default_queue_bound")]
    queue_bound: usize,
    #[serde(default)]
    timing: FileTiming,
    #[serde(default = "default_admission_limit")]
    admission_limit: usize,
    #[serde(default = "default_log_bytes_max")]
    log_bytes_max: usize,
    #[serde(default)]
    service: Service,
    #[serde(default)]
    execution: FileExecution,
    #[serde(default)]
    spin_us: u32,
    resp: Option<SocketAddr>,
    #[serde(default)]
    limits: FileLimits,
}

fn default_sync_interval_ms() -> u32 {
    100
}

fn default_queue_bound() -> usize {
    hovercraft::core::Settings::default().queue_bound
}

fn default_admission_limit() -> usize {
    hovercraft::core::Settings::default().admission_limit
}

fn default_log_bytes_max() -> usize {
    hovercraft::core::Settings::default().log_bytes_max
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileMember {
    id: u16,
    address: SocketAddrV4,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMulticast {
    group: SocketAddrV4,
    interface: Ipv4Addr,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileMode {
    Unreplicated,
    Raft,
    #[default]
    HovercRaft,
    #[serde(rename = "hovercraft++")]
    HovercRaftPlusPlus,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileDurability {
    #[default]
    Sync,
    Interval,
    Memory,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileStore {
    #[default]
    Segmented,
    Sled,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FilePolicy {
    #[default]
    Jbsq,
    Random,
    Leader,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileTiming {
    #[default]
    Lan,
    Datacenter,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileExecution {
    #[default]
    Inline,
    Thread,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLimits {
    session_lifetime_s: u64,
    session_window: u32,
    session_bytes_max: u64,
    sessions_max: u32,
    request_bytes_max: u32,
}

impl Default for FileLimits {
    fn default() -> Self {
        let limits = ClusterLimits::default();
        Self {
            session_lifetime_s: limits.session_lifetime.as_secs(),
            session_window: limits.session_window,
            session_bytes_max: limits.session_bytes_max,
            sessions_max: limits.sessions_max,
            request_bytes_max: limits.request_bytes_max,
        }
    }
}

/// A field that has a value that is not allowed.
pub(crate) struct Wrong {
    pub(crate) field: &'static str,
    pub(crate) problem: String,
}

pub(crate) fn wrong<T>(field: &'static str, problem: impl Into<String>) -> Result<T, Wrong> {
    let problem = problem.into();
    Err(Wrong { field, problem })
}

/// Checks that a number is within what is allowed.
pub(crate) fn within<T>(field: &'static str, value: T, least: T, most: T) -> Result<T, Wrong>
where
    T: Copy + PartialOrd + std::fmt::Display,
{
    if value < least || value > most {
        return wrong(field, format!("is {value}; allowed is {least} to {most}"));
    }
    Ok(value)
}

impl File {
    fn check(self, directory: &Path) -> Result<Config, Wrong> {
        let members = check_members(&self.members)?;
        let id = NodeId(self.id);
        if members.iter().all(|(member, _)| *member != id) {
            return wrong("id", format!("is {id}, which is not the id of any of the members"));
        }
        if self.data.is_none() && self.mode != FileMode::Unreplicated {
            let problem =
                "is missing; every mode but \"unreplicated\" needs a directory of its own";
            return wrong("data", problem);
        }
        if self.resp.is_some() && self.service != Service::Kv {
            return wrong("resp", "is set, but only the service \"kv\" speaks the Redis protocol");
        }
        let dissemination = self.check_dissemination()?;
        let sync_interval_ms = within("sync_interval_ms", self.sync_interval_ms, 1, 60_000)?;
        Ok(Config {
            id,
            cluster: Cluster {
                members,
                dissemination,
                switch: self.switch,
                multicast: self.multicast.map(FileMulticast::check).transpose()?,
                mode: match self.mode {
                    FileMode::Unreplicated => Mode::Unreplicated,
                    FileMode::Raft => Mode::Raft,
                    FileMode::HovercRaft => Mode::HovercRaft,
                    FileMode::HovercRaftPlusPlus => Mode::HovercRaftPlusPlus,
                },
                limits: self.limits.check()?,
            },
            data: self.data.map(|data| directory.join(data)),
            durability: match self.durability {
                FileDurability::Sync => Durability::Sync,
                FileDurability::Interval => Durability::Interval,
                FileDurability::Memory => Durability::Memory,
            },
            sync_interval: Duration::from_millis(sync_interval_ms.into()),
            store: match self.store {
                FileStore::Segmented => StoreKind::Segmented,
                FileStore::Sled => StoreKind::Sled,
            },
            policy: match self.policy {
                FilePolicy::Jbsq => Policy::Jbsq,
                FilePolicy::Random => Policy::Random,
                FilePolicy::Leader => Policy::Leader,
            },
            queue_bound: within("queue_bound", self.queue_bound, 1, 65_536)?,
            timing: match self.timing {
                FileTiming::Lan => Timing::LAN,
                FileTiming::Datacenter => Timing::DATACENTER,
            },
            admission_limit: within("admission_limit", self.admission_limit, 1, 1 << 24)?,
            log_bytes_max: within("log_bytes_max", self.log_bytes_max, 1 << 16, 1 << 40)?,
            service: self.service,
            execution: match self.execution {
                FileExecution::Inline => Execution::Inline,
                FileExecution::Thread => Execution::Thread,
            },
            spin: Duration::from_micros(within("spin_us", self.spin_us, 0, 1_000_000)?.into()),
            resp: self.resp,
        })
    }
}

impl File {
    fn check_dissemination(&self) -> Result<Dissemination, Wrong> {
        if self.mode == FileMode::HovercRaftPlusPlus && self.switch.is_none() {
            return wrong("switch", "is missing; in the mode \"hovercraft++\" it aggregates");
        }
        if let Some(switch) = self.switch {
            check_reachable("switch", switch)?;
        }
        let usual = match self.multicast {
            Some(_) => Dissemination::Multicast,
            None => Dissemination::FanOut,
        };
        let chosen = self.dissemination.unwrap_or(usual);
        match chosen {
            Dissemination::Multicast if self.multicast.is_none() => {
                wrong("dissemination", "is \"multicast\", but there is no [multicast] group")
            }
            Dissemination::Switch if self.switch.is_none() => {
                wrong("dissemination", "is \"switch\", but `switch` says of none")
            }
            Dissemination::Switch if self.mode == FileMode::Raft => wrong(
                "dissemination",
                "is \"switch\", but in the mode \"raft\" the leader sends requests on",
            ),
            chosen => Ok(chosen),
        }
    }
}

/// Checks that others can reach an address.
pub(crate) fn check_reachable(field: &'static str, address: SocketAddrV4) -> Result<(), Wrong> {
    if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
        let problem = format!(
            "is {address}; allowed is the address and the port by which the others reach it"
        );
        return wrong(field, problem);
    }
    Ok(())
}

pub(crate) fn check_members(members: &[FileMember]) -> Result<Vec<(NodeId, SocketAddrV4)>, Wrong> {
    const MEMBERS_MAX: usize = 64;
    let (mut ids, mut addresses) = (HashSet::new(), HashSet::new());
    within("members: their number", members.len(), 1, MEMBERS_MAX)?;
    for FileMember { id, address } in members {
        within("members: an id", *id, 1, u16::MAX)?;
        if !ids.insert(id) {
            return wrong("members", format!("has two with the id {id}"));
        }
        if !addresses.insert(address) {
            return wrong("members", format!("has two with the address {address}"));
        }
        if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
            let problem = format!(
                "has the address {address}; allowed is the address and the port by which the \
                 others reach that replica"
            );
            return wrong("members", problem);
        }
    }
    Ok(members.iter().map(|member| (NodeId(member.id), member.address)).collect())
}

impl FileMulticast {
    fn check(self) -> Result<Multicast, Wrong> {
        let Self { group, interface } = self;
        if !group.ip().is_multicast() || group.port() == 0 {
            let problem =
                format!("is {group}; allowed is 224.0.0.0 to 239.255.255.255, with a port");
            return wrong("multicast.group", problem);
        }
        if interface.is_unspecified() || interface.is_multicast() {
            let problem = format!("is {interface}; allowed is an address of this host");
            return wrong("multicast.interface", problem);
        }
        Ok(Multicast { group, interface })
    }
}

impl FileLimits {
    fn check(self) -> Result<ClusterLimits, Wrong> {
        let lifetime =
            within("limits.session_lifetime_s", self.session_lifetime_s, 1, 366 * 24 * 3600)?;
        let bytes = within("limits.session_bytes_max", self.session_bytes_max, 1 << 16, 1 << 40)?;
        let request = within("limits.request_bytes_max", self.request_bytes_max, 1024, 64 << 20)?;
        Ok(ClusterLimits {
            session_lifetime: Duration::from_secs(lifetime),
            session_window: within("limits.session_window", self.session_window, 2, 1 << 20)?,
            session_bytes_max: bytes,
            sessions_max: within("limits.sessions_max", self.sessions_max, 1, 1 << 24)?,
            request_bytes_max: request,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../hovercraft.sample.toml");

    const LEAST: &str = "
        id = 2
        data = \"two\"
        members = [{ id = 1, address = '10.0.0.1:7000' }, { id = 2, address = '10.0.0.2:7000' }]
    ";

    fn parse(text: &str) -> Result<Config, String> {
        let path = Path::new("some/where.toml");
        Config::parse(text, path).map_err(|error| error.to_string())
    }

    #[test]
    fn the_least_that_must_be_said_takes_the_defaults() {
        let config = parse(LEAST).expect("enough");
        let limits = ClusterLimits::default();
        assert_eq!(config.id, NodeId(2));
        assert_eq!(config.cluster.members[1], (NodeId(2), "10.0.0.2:7000".parse().unwrap()));
        assert_eq!(config.data.as_deref(), Some(Path::new("some/two")));
        assert_eq!((config.cluster.mode, config.cluster.multicast), (Mode::HovercRaft, None));
        assert_eq!((config.durability, config.policy), (Durability::Sync, Policy::Jbsq));
        assert_eq!(config.store, StoreKind::Segmented);
        assert_eq!((config.queue_bound, config.service), (128, Service::Kv));
        assert_eq!((config.resp, config.cluster.limits), (None, limits));
    }

    /// What the sample says of a field that need not be given is behind a `#` without a space.
    #[test]
    fn the_sample_states_every_field_and_every_default() {
        let given = parse(SAMPLE).expect("the sample is a good file");
        let uncommented = |line: &str| match line.strip_prefix('#') {
            Some(field) if field.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                field.to_owned()
            }
            _ => line.to_owned(),
        };
        let full = SAMPLE.lines().map(uncommented).collect::<Vec<_>>().join("\n");
        let full = parse(&full).expect("what is commented out is good too");
        assert!(full.cluster.multicast.is_some() && full.resp.is_some());
        assert!(full.cluster.switch.is_some());
        let cluster = Cluster { multicast: None, switch: None, ..full.cluster.clone() };
        let as_given = Config { cluster, resp: None, ..full };
        assert_eq!(as_given, given);
        for (section, known) in [("", ""), ("[multicast]\n", "multicast"), ("[limits]\n", "limits")]
        {
            let error = parse(&format!("{section}nonsense = 1")).unwrap_err();
            let fields: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
            assert!(fields.len() >= 2, "{known}: {error}");
            for field in fields {
                let stated = SAMPLE.lines().any(|line| {
                    line.trim_start_matches(['#', '[']).starts_with(field) && !line.contains("# ")
                });
                assert!(stated, "the sample does not state {known} {field}");
            }
        }
    }

    #[test]
    fn every_error_names_the_field_and_what_is_allowed() {
        for (text, expected) in [
            ("queue_bound = 0", "some/where.toml: queue_bound is 0; allowed is 1 to 65536"),
            ("queue_bound = -1", "queue_bound = -1"),
            ("queue_limit = 7", "unknown field `queue_limit`, expected one of `id`, `members`"),
            ("mode = 'paxos'", "expected one of `unreplicated`, `raft`, `hovercraft`"),
            ("mode = 'hovercraft++'", "switch is missing; in the mode"),
            ("dissemination = 'switch'", "dissemination is \"switch\", but `switch`"),
            ("dissemination = 'multicast'", "dissemination is \"multicast\", but there is no"),
            ("dissemination = 'air'", "expected one of `fan-out`, `multicast`, `switch`"),
            ("switch = '0.0.0.0:1'", "switch is 0.0.0.0:1; allowed is"),
            ("durability = 'some'", "expected one of `sync`, `interval`, `memory`"),
            ("store = 'paper'", "expected `segmented` or `sled`"),
            ("policy = 'best'", "expected one of `jbsq`, `random`, `leader`"),
            ("timing = 'wan'", "expected `lan` or `datacenter`"),
            ("execution = 'fork'", "expected `inline` or `thread`"),
            ("service = 'sql'", "expected `kv` or `synthetic`"),
            ("sync_interval_ms = 0", "sync_interval_ms is 0; allowed is 1 to 60000"),
            ("admission_limit = 0", "admission_limit is 0; allowed is 1 to 16777216"),
            ("log_bytes_max = 1", "log_bytes_max is 1; allowed is 65536 to"),
            ("service = 'synthetic'\nresp = '1.2.3.4:1'", "resp is set, but only the service"),
            ("resp = '6379'", "resp = '6379'"),
            (
                "multicast = { group = '10.0.0.1:1', interface = '10.0.0.1' }",
                "multicast.group is 10.0.0.1:1; allowed is 224.0.0.0 to",
            ),
            (
                "multicast = { group = '239.0.0.1:1', interface = '0.0.0.0' }",
                "multicast.interface is 0.0.0.0; allowed is",
            ),
            ("limits = { session_window = 1 }", "limits.session_window is 1; allowed is 2"),
            ("limits = { sessions_max = 0 }", "limits.sessions_max is 0; allowed is 1"),
            ("limits = { request_bytes_max = 1 }", "limits.request_bytes_max is 1; allowed is"),
        ] {
            let error = parse(&format!("{LEAST}\n{text}")).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn members_are_checked() {
        for (id, members, expected) in [
            ("1", "", "members: their number is 0; allowed is 1 to 64"),
            ("3", "{ id = 1, address = '1.1.1.1:1' }", "id is 3, which is not the id of any"),
            ("1", "{ id = 0, address = '1.1.1.1:1' }", "members: an id is 0; allowed is 1"),
            (
                "1",
                "{ id = 1, address = '1.1.1.1:1' }, { id = 1, address = '1.1.1.1:2' }",
                "members has two with the id 1",
            ),
            (
                "1",
                "{ id = 1, address = '1.1.1.1:1' }, { id = 2, address = '1.1.1.1:1' }",
                "members has two with the address 1.1.1.1:1",
            ),
            ("1", "{ id = 1, address = '0.0.0.0:1' }", "members has the address 0.0.0.0:1"),
            ("1", "{ id = 1, address = '[::1]:1' }", "invalid IPv4 socket address syntax"),
            ("1", "{ id = 1 }", "missing field `address`"),
        ] {
            let error =
                parse(&format!("id = {id}\ndata = 'd'\nmembers = [{members}]")).unwrap_err();
            assert!(error.contains(expected), "{members}: {error}");
        }
    }

    #[test]
    fn only_a_replicated_service_needs_a_directory() {
        let without = LEAST.replace("data = \"two\"", "");
        let error = parse(&without).unwrap_err();
        assert!(error.contains("data is missing"), "{error}");
        let config = parse(&format!("{without}\nmode = 'unreplicated'")).expect("enough");
        assert_eq!((config.cluster.mode, config.data), (Mode::Unreplicated, None));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::read(Path::new("no/such.toml")).unwrap_err();
        assert!(error.to_string().starts_with("cannot read no/such.toml: "), "{error}");
    }
}
