//! What the modelled machines cost: taken from measurements, or assumed and printed.

use serde::{Deserialize, Serialize};

/// A machine and the network between machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Where the figures are from.
    pub source: String,
    /// Processor time of the network thread to receive a datagram, in µs.
    pub datagram_in_us: f64,
    /// To send one, in µs.
    pub datagram_out_us: f64,
    /// Of the core and the transport for a request, on every replica that receives it, in µs.
    pub request_us: f64,
    /// For an entry in an append-entries message, sent or received, in µs.
    pub entry_us: f64,
    /// For each byte of a message that is copied, in ns.
    pub byte_ns: f64,
    /// A network card and its link, in gigabits a second, each way.
    pub link_gbit_per_s: f64,
    /// From one card to another through the switch, in µs.
    pub wire_us: f64,
    /// What a turn costs beside what it does, in µs.
    pub turn_us: f64,
    /// The service has a core of its own; otherwise it shares the network thread's.
    pub service_thread: bool,
}

impl Costs {
    /// Assumed for the machines of the paper: kernel bypass on 10 Gbit/s, so that a server without
    /// replication serves a million requests of 1 µs a second, and no more.
    pub fn assumed() -> Self {
        Self {
            source: "assumed: kernel bypass, 10 Gbit/s, a core for the network and one for the \
                     service (the set-up of the paper)"
                .to_owned(),
            datagram_in_us: 0.08,
            datagram_out_us: 0.08,
            request_us: 0.2,
            entry_us: 0.05,
            byte_ns: 0.1,
            link_gbit_per_s: 10.0,
            wire_us: 2.0,
            turn_us: 0.2,
            service_thread: true,
        }
    }

    /// Of this machine: the price of a datagram in a train from what `floor` wrote, and what a
    /// request costs beside its datagrams from what `run` wrote of an unreplicated server.
    pub fn measured(floor: &serde_json::Value, run: &serde_json::Value) -> Result<Self, String> {
        let datagram_us = floor["lines"]
            .as_array()
            .and_then(|lines| lines.iter().find(|line| line["key"] == "train_16_64"))
            .and_then(|line| line["cpu_us"].as_f64())
            .ok_or(
                "it has no line train_16_64; is it what `hovercraft-bench floor --json` wrote?",
            )?;
        let field = |value: &serde_json::Value, name: &str| {
            value.as_f64().ok_or(format!("it has no {name}; is it what `run --json` wrote?"))
        };
        if run["mode"] != "unreplicated" {
            return Err("it is not of the mode unreplicated, whose cost a request is needed".into());
        }
        let cpu = field(&run["cpu_us_per_op"]["leader"], "cpu_us_per_op.leader")?;
        let datagrams = field(&run["leader"]["datagrams_in_per_op"], "leader.datagrams_in_per_op")?
            + field(&run["leader"]["datagrams_out_per_op"], "leader.datagrams_out_per_op")?;
        let service_us = 1.0;
        let request_us = (cpu - datagrams * datagram_us / 2.0 - service_us).max(0.05);
        Ok(Self {
            source:
                "measured: datagrams by `floor`, requests by `run` in mode unreplicated; links \
                     of 10 Gbit/s assumed"
                    .to_owned(),
            datagram_in_us: datagram_us / 2.0,
            datagram_out_us: datagram_us / 2.0,
            request_us,
            ..Self::assumed()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn measured_costs_leave_the_service_and_the_datagrams_out_of_a_request() {
        let floor = json!({ "lines": [{ "key": "train_16_64", "cpu_us": 0.6 }] });
        let run = json!({
            "mode": "unreplicated",
            "cpu_us_per_op": { "leader": 2.4 },
            "leader": { "datagrams_in_per_op": 1.0, "datagrams_out_per_op": 1.0 },
        });
        let costs = Costs::measured(&floor, &run).expect("complete");
        assert!((costs.request_us - 0.8).abs() < 1e-9, "{costs:?}");
        assert!(Costs::measured(&run, &floor).is_err());
    }
}
