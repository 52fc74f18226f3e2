//! How a switch is, for people and as JSON.

use std::{fmt::Write, net::SocketAddrV4};

use hovercraft::{admin::AdminError, switch::SwitchStatus};
use serde_json::{Value, json};

/// What came of asking a switch.
pub(super) type Asked = (SocketAddrV4, Result<SwitchStatus, AdminError>);

pub(super) fn to_json((address, answer): &Asked) -> Value {
    let status = match answer {
        Ok(status) => status,
        Err(error) => return json!({ "address": address, "error": error.to_string() }),
    };
    let admission = status.admission.as_ref().map(|admission| {
        let counters = &admission.counters;
        json!({
            "in_system": admission.admitted,
            "slo_limit": admission.slo_limit,
            "admitted": counters.admitted,
            "retries": counters.retries,
            "answered": counters.answered,
            "feedback_unknown": counters.feedback_unknown,
            "healed": counters.healed,
            "refused_full": counters.refused_full,
            "refused_unfair": counters.refused_unfair,
            "refused_slo": counters.refused_slo,
        })
    });
    let fan_out = status.fan_out.as_ref().map(|fan_out| {
        json!({
            "packets_in": fan_out.packets_in,
            "packets_out": fan_out.packets_out,
            "refused": fan_out.refused,
        })
    });
    let aggregator = status.aggregator.as_ref().map(|(serving, counters)| {
        json!({
            "term": serving.term,
            "configuration": serving.configuration,
            "commit_index": serving.commit,
            "last_index": serving.last,
            "appends_passed_on": counters.appends_passed_on,
            "appends_kept": counters.appends_kept,
            "acknowledgements_counted": counters.acknowledgements_counted,
            "acknowledgements_ignored": counters.acknowledgements_ignored,
            "commits_announced": counters.commits_announced,
            "messages_ignored": counters.messages_ignored,
            "leaders_followed": counters.leaders_followed,
        })
    });
    let router = status.router.as_ref().map(|router| {
        let worker = |(address, queue, answers): &(SocketAddrV4, u32, bool)| {
            json!({ "address": address, "queue": queue, "answers": answers })
        };
        json!({
            "waiting": router.waiting,
            "requests": router.requests,
            "retries": router.retries,
            "waited": router.waited,
            "dropped": router.dropped,
            "answered": router.answered,
            "healed": router.healed,
            "workers_lost": router.workers_lost,
            "workers": router.workers.iter().map(worker).collect::<Vec<_>>(),
        })
    });
    json!({
        "address": address,
        "admission": admission,
        "fan_out": fan_out,
        "aggregator": aggregator,
        "router": router,
        "datagrams_in": status.network.datagrams_in,
        "datagrams_out": status.network.datagrams_out,
        "bytes_in": status.network.bytes_in,
        "bytes_out": status.network.bytes_out,
        "datagrams_lost": status.network.datagrams_lost,
        "packets_damaged": status.network.packets_damaged,
    })
}

/// A line for the switch, and one for each of its roles.
pub(super) fn lines((address, answer): &Asked) -> String {
    let status = match answer {
        Ok(status) => status,
        Err(error) => return format!("switch {error}\n"),
    };
    let network = &status.network;
    let mut text = format!(
        "switch {address}: {} datagrams in, {} out, {} lost; {} packets damaged\n",
        network.datagrams_in,
        network.datagrams_out,
        network.datagrams_lost,
        network.packets_damaged
    );
    // Writing into a string does not fail.
    if let Some(admission) = &status.admission {
        let counters = &admission.counters;
        let refused = counters.refused_full + counters.refused_unfair + counters.refused_slo;
        let _ = writeln!(
            text,
            "  admission: {} in the system, of at most {}, {} admitted, {} answered, {} healed by age, \
             {refused} refused",
            admission.admitted,
            admission.slo_limit,
            counters.admitted,
            counters.answered,
            counters.healed,
        );
    }
    if let Some(fan_out) = &status.fan_out {
        let _ = writeln!(
            text,
            "  fan-out: {} packets in, {} out, {} refused",
            fan_out.packets_in, fan_out.packets_out, fan_out.refused
        );
    }
    if let Some((serving, counters)) = &status.aggregator {
        let _ = writeln!(
            text,
            "  aggregator: term {}, configuration {}, commit {}; {} messages passed on, {} \
             acknowledgements counted, {} ignored, {} announcements",
            serving.term,
            serving.configuration,
            serving.commit,
            counters.appends_passed_on,
            counters.acknowledgements_counted,
            counters.acknowledgements_ignored,
            counters.commits_announced
        );
    }
    if let Some(router) = &status.router {
        let _ = writeln!(
            text,
            "  router: {} requests, {} answered, {} waiting, {} healed by age, {} dropped",
            router.requests, router.answered, router.waiting, router.healed, router.dropped
        );
        for (worker, queue, answers) in &router.workers {
            let note = if *answers { "" } else { ", does not answer" };
            let _ = writeln!(text, "    {worker}: {queue} requests{note}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use hovercraft::{
        admin::NetworkStatus,
        switch::{AdmissionConfig, Switch, SwitchConfig},
    };

    use super::*;

    #[test]
    fn only_the_roles_that_it_has_are_told() {
        let address = "10.0.0.9:7000".parse().unwrap();
        let admission =
            AdmissionConfig { limit: 10, age_max: std::time::Duration::from_secs(1), slo: None };
        let config = SwitchConfig {
            members: vec![address],
            admission: Some(admission),
            ..SwitchConfig::default()
        };
        let status = Switch::new(config, 1).status();
        assert_eq!(status.network, NetworkStatus::default());
        let asked = (address, Ok(status));
        let text = lines(&asked);
        assert!(text.contains("admission: 0 in the system") && text.contains("fan-out"), "{text}");
        assert!(!text.contains("aggregator") && !text.contains("router"), "{text}");
        let json = to_json(&asked);
        assert_eq!(
            (&json["admission"]["in_system"], &json["aggregator"]),
            (&0.into(), &Value::Null)
        );
        let waited = std::time::Duration::from_secs(1);
        let silent = (address, Err(AdminError::Silent { address, waited }));
        assert!(lines(&silent).contains("did not answer"));
    }
}
