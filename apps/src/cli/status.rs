//! `hovercraft status`: how every replica is.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::SocketAddrV4,
    time::Duration,
};

use hovercraft::{
    Counts,
    admin::{self, AdminError, NodeStatus},
    core::{RoleStatus, Standstill},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    ClusterArguments, Exit, fail, runtime,
    standing::{self, Answers},
    switch_status,
};

const KEYS: &str = "\
With --json the output is one object with the key `replicas`: an array with an object for each
replica, in the order asked. Indices are positions in the log.

  address          where it was asked
  error            why there is nothing else, if it did not answer
  node, cluster    its number; its cluster as 16 hex digits, null before init
  mode             what it does with requests
  poisoned         the error that stopped its service, or null
  role             leader, candidate or follower; this and what follows is null before init
                   and in the mode unreplicated
  leader           the number of the replica that it follows, or null
  term             its term
  recovering       whether it may not vote or be counted until it has caught up
  missing          what it may have lost, if this run of it began recovering, or null
  counted_by       before init, the cluster that speaks to it as to a member, or null: its disk was
                   lost, or its init is not finished
  notes            what the table says of it
  first_index, last_index, durable_index, commit_index, applied_index, snapshot_index
                   the first entry kept, the last one, the last one on disk, the last one that is
                   committed, the last one executed, and where its snapshot is
  log_bytes        the size of the log in memory
  unordered, unordered_bytes
                   requests that have no place in the log yet
  missing_bodies   entries that it knows of but whose requests it does not have
  admitted         requests in the system, as the leader counts them
  disk_stands_us   for so long its disk has completed nothing although work waits, in
                   microseconds; 0 unless that is so long that it should not lead
  queues           at the leader, for each replica: node, queue (how many requests wait for its
                   reply), applied_index (null before its first report), matched_index, restored
                   (an older copy of its data was put in place: it is not counted),
                   waits_at_index and waits_for (the entry that it does not go beyond, and for
                   which it waits: body, disk, service, room, the disk is full; null while
                   it goes on)
  datagrams_in, datagrams_out, bytes_in, bytes_out, datagrams_lost
                   what its sockets have done; lost is what the kernel had no room for
  packets_damaged  packets refused because their check was wrong: damaged on their way, or of
                   another cluster
  counters         an object of counts since its start, by name; a later version may have more

With a configuration that names a switch there is a key `switch` too: its address, and for each of its
roles what it has counted, or an error.

Exit codes: 0 if every replica answered, is well and the same one leads all of them, and the switch
answered if there is one; 1 if not; 3 bad
input or usage.";

/// Show how every replica is: leader, term, indices, queues.
#[derive(Debug, clap::Args)]
#[command(after_long_help = KEYS, after_help = "--help tells the keys of --json and the exit codes.")]
pub(super) struct Arguments {
    #[command(flatten)]
    cluster: ClusterArguments,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// How long to wait for a replica, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    timeout: u16,
}

/// What came of asking one replica.
type Asked = (SocketAddrV4, Result<NodeStatus, AdminError>);

pub(super) fn run(arguments: Arguments) -> Exit {
    let cluster = match arguments.cluster.resolve() {
        Ok(cluster) => cluster,
        Err(error) => return fail(Exit::Usage, error),
    };
    let switch = cluster.switch;
    let addresses = cluster.members.into_iter().map(|(_, address)| address);
    let timeout = Duration::from_secs(arguments.timeout.into());
    let (replicas, switch) = match runtime() {
        Ok(runtime) => runtime.block_on(async {
            let asked =
                tokio::join!(ask(addresses.collect(), timeout), ask_switch(switch, timeout));
            asked
        }),
        Err(error) => return fail(Exit::Bad, error),
    };
    let mut output = io::stdout().lock();
    let printed = if arguments.json {
        let answers = answers(&replicas);
        let replicas: Vec<Value> =
            replicas.iter().map(|replica| to_json(replica, &answers)).collect();
        let mut all = json!({ "replicas": replicas });
        if let Some(asked) = &switch {
            all["switch"] = switch_status::to_json(asked);
        }
        writeln!(output, "{all:#}")
    } else {
        let switch = switch.as_ref().map(switch_status::lines).unwrap_or_default();
        write!(output, "{}{switch}", table(&replicas))
    };
    if let Err(error) = printed {
        return fail(Exit::Bad, error);
    }
    let is_silent = switch.is_some_and(|(_, answer)| answer.is_err());
    if is_well(&replicas) && !is_silent { Exit::Good } else { Exit::Bad }
}

/// Asks the switch, if there is one.
async fn ask_switch(
    address: Option<SocketAddrV4>,
    timeout: Duration,
) -> Option<switch_status::Asked> {
    let address = address?;
    Some((address, admin::switch_status(address, timeout).await))
}

/// Asks all replicas at the same time.
async fn ask(addresses: Vec<SocketAddrV4>, timeout: Duration) -> Vec<Asked> {
    let mut asking = JoinSet::new();
    for (position, address) in addresses.into_iter().enumerate() {
        asking.spawn(async move { (position, address, admin::status(address, timeout).await) });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by_key(|(position, ..)| *position);
    answers.into_iter().map(|(_, address, answer)| (address, answer)).collect()
}

/// Returns whether all answered, none has stopped, is recovering or waits for its disk, and all
/// follow the same leader.
fn is_well(replicas: &[Asked]) -> bool {
    let leader = |(_, answer): &Asked| {
        let status = answer.as_ref().ok()?;
        let protocol = status.protocol.as_ref()?;
        let well =
            status.poisoned.is_none() && !protocol.recovering && protocol.disk_stands_us == 0;
        protocol.leader.filter(|_| well).map(|leader| (leader, protocol.term))
    };
    let unreplicated = |(_, answer): &Asked| matches!(answer, Ok(status) if status.mode == "unreplicated" && status.poisoned.is_none());
    let first = replicas.first().and_then(leader);
    (first.is_some() && replicas.iter().all(|replica| leader(replica) == first))
        || replicas.iter().all(unreplicated)
}

fn role(role: RoleStatus) -> &'static str {
    match role {
        RoleStatus::Follower => "follower",
        RoleStatus::Candidate => "candidate",
        RoleStatus::Leader => "leader",
    }
}

/// Those who answered.
fn answers(replicas: &[Asked]) -> Vec<(SocketAddrV4, &NodeStatus)> {
    replicas
        .iter()
        .filter_map(|(address, answer)| Some((*address, answer.as_ref().ok()?)))
        .collect()
}

fn to_json((address, answer): &Asked, all: Answers<'_>) -> Value {
    let status = match answer {
        Ok(status) => status,
        Err(error) => return json!({ "address": address, "error": error.to_string() }),
    };
    let protocol = status.protocol.as_ref();
    let queues = protocol.map(|protocol| {
        let queue = |replica: &hovercraft::core::ReplicaStatus| {
            json!({
                "node": replica.node.0,
                "queue": replica.queue,
                "applied_index": replica.applied,
                "matched_index": replica.matched,
                "restored": replica.restored,
                "waits_at_index": replica.standstill.map(|it| it.index),
                "waits_for": replica.standstill.map(|it| it.cause.to_string()),
            })
        };
        protocol.replicas.iter().map(queue).collect::<Vec<_>>()
    });
    json!({
        "address": address,
        "node": status.node.0,
        "cluster": status.cluster.map(|cluster| format!("{cluster:016x}")),
        "mode": status.mode,
        "poisoned": status.poisoned,
        "role": protocol.map(|protocol| role(protocol.role)),
        "leader": protocol.and_then(|protocol| protocol.leader).map(|leader| leader.0),
        "term": protocol.map(|protocol| protocol.term),
        "recovering": protocol.map(|protocol| protocol.recovering),
        "missing": status.missing,
        "counted_by": status.counted_by.map(|cluster| format!("{cluster:016x}")),
        "notes": notes(*address, status, all),
        "first_index": protocol.map(|protocol| protocol.first),
        "last_index": protocol.map(|protocol| protocol.last),
        "durable_index": protocol.map(|protocol| protocol.durable),
        "commit_index": protocol.map(|protocol| protocol.commit),
        "applied_index": protocol.map(|protocol| protocol.applied),
        "snapshot_index": protocol.map(|protocol| protocol.snapshot),
        "log_bytes": protocol.map(|protocol| protocol.log_bytes),
        "unordered": protocol.map(|protocol| protocol.unordered),
        "unordered_bytes": protocol.map(|protocol| protocol.unordered_bytes),
        "missing_bodies": protocol.map(|protocol| protocol.binding),
        "admitted": protocol.map(|protocol| protocol.admitted),
        "disk_stands_us": protocol.map(|protocol| protocol.disk_stands_us),
        "queues": queues,
        "datagrams_in": status.network.datagrams_in,
        "datagrams_out": status.network.datagrams_out,
        "bytes_in": status.network.bytes_in,
        "bytes_out": status.network.bytes_out,
        "datagrams_lost": status.network.datagrams_lost,
        "packets_damaged": status.network.packets_damaged,
        "counters": status.counters.counts().into_iter().collect::<BTreeMap<_, _>>(),
    })
}

const COLUMNS: [&str; 11] = [
    "node", "address", "role", "leader", "term", "last", "durable", "commit", "applied", "queue",
    "notes",
];

fn table(replicas: &[Asked]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    let answers = answers(replicas);
    rows.extend(replicas.iter().map(|replica| row(replica, &answers)));
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn row((address, answer): &Asked, all: Answers<'_>) -> [String; COLUMNS.len()] {
    let mut row = COLUMNS.map(|_| "-".to_owned());
    row[1] = address.to_string();
    let status = match answer {
        Ok(status) => status,
        Err(AdminError::Silent { waited, .. }) => {
            row[10] = format!("no answer within {waited:?}");
            return row;
        }
        Err(error) => {
            row[10] = error.to_string();
            return row;
        }
    };
    row[0] = status.node.to_string();
    let mut notes = notes(*address, status, all);
    let Some(protocol) = &status.protocol else {
        row[10] = notes.join("; ");
        return row;
    };
    role(protocol.role).clone_into(&mut row[2]);
    row[3] = protocol.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string());
    let numbers =
        [protocol.term, protocol.last, protocol.durable, protocol.commit, protocol.applied];
    for (cell, number) in row[4..9].iter_mut().zip(numbers) {
        *cell = number.to_string();
    }
    // Only the leader knows the queues.
    let protocols = all.iter().filter_map(|(_, status)| status.protocol.as_ref());
    let mut queues = protocols.flat_map(|protocol| &protocol.replicas);
    if let Some(queue) = queues.find(|queue| queue.node == status.node) {
        row[9] = queue.queue.to_string();
        if queue.restored {
            let note =
                "an older copy of its data was put in place: not counted until it has caught up";
            notes.push(note.to_owned());
        }
        if let Some(Standstill { index, cause }) = queue.standstill {
            notes.push(format!("waits at {index} ({cause})"));
        }
    }
    row[10] = notes.join("; ");
    row
}

fn notes(address: SocketAddrV4, status: &NodeStatus, all: Answers<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(error) = &status.poisoned {
        notes.push(format!("service stopped: {error}"));
    }
    if let Some(protocol) = status.protocol.as_ref().filter(|it| it.disk_stands_us > 0) {
        let seconds = protocol.disk_stands_us as f64 / 1e6;
        notes.push(format!("disk has completed nothing for {seconds:.1} s: look at it"));
    }
    match &status.protocol {
        Some(protocol) if protocol.recovering => notes.push(standing::recovering(status, all)),
        Some(protocol) if protocol.binding > 0 => {
            notes.push(format!("{} entries wait for their bodies or for room", protocol.binding));
        }
        None if status.mode == "unreplicated" => notes.push("unreplicated".to_owned()),
        None => notes.push(standing::without_cluster(address, status, all)),
        Some(_) => {}
    }
    notes
}

#[cfg(test)]
pub(super) mod tests {
    use hovercraft::{
        NodeId,
        core::{Cause, ReplicaStatus, Status},
    };

    use super::*;
    use crate::cli::standing::tests::unborn;

    pub(in crate::cli) fn protocol(node: u16, leader: Option<u16>) -> Status {
        let is_leader = leader == Some(node);
        let queue = |node: u16| ReplicaStatus {
            node: NodeId(node),
            queue: 4 + u64::from(node),
            applied: Some(8),
            matched: 9,
            standstill: (node == 2).then_some(Standstill { index: 7, cause: Cause::Disk }),
            restored: false,
        };
        Status {
            node: NodeId(node),
            role: if is_leader { RoleStatus::Leader } else { RoleStatus::Follower },
            leader: leader.map(NodeId),
            term: 3,
            recovering: false,
            first: 1,
            last: 10,
            durable: 9,
            commit: 9,
            applied: 8,
            snapshot: 0,
            log_bytes: 100,
            unordered: 0,
            unordered_bytes: 0,
            binding: 0,
            admitted: 2,
            disk_stands_us: 0,
            replicas: if is_leader { vec![queue(1), queue(2)] } else { vec![] },
        }
    }

    fn answer(node: u16, protocol: Option<Status>) -> Asked {
        let status = NodeStatus { cluster: Some(0xAB), protocol, ..unborn(node, node.into()) };
        (format!("10.0.0.{node}:7000").parse().unwrap(), Ok(status))
    }

    fn silent() -> Asked {
        let address = "10.0.0.3:7000".parse().unwrap();
        (address, Err(AdminError::Silent { address, waited: Duration::from_secs(2) }))
    }

    #[test]
    fn the_table_has_a_row_for_every_replica() {
        let replicas = [
            answer(1, Some(protocol(1, Some(1)))),
            answer(2, Some(protocol(2, Some(1)))),
            silent(),
        ];
        let table = table(&replicas);
        let words: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], COLUMNS);
        assert_eq!(
            words[1],
            "1 10.0.0.1:7000 leader 1 3 10 9 9 8 5".split(' ').collect::<Vec<_>>()
        );
        assert_eq!(words[2][..4], ["2", "10.0.0.2:7000", "follower", "1"]);
        assert_eq!(words[2][9], "6", "its queue is known by the leader");
        assert!(table.lines().nth(2).unwrap().ends_with("waits at 7 (disk)"), "{table}");
        assert!(table.lines().nth(3).unwrap().contains("no answer within 2s"), "{table}");
    }

    #[test]
    fn a_cluster_is_well_if_all_follow_the_same_leader() {
        let good =
            || [answer(1, Some(protocol(1, Some(1)))), answer(2, Some(protocol(2, Some(1))))];
        assert!(is_well(&good()));
        let mut recovering = good();
        recovering[1].1.as_mut().unwrap().protocol.as_mut().unwrap().recovering = true;
        assert!(!is_well(&recovering));
        let mut poisoned = good();
        poisoned[1].1.as_mut().unwrap().poisoned = Some("entry 7".into());
        assert!(!is_well(&poisoned));
        assert!(!is_well(&[answer(1, Some(protocol(1, None)))]));
        assert!(!is_well(&[answer(1, None)]));
        let mut waiting = good();
        waiting[1].1.as_mut().unwrap().protocol.as_mut().unwrap().disk_stands_us = 1_500_000;
        assert!(!is_well(&waiting));
        assert!(table(&waiting).contains("disk has completed nothing for 1.5 s"));
        let [first, _] = good();
        assert!(!is_well(&[first, silent()]));
        let mut alone = answer(1, None);
        alone.1.as_mut().unwrap().mode = "unreplicated".into();
        assert!(is_well(&[alone]));
    }

    #[test]
    fn every_key_of_the_json_is_documented() {
        let Value::Object(good) = to_json(&answer(1, Some(protocol(1, Some(1)))), &[]) else {
            panic!("not an object");
        };
        let Value::Object(silent) = to_json(&silent(), &[]) else { panic!("not an object") };
        let queue = good["queues"][0].as_object().expect("an object").clone();
        for key in good.keys().chain(silent.keys()).chain(queue.keys()) {
            let words = KEYS.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
            assert!(words.into_iter().any(|word| word == key), "{key} is not documented");
        }
        assert_eq!(good["cluster"], "00000000000000ab");
        assert_eq!(good["queues"][1]["queue"], 6);
        assert_eq!(good["counters"]["elections_won"], 0);
    }
}
