//! The configuration of a switch: a TOML file, checked field by field.
//!
//! `switch.sample.toml` documents every field.

use std::{fs, net::SocketAddrV4, path::Path, time::Duration};

use hovercraft::switch::{AdmissionConfig, RouterConfig, Routing, SwitchConfig};
use serde::Deserialize;

use crate::config::{
    ConfigError, FileMember, Wrong, check_members, check_reachable, within, wrong,
};

/// How a switch is run.
#[derive(Debug, Clone)]
pub struct SwitchFile {
    /// Where it receives.
    pub address: SocketAddrV4,
    /// What it does.
    pub config: SwitchConfig,
    /// How long it looks for work before it sleeps.
    pub spin: Duration,
}

impl SwitchFile {
    /// Reads and checks a file.
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
        file.check().map_err(|Wrong { field, problem }| {
            let path = path.to_owned();
            ConfigError::Field { path, field, problem }
        })
    }
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    address: SocketAddrV4,
    #[serde(default)]
    members: Vec<FileMember>,
    #[serde(default = "yes")]
    aggregates: bool,
    #[serde(default)]
    spin_us: u32,
    admission: Option<FileAdmission>,
    router: Option<FileRouter>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAdmission {
    limit: usize,
    #[serde(default = "default_age_ms")]
    age_ms: u32,
    slo_us: Option<u32>,
}

fn default_age_ms() -> u32 {
    5000
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRouter {
    workers: Vec<SocketAddrV4>,
    #[serde(default)]
    policy: FileRouting,
    #[serde(default = "default_bound")]
    bound: u32,
    #[serde(default = "default_age_ms")]
    age_ms: u32,
    #[serde(default = "default_waiting_max")]
    waiting_max: usize,
}

fn default_bound() -> u32 {
    3
}

fn default_waiting_max() -> usize {
    4096
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FileRouting {
    #[default]
    Jbsq,
    ShortestQueue,
    RoundRobin,
    Random,
    Fixed,
}

impl File {
    fn check(self) -> Result<SwitchFile, Wrong> {
        check_reachable("address", self.address)?;
        let members =
            if self.members.is_empty() { Vec::new() } else { check_members(&self.members)? };
        let members: Vec<_> = members.into_iter().map(|(_, address)| address).collect();
        if members.contains(&self.address) {
            return wrong("members", format!("has the switch's own address {}", self.address));
        }
        if members.is_empty() && self.admission.is_some() {
            return wrong("admission", "is set, but there are no members to admit requests to");
        }
        if members.is_empty() && self.router.is_none() && !self.aggregates {
            return wrong(
                "members",
                "is missing; without it there must be a router, or aggregates",
            );
        }
        let spin = Duration::from_micros(within("spin_us", self.spin_us, 0, 1_000_000)?.into());
        let config = SwitchConfig {
            members,
            admission: self.admission.map(FileAdmission::check).transpose()?,
            aggregates: self.aggregates,
            router: self.router.map(FileRouter::check).transpose()?,
        };
        Ok(SwitchFile { address: self.address, config, spin })
    }
}

impl FileAdmission {
    fn check(self) -> Result<AdmissionConfig, Wrong> {
        let age_ms = within("admission.age_ms", self.age_ms, 10, 600_000)?;
        let slo_us = self.slo_us.map(|us| within("admission.slo_us", us, 1, 60_000_000));
        Ok(AdmissionConfig {
            limit: within("admission.limit", self.limit, 1, 1 << 24)?,
            age_max: Duration::from_millis(age_ms.into()),
            slo: slo_us.transpose()?.map(|us| Duration::from_micros(us.into())),
        })
    }
}

impl FileRouter {
    fn check(self) -> Result<RouterConfig, Wrong> {
        const WORKERS_MAX: usize = 1024;
        within("router.workers: their number", self.workers.len(), 1, WORKERS_MAX)?;
        for worker in &self.workers {
            check_reachable("router.workers", *worker)?;
        }
        let bound = within("router.bound", self.bound, 1, 65_536)?;
        let age_ms = within("router.age_ms", self.age_ms, 10, 600_000)?;
        Ok(RouterConfig {
            workers: self.workers,
            routing: match self.policy {
                FileRouting::Jbsq => Routing::Jbsq(bound),
                FileRouting::ShortestQueue => Routing::ShortestQueue,
                FileRouting::RoundRobin => Routing::RoundRobin,
                FileRouting::Random => Routing::Random,
                FileRouting::Fixed => Routing::Fixed,
            },
            age_max: Duration::from_millis(age_ms.into()),
            waiting_max: within("router.waiting_max", self.waiting_max, 0, 1 << 20)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../switch.sample.toml");

    fn parse(text: &str) -> Result<SwitchFile, String> {
        SwitchFile::parse(text, Path::new("some.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_sample_is_a_good_file_and_so_is_what_it_leaves_out() {
        let given = parse(SAMPLE).expect("the sample is a good file");
        assert_eq!((given.config.members.len(), given.config.aggregates), (3, true));
        assert!(given.config.admission.is_none() && given.config.router.is_none());
        let uncommented = |line: &str| match line.strip_prefix('#') {
            Some(field) if field.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                field.to_owned()
            }
            _ => line.to_owned(),
        };
        let full = SAMPLE.lines().map(uncommented).collect::<Vec<_>>().join("\n");
        let full = parse(&full).expect("what is commented out is good too");
        let admission = full.config.admission.expect("it is there");
        assert_eq!((admission.limit, admission.age_max), (1000, Duration::from_secs(5)));
        let router = full.config.router.expect("it is there");
        assert_eq!((router.routing, router.waiting_max), (Routing::Jbsq(3), 4096));
    }

    #[test]
    fn every_error_names_the_field_and_what_is_allowed() {
        let least = "address = '10.0.0.9:7000'\n";
        for (text, expected) in [
            ("aggregates = false", "members is missing; without it"),
            ("admission = { limit = 5 }", "admission is set, but there are no members"),
            ("members = [{ id = 1, address = '10.0.0.9:7000' }]", "has the switch's own address"),
            ("router = { workers = [] }", "router.workers: their number is 0; allowed is 1"),
            ("router = { workers = ['1.1.1.1:1'], bound = 0 }", "router.bound is 0; allowed"),
            ("router = { workers = ['1.1.1.1:1'], policy = 'best' }", "expected one of `jbsq`"),
            ("roles = 1", "unknown field `roles`, expected one of `address`"),
        ] {
            let error = parse(&format!("{least}{text}")).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let error = parse("address = '0.0.0.0:7000'").unwrap_err();
        assert!(error.contains("address is 0.0.0.0:7000; allowed is"), "{error}");
    }
}
