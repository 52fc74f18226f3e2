//! The tables of the report.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Results, TrendLine, escape};

/// Cells in rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[&str], rows: Vec<Vec<String>>) -> Option<Self> {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        (!rows.is_empty()).then_some(Self { columns, rows })
    }

    pub(super) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('\n', " "));
        let rule = vec!["---".to_owned(); self.columns.len()];
        let rows = self.rows.iter().map(|row| line(row));
        [line(&self.columns), line(&rule)].into_iter().chain(rows).collect()
    }

    pub(super) fn html(&self) -> String {
        let line = |cells: &[String], tag: &str| {
            let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let rows: String = self.rows.iter().map(|row| line(row, "td")).collect();
        format!("<table>\n{}{rows}</table>", line(&self.columns, "th"))
    }
}

/// A number as people read it; `-` if there is none.
pub(super) fn number(value: &Value) -> String {
    let Some(number) = value.as_f64() else { return "-".to_owned() };
    match number.abs() {
        size if size >= 1000.0 || number.fract() == 0.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 0.01 => format!("{number:.2}"),
        _ => format!("{number:.4}"),
    }
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| number(value), str::to_owned)
}

fn each(values: &[Value], row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    values.iter().map(row).collect()
}

pub(super) fn parts(
    values: &[Value],
    key: &str,
    row: impl Fn(&Value) -> Vec<String>,
) -> Vec<Vec<String>> {
    let lists = values.iter().filter_map(|value| value[key].as_array());
    lists.flatten().map(row).collect()
}

pub(super) fn machine(results: &Results) -> Option<Table> {
    let measured = results.runs.iter().chain(&results.peers).chain(&results.floors);
    let measured = measured.chain(&results.switches);
    // Each with the highest load that was found on it before a measurement.
    let mut different: BTreeMap<Vec<String>, f64> = BTreeMap::new();
    for value in measured.filter(|value| value["machine"].is_object()) {
        let machine = &value["machine"];
        let row = vec![
            text(&machine["processor"]),
            text(&machine["cores"]),
            text(&machine["kernel"]),
            text(&value["commit"]),
        ];
        let load = different.entry(row).or_default();
        *load = load.max(machine["load_before"].as_f64().unwrap_or(0.0));
    }
    let rows = different.into_iter().map(|(mut row, load)| {
        row.push(number(&load.into()));
        row
    });
    let columns = ["processor", "cores", "Linux", "commit", "load before, at most"];
    Table::new(&columns, rows.collect())
}

/// How a run is told from others, in a few words.
pub(super) fn title(run: &Value) -> String {
    format!("{}, {} B", text(&run["workload"]), text(&run["request_bytes"]))
}

/// What the replicas did, and whether requests came to them by a switch.
fn mode(run: &Value) -> String {
    let by_switch = if run["by_switch"] == true { ", by switch" } else { "" };
    text(&run["mode"]) + by_switch
}

/// How requests came.
pub(super) fn pace(run: &Value) -> String {
    match run["offered_per_s"].as_f64() {
        Some(rate) => format!("{rate:.0}/s offered"),
        None => format!("{} outstanding", number_whole(&run["outstanding"])),
    }
}

pub(super) fn number_whole(value: &Value) -> String {
    value.as_u64().map_or("-".to_owned(), |number| number.to_string())
}

pub(super) fn runs(runs: &[Value]) -> Option<Table> {
    let columns = [
        "workload",
        "mode",
        "replicas",
        "durability",
        "load",
        "requests/s",
        "p50 µs",
        "p99 µs",
        "95 % of p99",
        "most under SLO",
        "CPU µs replicas",
        "switch",
        "client",
        "trusted",
    ];
    let rows = each(runs, |run| {
        let interval = &run["p99_interval_us"];
        let max = &run["max_under_slo"]["max_per_s"]["median"];
        let failures = run["tests"]["failures"].as_array().map_or(Vec::new(), Clone::clone);
        let failures: Vec<_> = failures.iter().map(text).collect();
        vec![
            title(run),
            mode(run),
            number_whole(&run["replicas"]),
            text(&run["durability"]),
            pace(run),
            number(&run["achieved_per_s"]),
            number(&run["p50_us"]),
            number(&run["p99_us"]),
            format!("{} … {}", number(&interval[0]), number(&interval[1])),
            number(max),
            number(&run["cpu_us_per_op"]["replicas_total"]),
            number(&run["cpu_us_per_op"]["switch"]),
            number(&run["cpu_us_per_op"]["client"]),
            if failures.is_empty() { "yes".to_owned() } else { failures.join("; ") },
        ]
    });
    Table::new(&columns, rows)
}

pub(super) fn costs(runs: &[Value]) -> Option<Table> {
    let columns = [
        "workload",
        "mode",
        "replicas",
        "load",
        "role",
        "user µs",
        "system µs",
        "datagrams in",
        "out",
        "bytes out",
        "ordering B",
        "announcing B",
        "acknowledging B",
        "recovery B",
        "system calls",
        "switches",
        "disk B",
        "group commits",
    ];
    let mut rows = Vec::new();
    for run in runs {
        for role in ["leader", "follower", "switch"] {
            let cost = &run[role];
            if !cost.is_object() {
                continue;
            }
            let mut row = vec![
                title(run),
                mode(run),
                number_whole(&run["replicas"]),
                pace(run),
                role.to_owned(),
            ];
            let fields = [
                &cost["cpu_user_us_per_op"],
                &cost["cpu_system_us_per_op"],
                &cost["datagrams_in_per_op"],
                &cost["datagrams_out_per_op"],
                &cost["bytes_out_per_op"],
                &cost["ordering"]["bytes_per_op"],
                &cost["announcements"]["bytes_per_op"],
                &cost["acknowledgements"]["bytes_per_op"],
                &cost["recovery"]["bytes_per_op"],
                &cost["system_calls_per_op"],
                &cost["context_switches_per_op"],
                &cost["disk_bytes_per_op"],
                &cost["group_commits_per_op"],
            ];
            row.extend(fields.map(number));
            rows.push(row);
        }
    }
    Table::new(&columns, rows)
}

pub(super) fn failovers(runs: &[Value]) -> Option<Table> {
    let columns =
        ["mode", "offered/s", "answered before", "after", "silent ms", "failed", "not admitted"];
    let runs: Vec<_> = runs.iter().filter(|run| run["failover"].is_object()).cloned().collect();
    let rows = each(&runs, |run| {
        let failover = &run["failover"];
        vec![
            text(&run["mode"]),
            number(&run["offered_per_s"]),
            number(&failover["before_per_s"]),
            number(&failover["after_per_s"]),
            number(&failover["silent_ms"]),
            number(&run["failed"]),
            number(&run["dropped"]),
        ]
    });
    Table::new(&columns, rows)
}

pub(super) fn peers(peers: &[Value]) -> Option<Table> {
    let columns = [
        "system",
        "clients",
        "outstanding",
        "ops/s",
        "p50 µs",
        "p99 µs",
        "CPU µs replicas",
        "client",
    ];
    let rows = parts(peers, "rows", |row| {
        vec![
            text(&row["system"]),
            number_whole(&row["clients"]),
            number_whole(&row["outstanding"]),
            number(&row["ops_per_s"]),
            number(&row["p50_us"]),
            number(&row["p99_us"]),
            number(&row["cpu_us_per_op_replicas"]),
            number(&row["cpu_us_per_op_client"]),
        ]
    });
    Table::new(&columns, rows)
}

pub(super) fn ratios(peers: &[Value]) -> Option<Table> {
    let columns =
        ["ours", "over", "clients", "outstanding", "ops/s, mean", "each pair", "replicas' CPU"];
    let list = |value: &Value| {
        let figures = value.as_array().map_or(Vec::new(), Clone::clone);
        figures.iter().map(number).collect::<Vec<_>>().join(", ")
    };
    let rows = parts(peers, "ratios", |ratio| {
        vec![
            text(&ratio["system"]),
            text(&ratio["over"]),
            number_whole(&ratio["clients"]),
            number_whole(&ratio["outstanding"]),
            number(&ratio["ops_per_s_mean"]),
            list(&ratio["ops_per_s"]),
            list(&ratio["replicas_cpu"]),
        ]
    });
    Table::new(&columns, rows)
}

pub(super) fn floors(floors: &[Value]) -> Option<Table> {
    let rows = parts(floors, "lines", |line| {
        vec![text(&line["name"]), number(&line["cpu_us"]), number(&line["wall_us"])]
    });
    Table::new(&["each", "CPU µs", "wall µs"], rows)
}

pub(super) fn models(models: &[Value]) -> Option<Table> {
    let mut rows = Vec::new();
    for figure in models.iter().filter_map(|model| model["figures"].as_array()).flatten() {
        for bar in figure["bars"].as_array().into_iter().flatten() {
            rows.push(vec![
                format!("{}: {}", number_whole(&figure["number"]), text(&figure["title"])),
                text(&bar["name"]),
                format!("{} {}", number(&bar["x"]), text(&figure["x"])),
                number(&bar["per_s"]),
                number(&bar["ratio"]),
                number(&bar["paper_ratio"]),
            ]);
        }
    }
    let columns = ["figure", "system", "at", "requests/s, p99 ≤ 500 µs", "ratio", "the paper's"];
    Table::new(&columns, rows)
}

pub(super) fn counts(counts: &[Value]) -> Option<Table> {
    let rows = counts.iter().filter_map(|count| count["instructions"].as_object()).flatten();
    let rows = rows.map(|(name, count)| vec![name.clone(), number(count)]);
    Table::new(&["core", "instructions a request"], rows.collect())
}

pub(super) fn self_tests(tests: &[Value]) -> Option<Table> {
    let columns = [
        "case",
        "runs",
        "true p99 µs",
        "reported",
        "truth in the interval",
        "tests passed",
        "closed loop would say",
    ];
    let rows = tests.iter().filter_map(Value::as_array).flatten().map(|outcome| {
        vec![
            text(&outcome["case"]),
            number_whole(&outcome["runs"]),
            number(&outcome["p99_truth_us"]),
            number(&outcome["p99_reported_us"]),
            number_whole(&outcome["p99_covered"]),
            number_whole(&outcome["tests_passed"]),
            number(&outcome["p99_closed_loop_us"]),
        ]
    });
    Table::new(&columns, rows.collect())
}

pub(super) fn trend(trend: &[TrendLine]) -> Option<Table> {
    const NEWEST: usize = 20;
    let rows = trend.iter().rev().take(NEWEST).map(|line| {
        vec![
            line.name.clone(),
            line.commit.clone(),
            line.processor.clone(),
            number(&line.per_s.into()),
            number(&line.p99_us.into()),
            number(&line.replicas_cpu_us.into()),
        ]
    });
    let columns = ["run", "commit", "machine", "requests/s", "p99 µs", "CPU µs replicas"];
    Table::new(&columns, rows.collect())
}
