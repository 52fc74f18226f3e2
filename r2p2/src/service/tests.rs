use std::{
    collections::HashMap,
    future::{Future, pending},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::UdpSocket,
    sync::{Barrier, Semaphore, mpsc, oneshot},
    task::{JoinHandle, JoinSet},
};

use super::*;
use crate::{CheckSeed, DATAGRAM_BYTES_MAX, Header, MessageType, Packet, Policy};

const ANY_PORT: &str = "127.0.0.1:0";
/// Long enough for any machine; a test that needs it fails.
const PATIENCE: Duration = Duration::from_mins(2);

fn patient() -> CallSettings {
    CallSettings { timeout: PATIENCE, ..CallSettings::default() }
}

/// Starts a server, and connects a client to it.
async fn pair<H, F, R>(server: Server, handler: H) -> (Client, JoinHandle<()>)
where
    H: Fn(Bytes) -> F + Send + 'static,
    F: Future<Output = R> + Send + 'static,
    R: Into<Bytes> + 'static,
{
    let address = server.local_address().unwrap();
    let task = tokio::spawn(async move { server.serve(handler).await.unwrap() });
    let client = Client::connect_with(address, patient()).await.unwrap();
    (client, task)
}

async fn bind() -> Server {
    Server::bind(ANY_PORT).await.unwrap()
}

fn pattern(size: usize) -> Bytes {
    (0..size).map(|i| b'a' + (i % 26) as u8).collect()
}

#[tokio::test]
async fn a_thousand_calls_at_a_time_get_the_replies_they_asked_for() {
    let (client, _) = pair(bind().await, |request| async move { request }).await;
    let mut calls = JoinSet::new();
    for n in 0..1000_u32 {
        let client = client.clone();
        calls.spawn(async move {
            let request = Bytes::copy_from_slice(&n.to_be_bytes());
            assert_eq!(client.call(request.clone()).await, Ok(request));
        });
    }
    assert_eq!(calls.join_all().await.len(), 1000);
}

#[tokio::test]
async fn large_messages_pass_both_ways_with_and_without_options() {
    let (client, _) = pair(bind().await, |request| async move { request }).await;
    let request = pattern(1 << 20);
    assert_eq!(client.call(request.clone()).await, Ok(request));

    let server = bind().await;
    let settings = CallSettings { original_server: true, policy: Policy::LoadBalance, ..patient() };
    let address = server.local_address().unwrap();
    let client = Client::connect_with(address, settings).await.unwrap();
    tokio::spawn(server.serve(|request| async move { request }));
    for size in [0, 1464, 1465, 20_000] {
        let request = pattern(size);
        assert_eq!(client.call(request.clone()).await, Ok(request));
    }
}

#[tokio::test]
async fn handlers_run_at_the_same_time() {
    let barrier = Arc::new(Barrier::new(8));
    let handler = move |request: Bytes| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            request
        }
    };
    let (client, _) = pair(bind().await, handler).await;
    let calls: JoinSet<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            async move { client.call("x").await }
        })
        .collect();
    // None would end alone.
    assert_eq!(calls.join_all().await, vec![Ok(Bytes::from("x")); 8]);
}

#[tokio::test]
async fn beyond_the_bound_a_request_is_dropped_and_not_executed() {
    let executed = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let (entered, mut entries) = mpsc::unbounded_channel();
    let handler = {
        let (executed, gate) = (Arc::clone(&executed), Arc::clone(&gate));
        move |request: Bytes| {
            executed.fetch_add(1, Ordering::Relaxed);
            entered.send(()).unwrap();
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire_owned().await.unwrap().forget();
                request
            }
        }
    };
    let (client, _) = pair(bind().await.with_concurrency(2), handler).await;
    let admitted: JoinSet<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            async move { client.call("in").await }
        })
        .collect();
    for _ in 0..2 {
        entries.recv().await.unwrap();
    }
    let error = client.call("too much").await.unwrap_err();
    assert_eq!(error, CallError::NotAdmitted);
    assert_eq!(error.outcome(), Outcome::NotExecuted);
    gate.add_permits(2);
    assert_eq!(admitted.join_all().await, vec![Ok(Bytes::from("in")); 2]);
    assert_eq!(executed.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_replicated_request_is_dropped() {
    let server = bind().await;
    let settings = CallSettings { policy: Policy::Replicated, ..patient() };
    let address = server.local_address().unwrap();
    let client = Client::connect_with(address, settings).await.unwrap();
    tokio::spawn(server.serve(|request| async move { request }));
    assert_eq!(client.call("x").await, Err(CallError::NotAdmitted));
}

#[tokio::test]
async fn no_reply_in_time_is_an_unknown_outcome() {
    let silent = UdpSocket::bind(ANY_PORT).await.unwrap();
    let timeout = Duration::from_millis(30);
    let settings = CallSettings { timeout, ..CallSettings::default() };
    let address = silent.local_addr().unwrap();
    let client = Client::connect_with(address, settings).await.unwrap();
    let error = client.call("x").await.unwrap_err();
    assert_eq!(error, CallError::TimedOut(timeout));
    assert_eq!(error.outcome(), Outcome::Unknown);
    // The request was sent once: it is not for the client to execute it twice.
    let mut datagram = [0; 100];
    silent.try_recv_from(&mut datagram).unwrap();
    assert!(silent.try_recv_from(&mut datagram).is_err());
}

#[tokio::test]
async fn with_retries_a_lost_request_is_sent_again_and_a_later_drop_is_not_certain() {
    let server = UdpSocket::bind(ANY_PORT).await.unwrap();
    let settings = CallSettings { retry_after: Some(Duration::from_millis(20)), ..patient() };
    let address = server.local_addr().unwrap();
    let client = Client::connect_with(address, settings).await.unwrap();
    let call = tokio::spawn(async move { client.call("x").await });
    let mut datagram = [0; 100];
    server.recv_from(&mut datagram).await.unwrap();
    let (length, from) = server.recv_from(&mut datagram).await.unwrap();
    let request = Packet::parse(&datagram[..length]).unwrap();
    let answer = |message_type, body| {
        let id = request.header.request_id;
        let mut out = Vec::new();
        Packet::new(Header::single(message_type, Policy::Fixed, id), body)
            .encode(CheckSeed::NONE, &mut out);
        out
    };
    // The first copy may be executed all the same, and here it was.
    for bytes in [answer(MessageType::Drop, b"DROP"), answer(MessageType::Response, b"done")] {
        server.send_to(&bytes, from).await.unwrap();
    }
    assert_eq!(call.await.unwrap(), Ok(Bytes::from("done")));
}

#[tokio::test]
async fn calls_given_up_leave_room_for_others() {
    let (entered, mut entries) = mpsc::unbounded_channel();
    let handler = move |request: Bytes| {
        let entered = entered.clone();
        async move {
            if request == "for ever" {
                entered.send(()).unwrap();
                pending::<()>().await;
            }
            request
        }
    };
    let server = bind().await;
    let address = server.local_address().unwrap();
    tokio::spawn(server.serve(handler));
    let client = Client::with_outstanding(address, patient(), 4).unwrap();
    for _ in 0..10 {
        let mut hopeless: JoinSet<_> = (0..4)
            .map(|_| {
                let client = client.clone();
                async move { client.call("for ever").await }
            })
            .collect();
        for _ in 0..4 {
            entries.recv().await.unwrap();
        }
        hopeless.shutdown().await;
    }
    assert_eq!(client.call("x").await, Ok(Bytes::from("x")));
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_says_so() {
    let (client, _) = pair(bind().await, |request| async move { request }).await;
    let error = client.call(vec![0; 100 << 20]).await.unwrap_err();
    assert!(matches!(error, CallError::Invalid(_)), "{error}");
    assert_eq!(error.outcome(), Outcome::NotExecuted);
    assert_eq!(client.call("x").await, Ok(Bytes::from("x")));
}

#[tokio::test]
async fn a_handler_that_panics_costs_its_reply_alone() {
    let handler = |request: Bytes| async move {
        assert_ne!(request, "at once", "as the test wants it");
        tokio::task::yield_now().await;
        assert_ne!(request, "later", "as the test wants it");
        request
    };
    let server = bind().await;
    let address = server.local_address().unwrap();
    tokio::spawn(server.serve(handler));
    let settings = CallSettings { timeout: Duration::from_millis(50), ..CallSettings::default() };
    let client = Client::connect_with(address, settings).await.unwrap();
    for request in ["at once", "later"] {
        let error = client.call(request).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown);
    }
    let client = Client::connect_with(address, patient()).await.unwrap();
    assert_eq!(client.call("x").await, Ok(Bytes::from("x")));
}

#[tokio::test]
async fn a_server_that_stops_answers_what_it_has_begun() {
    let server = bind().await;
    let address = server.local_address().unwrap();
    let (entered, mut entries) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let handler = {
        let gate = Arc::clone(&gate);
        move |_: Bytes| {
            entered.send(()).unwrap();
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire_owned().await.unwrap().forget();
                // So large that the client has to fetch most of it.
                pattern(1 << 20)
            }
        }
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let stop_signal = async move { stopped.await.unwrap() };
    let serving = tokio::spawn(server.serve_until(handler, stop_signal));
    let client = Client::connect_with(address, patient()).await.unwrap();
    let begun = tokio::spawn({
        let client = client.clone();
        async move { client.call("x").await }
    });
    entries.recv().await.unwrap();
    stop.send(()).unwrap();
    assert_eq!(client.call("late").await, Err(CallError::NotAdmitted));
    gate.add_permits(1);
    assert_eq!(begun.await.unwrap(), Ok(pattern(1 << 20)));
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
    // The address is free again.
    Server::bind(address).await.unwrap();
}

/// Plays the original client of every capture to a server, over sockets.
#[tokio::test]
async fn a_server_says_to_the_original_client_what_the_original_server_said() {
    let captures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/captures");
    let mut played = 0;
    for entry in std::fs::read_dir(captures).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "hex") {
            continue;
        }
        let lines: Vec<_> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| {
                let (who, hex) = line.split_once(' ').unwrap();
                let digits = hex.as_bytes().chunks(2);
                let byte = |two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16);
                (who == "client>server", digits.map(|two| byte(two).unwrap()).collect())
            })
            .collect();
        play(&lines).await;
        played += 1;
    }
    assert_eq!(played, 8);
}

/// Says the client's lines, and expects the server's.
async fn play(lines: &[(bool, Vec<u8>)]) {
    let mut reply_sizes: HashMap<u16, usize> = HashMap::new();
    for (_, bytes) in lines.iter().filter(|(from_client, _)| !from_client) {
        let packet = Packet::parse(bytes).unwrap();
        if packet.header.message_type == MessageType::Response {
            *reply_sizes.entry(packet.header.request_id).or_default() += packet.body.len();
        }
    }
    let (request_id, reply_size) = reply_sizes.iter().next().unwrap();
    assert!(reply_sizes.values().all(|size| size == reply_size), "{request_id}");
    let reply = pattern(*reply_size);
    let server = bind().await;
    let address = server.local_address().unwrap();
    let serving = tokio::spawn(server.serve(move |request| {
        // An echo and a service of fixed replies differ only where the sizes do.
        let reply = if request.len() == reply.len() { request } else { reply.clone() };
        async move { reply }
    }));
    // The original sends each request from a socket of its own.
    let mut sockets = HashMap::new();
    let mut datagram = [0; DATAGRAM_BYTES_MAX + 1];
    for (from_client, bytes) in lines {
        let request_id = Packet::parse(bytes).unwrap().header.request_id;
        if *from_client {
            let socket = UdpSocket::bind(ANY_PORT).await.unwrap();
            let socket = sockets.entry(request_id).or_insert(socket);
            socket.send_to(bytes, address).await.unwrap();
        } else {
            let answer = sockets[&request_id].recv(&mut datagram);
            let length = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
            assert_eq!(&datagram[..length], bytes);
        }
    }
    serving.abort();
}

#[tokio::test]
async fn a_name_is_resolved_or_refused_with_its_reason() {
    let server = Server::bind("localhost:0").await.unwrap();
    assert!(server.local_address().unwrap().ip().is_loopback());
    let error = Server::bind("[::1]:9").await.unwrap_err();
    assert!(matches!(error, BindError::Unresolved(_)), "{error}");
}
