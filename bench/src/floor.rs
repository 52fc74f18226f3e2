//! What this machine's kernel charges, measured now: the floor under every figure of ours.

use std::{
    fs::File,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::{Duration, Instant},
};

use r2p2::{Link as _, Outbox, UdpConfig, UdpLink};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{
    machine::Machine,
    stats::{Spread, spread},
};

/// One measured thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// For programs.
    pub key: String,
    /// For people.
    pub name: String,
    /// Processor time each, of sender and receiver together, in µs: the median.
    pub cpu_us: f64,
    /// By the clock, in µs; for what waits for a disk.
    pub wall_us: Option<f64>,
    /// The least and the most of the repetitions.
    pub low_high_us: (f64, f64),
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Floors {
    /// Datagrams, then the disk.
    pub lines: Vec<Floor>,
    /// Where.
    pub machine: Machine,
    /// What could not be measured here, and why.
    pub skipped: Vec<String>,
}

const LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 82, 50, 3);
const TURNS: usize = 5;

/// Measures; each turn of each line takes `turn`. The disk is the one under `directory`.
pub fn measure(turn: Duration, directory: &Path) -> io::Result<Floors> {
    let machine = Machine::here();
    let (mut lines, mut skipped) = (Vec::new(), Vec::new());
    let bind = |config: &UdpConfig| UdpLink::bind(config).map_err(io::Error::other);
    let mut sender = bind(&UdpConfig::new(LOOPBACK))?;
    let mut three = Vec::new();
    for _ in 0..3 {
        three.push(bind(&UdpConfig::new(LOOPBACK))?);
    }
    let to: Vec<_> = three.iter().map(UdpLink::local_address).collect::<Result<_, _>>()?;
    for (train, bytes) in [(1, 64), (1, 1464), (4, 64), (16, 64), (64, 64)] {
        let name = match train {
            1 => format!("a datagram of {bytes} bytes"),
            _ => format!("a datagram of {bytes} bytes in a train of {train} (GSO, GRO)"),
        };
        let path = Way { to: &to[..1], train, bytes };
        lines.push(line(&format!("train_{train}_{bytes}"), name, || {
            deliveries(&mut sender, &mut three[..1], path, turn)
        })?);
    }
    let path = Way { to: &to, train: 1, bytes: 64 };
    lines.push(line("unicast_3", "a delivery by 3 unicasts".to_owned(), || {
        deliveries(&mut sender, &mut three, path, turn)
    })?);
    let path = Way { to: &to, train: 16, bytes: 64 };
    let name = "a delivery by 3 unicasts of a train of 16".to_owned();
    lines.push(line("unicast_3_train_16", name, || {
        deliveries(&mut sender, &mut three, path, turn)
    })?);
    match multicast(&mut sender, turn) {
        Ok(measured) => lines.extend(measured),
        Err(error) => skipped.push(format!("multicast: {error}")),
    }
    for batch in [1, 32, 256] {
        lines.push(appends(directory, batch, turn)?);
    }
    Ok(Floors { lines, machine, skipped })
}

/// Where trains of datagrams go.
#[derive(Clone, Copy)]
struct Way<'a> {
    to: &'a [SocketAddrV4],
    train: usize,
    bytes: usize,
}

fn multicast(sender: &mut UdpLink, turn: Duration) -> io::Result<Vec<Floor>> {
    let group = SocketAddrV4::new(GROUP, sender.local_address()?.port());
    let config = UdpConfig { group: Some(group), ..UdpConfig::new(LOOPBACK) };
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(UdpLink::bind(&config).map_err(io::Error::other)?);
    }
    let mut lines = Vec::new();
    for train in [1, 16] {
        let path = Way { to: &[group], train, bytes: 64 };
        let name = match train {
            1 => "a delivery by a multicast to 3".to_owned(),
            _ => format!("a delivery by a multicast to 3 of a train of {train}"),
        };
        lines.push(line(&format!("multicast_3_train_{train}"), name, || {
            deliveries(sender, &mut members, path, turn)
        })?);
    }
    Ok(lines)
}

/// Repeats a measurement of processor time each, in µs.
fn line(
    key: &str,
    name: String,
    mut measure: impl FnMut() -> io::Result<f64>,
) -> io::Result<Floor> {
    let mut figures = Vec::new();
    for _ in 0..TURNS {
        figures.push(measure()?);
    }
    let Spread { low, median, high } = spread(&figures).expect("there are turns");
    Ok(Floor { key: key.to_owned(), name, cpu_us: median, wall_us: None, low_high_us: (low, high) })
}

fn deliveries(
    sender: &mut UdpLink,
    receivers: &mut [UdpLink],
    path: Way<'_>,
    turn: Duration,
) -> io::Result<f64> {
    let payload = vec![7; path.bytes];
    let mut outbox = Outbox::new();
    let mut delivered = 0u64;
    let (start, cpu) = (Instant::now(), process_cpu());
    // A busy kernel delivers a little later, even on loopback.
    let most = turn + Duration::from_secs(2);
    while start.elapsed() < turn || (delivered == 0 && start.elapsed() < most) {
        for to in path.to {
            for _ in 0..path.train {
                outbox.push(*to, |buffer| buffer.extend_from_slice(&payload));
            }
        }
        sender.send(&mut outbox)?;
        for receiver in &mut *receivers {
            while receiver.receive(&mut |_, _| delivered += 1)? > 0 {}
        }
    }
    let spent = process_cpu().saturating_sub(cpu);
    if delivered == 0 {
        return Err(io::Error::other("nothing was delivered"));
    }
    Ok(spent.as_secs_f64() * 1e6 / delivered as f64)
}

/// Appends of 100 bytes to a file, synced in batches.
fn appends(directory: &Path, batch: usize, turn: Duration) -> io::Result<Floor> {
    let mut file: File = tempfile::tempfile_in(directory)?;
    let entries = vec![7u8; 100 * batch];
    let (mut cpu_us, mut wall_us) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (start, cpu, mut count) = (Instant::now(), process_cpu(), 0usize);
        while start.elapsed() < turn {
            file.write_all(&entries)?;
            file.sync_data()?;
            count += batch;
        }
        wall_us.push(start.elapsed().as_secs_f64() * 1e6 / count as f64);
        cpu_us.push(process_cpu().saturating_sub(cpu).as_secs_f64() * 1e6 / count as f64);
    }
    let wall = spread(&wall_us).expect("there are turns");
    let cpu = spread(&cpu_us).expect("there are turns");
    Ok(Floor {
        key: format!("fdatasync_{batch}"),
        name: format!("an append of 100 bytes, fdatasync every {batch}"),
        cpu_us: cpu.median,
        wall_us: Some(wall.median),
        low_high_us: (cpu.low, cpu.high),
    })
}

/// User and system time of this process so far.
fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let nanos = u32::try_from(time.tv_nsec).expect("nanoseconds are below a second");
    Duration::new(time.tv_sec.unsigned_abs(), nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_costs_something_and_is_named_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let floors = measure(Duration::from_millis(5), directory.path()).expect("measured");
        assert!(floors.lines.iter().all(|line| line.cpu_us > 0.0), "{floors:?}");
        let mut keys: Vec<_> = floors.lines.iter().map(|line| &line.key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), floors.lines.len());
        assert!(keys.iter().any(|key| *key == "train_16_64"));
    }
}
