//! Which cluster a command is about.

use std::{net::SocketAddrV4, path::PathBuf};

use clap::Args;
use hovercraft::{ClusterLimits, Mode, NodeId, storage::Durability};

use crate::config::{Cluster, Config, ConfigError, Dissemination};

/// How a command is told which cluster it is about. Global, so that it may stand before and behind
/// a subcommand; clap cannot demand a global argument, so [`Self::resolve`] does.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "The cluster, one way or the other")]
pub(super) struct ClusterArguments {
    /// The replicas' addresses, separated by commas: ip:port,ip:port,…
    #[arg(long, global = true, value_name = "ADDRESSES", value_delimiter = ',')]
    members: Vec<SocketAddrV4>,

    /// The configuration file of any of the replicas
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why it is not known which cluster is meant.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterError {
    /// Neither or both ways were used.
    #[error("say which cluster: either --members ip:port,ip:port,… or --config FILE")]
    OneWay,
    /// The configuration file is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl ClusterArguments {
    /// Reads the configuration file, if there is one. Replicas that are named by address alone are
    /// numbered from 1.
    pub(super) fn resolve(self) -> Result<Cluster, ClusterError> {
        self.resolve_with_durability().map(|(cluster, _)| cluster)
    }

    /// The same, and the replicas' durability if the configuration file says it.
    pub(super) fn resolve_with_durability(
        self,
    ) -> Result<(Cluster, Option<Durability>), ClusterError> {
        match (self.config, self.members.is_empty()) {
            (Some(path), true) => {
                let config = Config::read(&path)?;
                Ok((config.cluster, Some(config.durability)))
            }
            (None, false) => {
                let cluster = Cluster {
                    members: (1..).map(NodeId).zip(self.members).collect(),
                    dissemination: Dissemination::FanOut,
                    switch: None,
                    multicast: None,
                    mode: Mode::default(),
                    limits: ClusterLimits::default(),
                };
                Ok((cluster, None))
            }
            (Some(_), false) | (None, true) => Err(ClusterError::OneWay),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        cluster: ClusterArguments,
    }

    fn resolve(arguments: &[&str]) -> Result<Cluster, String> {
        let all = ["command"].iter().chain(arguments);
        let command = Command::try_parse_from(all).map_err(|error| error.to_string())?;
        command.cluster.resolve().map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_are_numbered_in_their_order() {
        let cluster = resolve(&["--members", "10.0.0.1:7001,10.0.0.2:7001"]).unwrap();
        let expected = [(1, "10.0.0.1:7001"), (2, "10.0.0.2:7001")];
        let expected = expected.map(|(id, address)| (NodeId(id), address.parse().unwrap()));
        assert_eq!(cluster.members, expected);
    }

    #[test]
    fn one_way_must_be_chosen() {
        assert!(resolve(&[]).unwrap_err().contains("say which cluster"));
        let both = ["--members", "10.0.0.1:1", "--config", "x"];
        assert!(resolve(&both).unwrap_err().contains("say which cluster"));
        let error = resolve(&["--members", "localhost:1"]).unwrap_err();
        assert!(error.contains("localhost:1") && error.contains("--members"), "{error}");
    }

    #[test]
    fn a_configuration_names_the_cluster() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let sample = include_str!("../../hovercraft.sample.toml");
        std::fs::write(file.path(), sample).expect("writable");
        let path = file.path().to_str().expect("a plain name");
        assert_eq!(resolve(&["--config", path]).unwrap().members.len(), 3);
    }
}
