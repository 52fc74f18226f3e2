//! Any bytes as a command, a query, a response and a snapshot of the services.

#![no_main]

use hovercraft::{Context, StateMachine};
use hovercraft_apps::{
    kv::{self, KvService},
    synthetic::SyntheticRequest,
};
use libfuzzer_sys::fuzz_target;

const CONTEXT: Context = Context { index: 1, time_us: 1, seed: 1 };

fuzz_target!(|bytes: &[u8]| {
    let mut service = KvService::default();
    let mut reply = Vec::new();
    service.execute(&CONTEXT, bytes, &mut reply);
    service.query(&CONTEXT, bytes, &mut reply);
    let _ = service.restore(&mut &bytes[..]);
    let _ = kv::decode_response(bytes);
    let _ = SyntheticRequest::decode(bytes);
});
