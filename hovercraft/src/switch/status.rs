//! What a switch says about itself.

use r2p2::Router;
use rkyv::{Archive, Deserialize, Serialize, with::Map};

use super::{AdmissionCounters, AggregatorCounters, AggregatorStatus, SwitchAdmission};
use crate::{admin::NetworkStatus, counts::Named};

/// How a switch is; what it does not do is none.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// Which requests it lets pass (P23).
    pub admission: Option<AdmissionStatus>,
    /// What it has passed on to the replicas (P3).
    #[rkyv(with = Map<Named>)]
    pub fan_out: Option<FanOutCounters>,
    /// What it counts for a leader (P26).
    pub aggregator: Option<(AggregatorStatus, AggregatorCounters)>,
    /// The workers of an unreplicated service.
    pub router: Option<RouterStatus>,
    /// What its sockets have done.
    #[rkyv(with = Named)]
    pub network: NetworkStatus,
}

/// Admission by a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct AdmissionStatus {
    /// Requests in the system.
    pub admitted: u64,
    /// How many the SLO policy lets into the system; without it the configured limit (P25).
    pub slo_limit: u64,
    /// What happened since the start.
    #[rkyv(with = Named)]
    pub counters: AdmissionCounters,
}

impl AdmissionStatus {
    pub(super) fn of(admission: &SwitchAdmission) -> Self {
        let (admitted, slo_limit) = (admission.len() as u64, admission.slo_limit() as u64);
        Self { admitted, slo_limit, counters: *admission.counters() }
    }
}

crate::counts::counters! {
    /// Replicated requests on their way through a switch.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    #[expect(missing_docs, reason = "the names say what is counted")]
    pub struct FanOutCounters {
        pub packets_in: u64,
        pub packets_out: u64,
        /// Not a request for any of its roles.
        pub refused: u64,
    }
}

/// A router and its workers.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say what is counted")]
pub struct RouterStatus {
    /// Requests that wait for a worker.
    pub waiting: u64,
    pub requests: u64,
    pub retries: u64,
    pub waited: u64,
    pub dropped: u64,
    pub answered: u64,
    pub healed: u64,
    pub workers_lost: u64,
    /// Each worker: its address, its requests, and whether it gives signs of life.
    pub workers: Vec<(core::net::SocketAddrV4, u32, bool)>,
}

impl RouterStatus {
    pub(super) fn of(router: &Router) -> Self {
        let counters = router.counters();
        Self {
            waiting: router.waiting_count() as u64,
            requests: counters.requests,
            retries: counters.retries,
            waited: counters.waited,
            dropped: counters.dropped,
            answered: counters.answered,
            healed: counters.healed,
            workers_lost: counters.workers_lost,
            workers: router.workers().collect(),
        }
    }
}
