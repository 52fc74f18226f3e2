//! How the processes of a cluster are set up, and their configuration files.

use std::{fmt::Write as _, net::SocketAddrV4, path::Path, time::Duration};

use hovercraft::{Mode, NodeId};

/// How the replicas of a cluster run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How many.
    pub replicas: u16,
    /// What they do with requests.
    pub mode: Mode,
    /// As in a configuration file.
    pub durability: String,
    /// As in a configuration file.
    pub service: String,
    /// Where the service runs, as in a configuration file.
    pub execution: &'static str,
    /// Who replies, as in a configuration file.
    pub policy: String,
    /// B (P15).
    pub queue_bound: usize,
    /// As in a configuration file.
    pub admission_limit: usize,
    /// As in a configuration file.
    pub spin_us: u32,
    /// A network namespace for each, and the percentage of datagrams that is lost there.
    pub netns: Option<Option<f64>>,
    /// A switch before the replicas. In mode `hovercraft++` there is one in any case, which aggregates.
    pub switch: Option<SwitchSetup>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            replicas: 3,
            mode: Mode::HovercRaft,
            durability: "memory".to_owned(),
            service: "synthetic".to_owned(),
            execution: "inline",
            policy: "jbsq".to_owned(),
            queue_bound: 1024,
            admission_limit: 16_384,
            spin_us: 0,
            netns: None,
            switch: None,
        }
    }
}

/// What the switch of a cluster does beside aggregating.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SwitchSetup {
    /// Clients send to it, and it passes on (P3).
    pub disseminates: bool,
    /// Which requests it passes on; all if there is none (P23).
    pub admission: Option<AdmissionSetup>,
}

/// As in a switch's configuration file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdmissionSetup {
    /// How many requests may be in the system.
    pub limit: usize,
    /// When a request whose answer was not heard of does not count any more.
    pub age: Duration,
    /// With the SLO policy: within what 99 % are to be answered.
    pub slo: Option<Duration>,
}

impl Setup {
    /// What the switch does, if there is one.
    pub(crate) fn switch(&self) -> Option<SwitchSetup> {
        self.switch.or((self.mode == Mode::HovercRaftPlusPlus).then(SwitchSetup::default))
    }

    /// The configuration file of a replica.
    pub(super) fn node_text(
        &self,
        id: NodeId,
        members: &[(NodeId, SocketAddrV4)],
        switch: Option<SocketAddrV4>,
        data: &Path,
    ) -> String {
        let Self { mode, durability, service, execution, policy, queue_bound, .. } = self;
        let Self { admission_limit, spin_us, .. } = self;
        let mut text = format!(
            "id = {id}\nmembers = {}\ndata = {:?}\nmode = \"{mode}\"\ndurability = \"{durability}\"\n\
             service = \"{service}\"\nexecution = \"{execution}\"\npolicy = \"{policy}\"\n\
             queue_bound = {queue_bound}\nadmission_limit = {admission_limit}\nspin_us = {spin_us}\n",
            listed(members),
            data.display().to_string(),
        );
        if let Some(address) = switch {
            // Writing to a string does not fail.
            let _ = writeln!(text, "switch = \"{address}\"");
            if self.switch().is_some_and(|it| it.disseminates) {
                text.push_str("dissemination = \"switch\"\n");
            }
        }
        text
    }
}

impl SwitchSetup {
    /// The configuration file of the switch of a cluster.
    pub(super) fn text(
        &self,
        address: SocketAddrV4,
        members: &[(NodeId, SocketAddrV4)],
        spin_us: u32,
    ) -> String {
        let mut text = format!("address = \"{address}\"\nspin_us = {spin_us}\n");
        if self.disseminates {
            // Writing to a string does not fail.
            let _ = writeln!(text, "members = {}", listed(members));
        }
        if let Some(AdmissionSetup { limit, age, slo }) = self.admission {
            let _ = writeln!(text, "[admission]\nlimit = {limit}\nage_ms = {}", age.as_millis());
            if let Some(slo) = slo {
                let _ = writeln!(text, "slo_us = {}", slo.as_micros());
            }
        }
        text
    }
}

fn listed(members: &[(NodeId, SocketAddrV4)]) -> String {
    let members = members.iter();
    let members = members.map(|(id, address)| format!("{{ id = {id}, address = \"{address}\" }}"));
    format!("[{}]", members.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hovercraft_apps::{config::Config, switch_config::SwitchFile};

    use super::*;

    fn address(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    #[test]
    fn the_command_reads_what_is_written_for_it() {
        let members: Vec<_> = (1..=3).map(|id| (NodeId(id), address(7000 + id))).collect();
        let admission = AdmissionSetup {
            limit: 100,
            age: Duration::from_secs(1),
            slo: Some(Duration::from_millis(5)),
        };
        let switch = SwitchSetup { disseminates: true, admission: Some(admission) };
        let setup =
            Setup { mode: Mode::HovercRaftPlusPlus, switch: Some(switch), ..Setup::default() };
        let at = Some(address(7010));
        let text = setup.node_text(NodeId(2), &members, at, Path::new("data"));
        let config = Config::parse(&text, Path::new("2.toml")).expect("a configuration");
        assert_eq!((config.cluster.mode, config.cluster.switch), (setup.mode, at));
        let text = switch.text(address(7010), &members, 5);
        let file = SwitchFile::parse(&text, Path::new("switch.toml")).expect("a configuration");
        assert_eq!(file.config.members, [address(7001), address(7002), address(7003)]);
        let read = file.config.admission.expect("admission");
        assert_eq!((read.limit, read.age_max, read.slo), (100, admission.age, admission.slo));
        let text = SwitchSetup::default().text(address(7010), &members, 0);
        let file = SwitchFile::parse(&text, Path::new("switch.toml")).expect("a configuration");
        assert!(file.config.members.is_empty() && file.config.aggregates);
    }
}
