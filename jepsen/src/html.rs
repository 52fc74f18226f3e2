//! A page for a browser: operations as bars by process over time, with what is wrong marked.
//!
//! The page holds everything that it needs: nothing is loaded.

use serde::Serialize;

use crate::{
    History, Outcome, Value,
    check::{Finding, Report},
    explain::explain,
    list_append::ListAppendReport,
    model::Described,
    named::Found,
};

/// A history that was checked.
#[derive(Debug, Clone, Copy)]
pub struct File<'a> {
    /// Its name, for people.
    pub name: &'a str,
    /// The name of the model.
    pub model: &'a str,
    /// What it holds.
    pub history: &'a History,
    /// What was found.
    pub found: &'a Found,
}

/// Draws histories.
pub fn render(files: &[File<'_>]) -> String {
    let data: Vec<_> = files.iter().map(FileData::new).collect();
    let data = serde_json::to_string(&data).expect("names and numbers are JSON");
    // A text in the data must not end the script that it is in.
    let data =
        data.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    let page = include_str!("html/page.html");
    page.replace("/*STYLE*/", include_str!("html/page.css"))
        .replace("/*SCRIPT*/", include_str!("html/page.js"))
        // The last, because a history may hold any text.
        .replacen("/*DATA*/", &data, 1)
}

#[derive(Serialize)]
struct FileData<'a> {
    name: &'a str,
    model: &'a str,
    verdict: String,
    has_times: bool,
    operations: Vec<OperationData>,
    keys: Vec<KeyData>,
    explanations: Vec<String>,
}

/// Short names, because there may be very many.
#[derive(Serialize)]
struct OperationData {
    /// Process.
    p: i64,
    /// Key, by its number.
    k: usize,
    /// What it did.
    t: String,
    /// From when to when; none if it never ended.
    s: u64,
    e: Option<u64>,
    /// What came of it.
    o: &'static str,
    /// The line of the file.
    l: usize,
}

#[derive(Serialize)]
struct KeyData {
    name: String,
    verdict: &'static str,
    /// What is wrong, each to be shown by itself.
    stories: Vec<Story>,
}

/// Something that is wrong.
#[derive(Serialize)]
struct Story {
    title: String,
    text: String,
    /// The operation that it is about.
    stuck: Vec<usize>,
    /// Others that play a part.
    with: Vec<usize>,
    /// What had begun by then; all if none.
    prefix: Option<Vec<usize>>,
    orders: Vec<OrderData>,
}

#[derive(Serialize)]
struct OrderData {
    state: String,
    operations: Vec<usize>,
}

impl<'a> FileData<'a> {
    fn new(file: &File<'a>) -> Self {
        let File { name, model, history, found } = *file;
        let keys = match found {
            Found::Orders(report) => keys_of(report, &explain(history, found)),
            Found::Anomalies(report) => vec![all_keys(report)],
        };
        let number_of = |key: &Value| match found {
            // What is of no key that was checked, as a read that failed, is shown with the first.
            Found::Orders(report) => {
                report.keys.binary_search_by(|it| it.key.cmp(key)).unwrap_or_default()
            }
            Found::Anomalies(_) => 0,
        };
        let operations = history.operations.iter().map(|it| OperationData {
            p: it.process,
            k: number_of(&it.key),
            t: Described(it).to_string(),
            s: it.invoked_ns,
            e: it.completed_ns.filter(|_| it.outcome != Outcome::Info),
            o: match it.outcome {
                Outcome::Ok(_) => "ok",
                Outcome::Fail => "fail",
                Outcome::Info => "info",
            },
            l: it.line,
        });
        Self {
            name,
            model,
            verdict: found.verdict().to_string(),
            has_times: history.has_times,
            operations: operations.collect(),
            keys,
            explanations: explain(history, found),
        }
    }
}

fn keys_of(report: &Report, explanations: &[String]) -> Vec<KeyData> {
    let mut explanations = explanations.iter();
    let key_data = |key: &crate::check::KeyReport| {
        let (verdict, stories) = match &key.finding {
            // An order that explains everything is a story too.
            Finding::Linearizable(order) => {
                let order = OrderData { state: String::new(), operations: order.clone() };
                (
                    "linearizable",
                    vec![Story {
                        title: "An order that explains everything".to_owned(),
                        text: String::new(),
                        stuck: Vec::new(),
                        with: Vec::new(),
                        prefix: None,
                        orders: vec![order],
                    }],
                )
            }
            Finding::Unknown(_) => ("unknown", Vec::new()),
            Finding::NotLinearizable(found) => {
                let order = |it: &crate::check::PartialOrder| OrderData {
                    state: it.state.clone(),
                    operations: it.operations.clone(),
                };
                (
                    "not linearizable",
                    vec![Story {
                        title: "The shortest beginning without an order".to_owned(),
                        // The orders that follow in it are shown by themselves.
                        text: explanations
                            .next()
                            .and_then(|it| Some(it.lines().next()?.to_owned()))
                            .unwrap_or_default(),
                        stuck: vec![found.stuck],
                        with: found.concurrent.clone(),
                        prefix: Some(found.prefix.clone()),
                        orders: found.orders.iter().map(order).collect(),
                    }],
                )
            }
        };
        KeyData { name: key.key.to_string(), verdict, stories }
    };
    report.keys.iter().map(key_data).collect()
}

fn all_keys(report: &ListAppendReport) -> KeyData {
    let story = |it: &crate::list_append::Anomaly| Story {
        title: it.kind.to_string(),
        text: it.explanation.replace("; ", ";\n"),
        stuck: it.operations.clone(),
        with: Vec::new(),
        prefix: None,
        orders: Vec::new(),
    };
    KeyData {
        name: "all".to_owned(),
        verdict: if report.anomalies.is_empty() { "linearizable" } else { "not linearizable" },
        stories: report.anomalies.iter().map(story).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::Limits,
        model::Semantics,
        named::{ModelName, check_named},
    };

    #[test]
    fn the_page_holds_everything_and_no_text_of_a_history_gets_out_of_its_place() {
        let text = "[0 :invoke :write \"</script><b>/*SCRIPT*/\"] [0 :ok :write nil] \
                    [0 :invoke :read nil] [0 :ok :read 7]";
        let history = History::read(text.as_bytes()).expect("a history");
        let found =
            check_named(ModelName::Register, Semantics::Knossos, &history, &Limits::steps(100));
        let found = found.expect("known");
        let file = File { name: "a<b", model: "register", history: &history, found: &found };
        let page = render(&[file]);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(page.contains("not linearizable") && page.contains("/*SCRIPT*/"));
        for outside in ["http://", "https://", "src=", "@import", "/*DATA*/", "/*STYLE*/"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
