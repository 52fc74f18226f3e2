//! Measures what this machine's kernel charges for a datagram, the floor under every figure of ours.
//!
//! `cargo run --release -p r2p2 --example udp_floor` prints µs of CPU a delivery, sender and receiver
//! together (on loopback, in one thread, so that no wake-up is in it), and then the round trip of one
//! datagram between two threads, blocked and spinning.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use r2p2::{Link, Outbox, UdpConfig, UdpLink};
use rustix::time::{ClockId, clock_gettime};

const LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 82, 50, 2);
/// How long each line is measured; the median of this many turns is printed.
const TURN: Duration = Duration::from_millis(150);
const TURNS: usize = 5;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("udp_floor: {error}");
            ExitCode::from(2)
        }
    }
}

fn measure() -> Result<(), Box<dyn std::error::Error>> {
    let mut sender = UdpLink::bind(&UdpConfig::new(LOOPBACK))?;
    let mut one = vec![UdpLink::bind(&UdpConfig::new(LOOPBACK))?];
    println!("µs of CPU a delivery, sender + receiver");
    println!("{:44} {:>7} {:>7} {:>7}", "bytes a datagram", 24, 64, 1464);
    for train in [1, 4, 16, 64] {
        let to = [one[0].local_address()?];
        let name = match train {
            1 => "one datagram".to_owned(),
            _ => format!("a train of {train} (GSO, GRO)"),
        };
        line(&name, &mut sender, &mut one, &to, train)?;
    }
    let mut three = Vec::new();
    for _ in 0..3 {
        three.push(UdpLink::bind(&UdpConfig::new(LOOPBACK))?);
    }
    let to: Vec<_> = three.iter().map(UdpLink::local_address).collect::<Result<_, _>>()?;
    line("3 unicasts", &mut sender, &mut three, &to, 1)?;
    line("3 unicasts of a train of 16", &mut sender, &mut three, &to, 16)?;

    let group = SocketAddrV4::new(GROUP, sender.local_address()?.port());
    let config = UdpConfig { group: Some(group), ..UdpConfig::new(LOOPBACK) };
    let members: Result<Vec<_>, _> = (0..3).map(|_| UdpLink::bind(&config)).collect();
    match members {
        Ok(mut members) => {
            let to = [group];
            line("a multicast to 3", &mut sender, &mut members, &to, 1)?;
            line("a multicast to 3 of a train of 16", &mut sender, &mut members, &to, 16)?;
        }
        Err(error) => println!("no multicast here: {error}"),
    }

    println!("\nround trip of 64 bytes between two threads, µs");
    for (name, spin) in
        [("blocked", Duration::ZERO), ("spinning, yielding", Duration::from_millis(1))]
    {
        let (p50, p99) = round_trips(spin)?;
        println!("{name:44} p50 {p50:.1} p99 {p99:.1}");
    }
    Ok(())
}

/// Sends trains of `train` datagrams to each of `to`, and receives them at `receivers`.
fn line(
    name: &str,
    sender: &mut UdpLink,
    receivers: &mut [UdpLink],
    to: &[SocketAddrV4],
    train: usize,
) -> io::Result<()> {
    print!("{name:44}");
    for size in [24, 64, 1464] {
        if train * size > r2p2::BATCH_BYTES_MAX {
            print!(" {:>7}", "-");
            continue;
        }
        let mut turns = [0.0; TURNS];
        for turn in &mut turns {
            *turn = deliveries(sender, receivers, to, train, size)?;
        }
        turns.sort_by(f64::total_cmp);
        print!(" {:7.2}", turns[TURNS / 2]);
    }
    println!();
    Ok(())
}

fn deliveries(
    sender: &mut UdpLink,
    receivers: &mut [UdpLink],
    to: &[SocketAddrV4],
    train: usize,
    size: usize,
) -> io::Result<f64> {
    let payload = vec![7; size];
    let mut outbox = Outbox::new();
    let mut delivered = 0;
    let start = Instant::now();
    let cpu = cpu_time();
    while start.elapsed() < TURN {
        for &to in to {
            for _ in 0..train {
                outbox.push(to, |buffer| buffer.extend_from_slice(&payload));
            }
        }
        sender.send(&mut outbox)?;
        for receiver in &mut *receivers {
            while receiver.receive(&mut |_, bytes| delivered += usize::from(bytes.len() == size))?
                > 0
            {}
        }
    }
    let spent = cpu_time().saturating_sub(cpu);
    Ok(spent.as_secs_f64() * 1e6 / delivered as f64)
}

/// CPU time of this process, user and system.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).expect("nanoseconds are below a second"),
    )
}

fn round_trips(spin: Duration) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    const COUNT: usize = 20_000;
    let mut client = UdpLink::bind(&UdpConfig::new(LOOPBACK))?;
    let mut server = UdpLink::bind(&UdpConfig::new(LOOPBACK))?;
    let address = server.local_address()?;
    let echo = thread::spawn(move || -> io::Result<()> {
        let mut outbox = Outbox::new();
        let mut echoed = 0;
        while echoed < COUNT {
            server.wait(Some(Duration::from_secs(1)), spin)?;
            while server.receive(&mut |from, bytes| {
                echoed += 1;
                outbox.push(from, |buffer| buffer.extend_from_slice(bytes));
            })? > 0
            {
                server.send(&mut outbox)?;
            }
        }
        Ok(())
    });
    let mut outbox = Outbox::new();
    let mut micros = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let start = Instant::now();
        outbox.push(address, |buffer| buffer.extend_from_slice(&[7; 64]));
        client.send(&mut outbox)?;
        while client.receive(&mut |_, _| {})? == 0 {
            client.wait(Some(Duration::from_secs(1)), spin)?;
        }
        micros.push(start.elapsed().as_secs_f64() * 1e6);
    }
    echo.join().map_err(|_| "the echo thread panicked")??;
    micros.sort_by(f64::total_cmp);
    Ok((micros[COUNT / 2], micros[COUNT * 99 / 100]))
}
