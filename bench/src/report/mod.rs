//! One page of everything that was measured: tables, pictures, and how the figures move over time.
//!
//! It reads the JSON files that the other commands wrote into one directory, and knows them by what
//! is in them.

mod pictures;
mod switch;
mod tables;
mod trend;

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

pub use trend::{TrendLine, append as append_trend};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file or the directory.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is not what this program writes.
    #[error("{} is not JSON: {source}", path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// There is nothing to report.
    #[error("{} has no results; write some there by --json", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
}

/// What the files of a directory say.
#[derive(Debug, Default)]
pub struct Results {
    /// Of `run`.
    pub runs: Vec<Value>,
    /// Of `peers`.
    pub peers: Vec<Value>,
    /// Of `floor`.
    pub floors: Vec<Value>,
    /// Of `model`.
    pub models: Vec<Value>,
    /// Of `self-test`: one list a file.
    pub self_tests: Vec<Value>,
    /// Of `count`.
    pub counts: Vec<Value>,
    /// Of `switch`.
    pub switches: Vec<Value>,
    /// Of the trend, oldest first.
    pub trend: Vec<TrendLine>,
}

/// The name of the trend's file.
pub const TREND: &str = "trend.jsonl";

impl Results {
    /// Reads all JSON files of a directory, in order of their names.
    pub fn read(directory: &Path) -> Result<Self, ReportError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ReportError::Read { path, source }
        };
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed(directory))? {
            paths.push(entry.map_err(failed(directory))?.path());
        }
        paths.sort();
        let mut results = Self::default();
        for path in paths {
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = fs::read_to_string(&path).map_err(failed(&path))?;
                let value = serde_json::from_str(&text)
                    .map_err(|source| ReportError::Json { path: path.clone(), source })?;
                results.sort_in(value);
            }
        }
        results.trend = trend::read(&directory.join(TREND)).map_err(failed(directory))?;
        if results.is_empty() {
            return Err(ReportError::Empty { path: directory.to_owned() });
        }
        Ok(results)
    }

    fn sort_in(&mut self, value: Value) {
        let has = |key| value.get(key).is_some();
        let list = if has("achieved_per_s") && has("workload") {
            &mut self.runs
        } else if has("rows") {
            &mut self.peers
        } else if has("lines") {
            &mut self.floors
        } else if ["table1", "overload", "jbsq"].into_iter().any(has) {
            &mut self.switches
        } else if has("figures") {
            &mut self.models
        } else if has("instructions") {
            &mut self.counts
        } else if value[0].get("case").is_some() {
            &mut self.self_tests
        } else {
            // Somebody else's file.
            return;
        };
        list.push(value);
    }

    fn is_empty(&self) -> bool {
        let lists = [&self.runs, &self.peers, &self.floors, &self.models, &self.counts];
        let others = [&self.self_tests, &self.switches];
        lists.iter().chain(&others).all(|list| list.is_empty())
    }

    /// The summary, in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# What was measured\n\n");
        for section in self.sections() {
            let _ = writeln!(text, "## {}\n\n{}", section.title, section.table.markdown());
        }
        text
    }

    /// The page, in HTML, with all pictures inside.
    pub fn html(&self) -> String {
        let mut text = String::from(HEAD);
        for section in self.sections() {
            let title = escape(&section.title);
            let _ = writeln!(text, "<h2>{title}</h2>\n{}", section.table.html());
            for picture in &section.pictures {
                let _ = writeln!(text, "<figure>{picture}</figure>");
            }
        }
        text.push_str("</body></html>\n");
        text
    }

    fn sections(&self) -> Vec<Section> {
        let mut sections = Vec::new();
        let mut add = |title: &str, table: Option<tables::Table>, pictures| {
            if let Some(table) = table {
                sections.push(Section { title: title.to_owned(), table, pictures });
            }
        };
        add("Machine", tables::machine(self), Vec::new());
        add("Runs", tables::runs(&self.runs), pictures::runs(&self.runs));
        add("What a request costs, by role", tables::costs(&self.runs), Vec::new());
        add("Failover", tables::failovers(&self.runs), pictures::failovers(&self.runs));
        add("Peers", tables::peers(&self.peers), pictures::peers(&self.peers));
        add("Ours over theirs, pair by pair", tables::ratios(&self.peers), Vec::new());
        add("Floors of this machine", tables::floors(&self.floors), Vec::new());
        add("Modelled machines", tables::models(&self.models), pictures::models(&self.models));
        add("Messages at the leader", switch::table1(self), switch::table1_pictures(self));
        let counted = tables::counts(&self.counts);
        add("Instructions of the core", counted, switch::counts_pictures(self));
        add("Overload", switch::overload(self), switch::overload_pictures(self));
        add("Choosing workers", switch::jbsq(self), switch::jbsq_pictures(self));
        add("Queues with known results", switch::checks(self), Vec::new());
        add("Self-test of the instrument", tables::self_tests(&self.self_tests), Vec::new());
        add("Trend", tables::trend(&self.trend), pictures::trend(&self.trend));
        sections
    }
}

struct Section {
    title: String,
    table: tables::Table,
    pictures: Vec<String>,
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>HovercRaft: what was measured</title>
<style>
body { font: 15px/1.45 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0.8em 0; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #ddd; padding: 0.25em 0.7em; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left }
figure { margin: 1em 0 } svg { max-width: 100%; height: auto }
</style></head><body><h1>HovercRaft: what was measured</h1>
";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_are_known_by_what_is_in_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, value: &Value| {
            fs::write(directory.path().join(name), value.to_string()).expect("written");
        };
        assert!(matches!(Results::read(directory.path()), Err(ReportError::Empty { .. })));
        write("a.json", &json!({ "workload": "tiny", "achieved_per_s": 5.0, "mode": "raft" }));
        write("b.json", &json!({ "rows": [{ "system": "a <system>", "ops_per_s": 7.0 }] }));
        write("c.json", &json!({ "something": "else" }));
        let results = Results::read(directory.path()).expect("read");
        assert_eq!((results.runs.len(), results.peers.len()), (1, 1));
        assert!(results.markdown().contains("| raft |"), "{}", results.markdown());
        let html = results.html();
        assert!(html.contains("a &lt;system&gt;") && html.ends_with("</html>\n"), "{html}");
        fs::write(directory.path().join("d.json"), "{").expect("written");
        assert!(matches!(Results::read(directory.path()), Err(ReportError::Json { .. })));
    }
}
