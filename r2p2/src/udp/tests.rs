use std::{collections::BTreeMap, net::UdpSocket, sync::mpsc};

use super::*;
use crate::AsyncLink;

const LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
/// Long enough for any machine; a test that needs it fails.
const PATIENCE: Duration = Duration::from_mins(2);

fn link() -> UdpLink {
    UdpLink::bind(&UdpConfig::new(LOOPBACK)).unwrap()
}

fn address(link: &UdpLink) -> SocketAddrV4 {
    link.local_address().unwrap()
}

/// Receives until `count` datagrams are there, or patience ends.
fn receive(link: &mut UdpLink, count: usize) -> Vec<(SocketAddrV4, Vec<u8>)> {
    let start = Instant::now();
    let mut datagrams = Vec::new();
    while datagrams.len() < count {
        let left = PATIENCE.saturating_sub(start.elapsed());
        assert!(!left.is_zero(), "{} of {count} came", datagrams.len());
        let received =
            link.receive(&mut |from, bytes| datagrams.push((from, bytes.to_vec()))).unwrap();
        if received == 0 {
            link.wait(Some(left), Duration::ZERO).unwrap();
        }
    }
    datagrams
}

/// What waits at this moment; on loopback, all that was sent.
fn receive_now(link: &mut UdpLink) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    link.wait(Some(Duration::ZERO), Duration::ZERO).unwrap();
    while link.receive(&mut |_, bytes| datagrams.push(bytes.to_vec())).unwrap() > 0 {}
    datagrams
}

fn datagram(number: usize, size: usize) -> Vec<u8> {
    (0..size).map(|i| (number * 31 + i) as u8).collect()
}

/// Three members of one group on loopback, or nothing where the kernel has no multicast.
fn members(port_of: &UdpLink) -> Option<Vec<UdpLink>> {
    let group = SocketAddrV4::new(Ipv4Addr::new(239, 82, 50, 1), address(port_of).port());
    let config = UdpConfig { group: Some(group), ..UdpConfig::new(LOOPBACK) };
    let bound: Result<Vec<_>, _> = (0..3).map(|_| UdpLink::bind(&config)).collect();
    match bound {
        Ok(members) => Some(members),
        Err(error @ BindError::Join { .. }) => {
            eprintln!("skipped, no multicast here: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn group_of(members: &[UdpLink]) -> SocketAddrV4 {
    let member = members[0].member.as_ref().unwrap();
    member.local_address().unwrap()
}

#[test]
fn mixed_sizes_and_destinations_arrive_in_order_per_destination() {
    let mut sender = link();
    let mut receivers = [link(), link(), link()];
    let mut expected: BTreeMap<SocketAddrV4, Vec<Vec<u8>>> = BTreeMap::new();
    let mut outbox = Outbox::new();
    for number in 0..200 {
        let size = [1, 24, 24, 24, 1472, 24, 8, 1472][number * 7 % 8];
        let to = address(&receivers[number * number % 3]);
        let bytes = datagram(number, size);
        outbox.push(to, |buffer| buffer.extend_from_slice(&bytes));
        expected.entry(to).or_default().push(bytes);
    }
    sender.send(&mut outbox).unwrap();
    assert!(outbox.is_empty());
    for receiver in &mut receivers {
        let expected = expected.remove(&address(receiver)).unwrap_or_default();
        let got = receive(receiver, expected.len());
        let (from, got): (Vec<_>, Vec<_>) = got.into_iter().unzip();
        assert_eq!(got, expected);
        assert!(from.iter().all(|&from| from == address(&sender)));
        assert_eq!(receive_now(receiver), Vec::<Vec<u8>>::new());
    }
    let statistics = sender.statistics();
    assert_eq!(statistics.datagrams_out, 200);
    assert_eq!(statistics.lost_full + statistics.lost_refused, 0);
}

#[test]
fn many_equal_datagrams_take_few_calls_or_the_kernel_has_no_offload() {
    let mut sender = link();
    let mut receiver = link();
    let mut outbox = Outbox::new();
    for number in 0..400 {
        outbox.push(address(&receiver), |buffer| {
            buffer.extend_from_slice(&datagram(number, 40));
        });
    }
    let offload = sender.segmentation;
    sender.send(&mut outbox).unwrap();
    let got = receive(&mut receiver, 400);
    for (number, (_, bytes)) in got.iter().enumerate() {
        assert_eq!(bytes, &datagram(number, 40));
    }
    assert_eq!(sender.statistics().bytes_out, 16_000);
    assert_eq!(receiver.statistics().bytes_in, 16_000);
    if offload {
        assert_eq!(sender.statistics().calls_out, 7, "400 in trains of 64");
    }
}

#[test]
fn without_segmentation_the_same_datagrams_go_one_by_one() {
    let mut sender = link();
    sender.segmentation = false;
    let mut receiver = link();
    let mut outbox = Outbox::new();
    let sent: Vec<_> = (0..100).map(|number| datagram(number, 700)).collect();
    for bytes in &sent {
        outbox.push(address(&receiver), |buffer| buffer.extend_from_slice(bytes));
    }
    sender.send(&mut outbox).unwrap();
    let got = receive(&mut receiver, 100).into_iter();
    assert_eq!(got.map(|(_, bytes)| bytes).collect::<Vec<_>>(), sent);
    assert_eq!(sender.statistics().calls_out, 100);
}

#[test]
fn a_destination_that_the_kernel_refuses_costs_its_datagrams_and_nothing_else() {
    let mut sender = link();
    let mut receiver = link();
    let before = sender.segmentation;
    let mut outbox = Outbox::new();
    // Port 0 is refused with the error that also means that there is no segmentation.
    for to in [LOOPBACK, address(&receiver)] {
        for _ in 0..10 {
            outbox.push(to, |buffer| buffer.extend_from_slice(&[7; 30]));
        }
    }
    sender.send(&mut outbox).unwrap();
    assert_eq!(receive(&mut receiver, 10).len(), 10);
    assert_eq!(sender.segmentation, before);
    assert_eq!(sender.statistics().lost_refused, 10);
    assert_eq!(sender.statistics().datagrams_out, 10);
}

#[test]
fn closed_peers_are_no_errors() {
    let mut sender = link();
    let mut alive = link();
    let gone = address(&link());
    let mut outbox = Outbox::new();
    for _ in 0..20 {
        for to in [gone, address(&alive)] {
            outbox.push(to, |buffer| buffer.push(1));
        }
        sender.send(&mut outbox).unwrap();
        assert_eq!(receive_now(&mut sender), Vec::<Vec<u8>>::new());
    }
    assert_eq!(receive(&mut alive, 20).len(), 20);
}

#[test]
fn an_empty_datagram_is_handed_over_as_one() {
    let plain = UdpSocket::bind(LOOPBACK).unwrap();
    let mut receiver = link();
    plain.send_to(&[], address(&receiver)).unwrap();
    plain.send_to(&[5], address(&receiver)).unwrap();
    let got = receive(&mut receiver, 2).into_iter();
    assert_eq!(got.map(|(_, bytes)| bytes).collect::<Vec<_>>(), [vec![], vec![5]]);
}

#[test]
fn a_multicast_datagram_reaches_every_member_once() {
    let mut sender = link();
    let Some(mut members) = members(&sender) else {
        return;
    };
    let group = group_of(&members);
    let mut outbox = Outbox::new();
    let sent: Vec<_> = (0..200).map(|number| datagram(number, 24)).collect();
    for bytes in &sent {
        outbox.push(group, |buffer| buffer.extend_from_slice(bytes));
    }
    sender.send(&mut outbox).unwrap();
    for member in &mut members {
        let got = receive(member, sent.len());
        assert!(got.iter().all(|&(from, _)| from == address(&sender)));
        assert_eq!(got.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), sent);
        assert_eq!(receive_now(member), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn a_member_reads_the_group_before_what_is_for_it_alone() {
    let mut sender = link();
    let Some(mut members) = members(&sender) else {
        return;
    };
    let group = group_of(&members);
    let member = &mut members[1];
    let mut outbox = Outbox::new();
    outbox.push(address(member), |buffer| buffer.extend_from_slice(b"order"));
    outbox.push(group, |buffer| buffer.extend_from_slice(b"body"));
    sender.send(&mut outbox).unwrap();
    let got: Vec<_> = receive(member, 2).into_iter().map(|(_, b)| b).collect();
    assert_eq!(got, [b"body".to_vec(), b"order".to_vec()]);
}

#[test]
fn a_group_that_does_not_wake_is_read_at_the_next_turn() {
    let mut sender = link();
    let Some(mut members) = members(&sender) else {
        return;
    };
    let group = group_of(&members);
    let member = &mut members[2];
    member.set_group_wakes(false);
    assert_eq!(receive_now(member), Vec::<Vec<u8>>::new());
    let mut outbox = Outbox::new();
    outbox.push(group, |buffer| buffer.extend_from_slice(b"body"));
    sender.send(&mut outbox).unwrap();
    // The wait sees nothing and ends by its timeout alone; the turn after it reads the group.
    let timeout = Duration::from_millis(20);
    let start = Instant::now();
    member.wait(Some(timeout), Duration::ZERO).unwrap();
    assert!(start.elapsed() >= timeout);
    let mut got = Vec::new();
    member.receive(&mut |_, bytes| got.push(bytes.to_vec())).unwrap();
    assert_eq!(got, [b"body".to_vec()]);
}

#[test]
fn a_waker_ends_a_wait_for_ever_blocked_or_spinning() {
    for spin in [Duration::ZERO, PATIENCE] {
        let mut link = link();
        let waker = link.waker();
        let (turns, turn) = mpsc::channel();
        let thread = thread::spawn(move || {
            for n in 0..200 {
                link.wait(None, spin).unwrap();
                if turns.send(n).is_err() {
                    return;
                }
            }
        });
        for n in 0..200 {
            waker.wake_by_ref();
            // A wait may end without a cause, so that turns can only be ahead of the calls.
            assert_eq!(turn.recv_timeout(PATIENCE), Ok(n));
        }
        thread.join().unwrap();
    }
}

#[test]
fn a_wait_ends_by_its_timeout() {
    let mut link = link();
    let timeout = Duration::from_millis(5);
    for spin in [Duration::ZERO, Duration::from_millis(1), PATIENCE] {
        let start = Instant::now();
        link.wait(Some(timeout), spin).unwrap();
        assert!(start.elapsed() >= timeout);
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn a_config_that_cannot_work_is_refused_with_its_reason() {
    let taken = link();
    let error = UdpLink::bind(&UdpConfig::new(address(&taken))).unwrap_err();
    assert!(matches!(error, BindError::Address { address: a, .. } if a == address(&taken)));
    let unicast = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 9000);
    let config = UdpConfig { group: Some(unicast), ..UdpConfig::new(LOOPBACK) };
    let error = UdpLink::bind(&config).unwrap_err();
    assert_eq!(error.to_string(), "the group 10.0.0.1:9000 is not a multicast address");
}

#[test]
fn buffers_are_enlarged_beyond_the_default() {
    let small = UdpLink::bind(&UdpConfig { buffer_bytes: 65_536, ..UdpConfig::new(LOOPBACK) });
    assert!(link().buffer_bytes().unwrap() > small.unwrap().buffer_bytes().unwrap());
}

#[tokio::test]
async fn a_task_receives_whatever_comes_between_its_reads() {
    let mut receiver = AsyncUdpLink::bind(&UdpConfig::new(LOOPBACK)).unwrap();
    let to = receiver.local_address().unwrap();
    let sender = tokio::task::spawn_blocking(move || {
        let mut sender = link();
        let mut outbox = Outbox::new();
        for number in 0..400_u32 {
            outbox.push(to, |buffer| buffer.extend_from_slice(&number.to_be_bytes()));
            sender.send(&mut outbox).unwrap();
        }
    });
    let mut got = Vec::new();
    let all = async {
        while got.len() < 400 {
            receiver.readable().await.unwrap();
            receiver.receive(&mut |_, bytes| got.push(bytes.to_vec())).unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    sender.await.unwrap();
    assert!(got.iter().enumerate().all(|(n, b)| b[..] == (n as u32).to_be_bytes()));
}
