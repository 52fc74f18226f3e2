//! A run as one self-contained page: time runs down, every replica and client has a lane, messages
//! are arrows between lanes.

use std::{collections::BTreeSet, fmt::Write};

use crate::{
    runner::Run,
    schedule::Schedule,
    trace::{Line, Place},
};

/// Only the last so many lines are drawn; more make a page that nobody reads to its end.
const LINES_MAX: usize = 6000;

/// The width of a lane.
const LANE: usize = 46;
/// The height of a row.
const ROW: usize = 20;

/// Draws a run whose story was kept.
pub fn html(schedule: &Schedule, run: &Run) -> String {
    let mut page = String::with_capacity(1 << 20);
    let seed = schedule.options.seed;
    let _ = write!(page, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    let _ = write!(page, "<title>hovercraft-sim, seed {seed}</title>{STYLE}</head><body>");
    head(&mut page, schedule, run);
    let skipped = run.lines.len().saturating_sub(LINES_MAX);
    if skipped > 0 {
        let _ = write!(page, "<p>{skipped} earlier lines are left out.</p>");
    }
    names(&mut page, run);
    let mut down = BTreeSet::new();
    let _ = write!(page, "<main>");
    for (number, line) in run.lines.iter().enumerate() {
        note_lives(&mut down, line);
        if number >= skipped {
            row(&mut page, run, line, &down);
        }
    }
    if let Some(violation) = &run.violation {
        let what = escape(&violation.to_string());
        let _ = write!(page, "<div class=\"broken\">{what}</div>");
    }
    let _ = write!(page, "</main>{SCRIPT}</body></html>");
    page
}

/// What the run was like, what goes wrong in it, and how it ended.
fn head(page: &mut String, schedule: &Schedule, run: &Run) {
    let cluster = &schedule.options.cluster;
    let _ = write!(
        page,
        "<h1>Seed {}</h1><p>{} replicas, mode {:?}, policy {:?}, durability {:?}; {} operations, \
         {} faults; digest {:016x}</p>",
        schedule.options.seed,
        cluster.replicas,
        cluster.mode,
        cluster.policy,
        cluster.durability,
        schedule.operations.len(),
        schedule.faults.len(),
        run.digest
    );
    let verdict = match &run.violation {
        Some(violation) => format!("<p class=\"broken\">{}</p>", escape(&violation.to_string())),
        None => "<p class=\"good\">Nothing broke.</p>".to_owned(),
    };
    page.push_str(&verdict);
    let _ = write!(page, "<details><summary>The schedule</summary><pre>");
    page.push_str(&escape(&schedule.to_json()));
    page.push_str("</pre></details>");
    page.push_str(
        "<nav>Show <label><input type=\"checkbox\" data-kind=\"message\" checked> messages</label> \
         <label><input type=\"checkbox\" data-kind=\"step\" checked> decisions</label> \
         <label><input type=\"checkbox\" data-kind=\"fault\" checked> faults</label> \
         <input type=\"search\" placeholder=\"only lines with …\"></nav>",
    );
}

/// The names of the lanes; they stay in sight.
fn names(page: &mut String, run: &Run) {
    let width = width(run);
    let _ = write!(page, "<header><time>ms</time><svg width=\"{width}\" height=\"{ROW}\">");
    for lane in 0..run.replicas + run.clients {
        let name = match lane.checked_sub(run.replicas) {
            None => format!("{}", lane + 1),
            Some(client) => format!("c{client}"),
        };
        let x = middle(lane);
        let _ = write!(page, "<text x=\"{x}\" y=\"15\">{name}</text>");
    }
    page.push_str("</svg><span>replicas 1 …, clients c0 …</span></header>");
}

fn row(page: &mut String, run: &Run, line: &Line, down: &BTreeSet<usize>) {
    let kind = match (line.place, line.is_fault) {
        (Place::Narrator, _) => "narrator",
        (_, true) => "fault",
        (Place::Between(..), _) => "message",
        _ => "step",
    };
    let millis = line.at.as_nanos() as f64 / 1e6;
    let width = width(run);
    let _ = write!(
        page,
        "<div class=\"{kind}\"><time>{millis:.3}</time><svg width=\"{width}\" height=\"{ROW}\">"
    );
    for lane in 0..run.replicas + run.clients {
        let class = if down.contains(&lane) { " class=\"down\"" } else { "" };
        let x = middle(lane);
        let _ = write!(page, "<path{class} d=\"M{x} 0v{ROW}\"/>");
    }
    let mut title = String::new();
    match line.place {
        Place::At(lane) => {
            let x = middle(lane);
            let _ = write!(page, "<circle cx=\"{x}\" cy=\"10\" r=\"5\"/>");
        }
        Place::Between(from, to, sent) => {
            arrow(page, middle(from), middle(to));
            let micros = (line.at.as_nanos() - sent.as_nanos()) / 1000;
            title = format!(" title=\"sent {micros} µs before\"");
        }
        Place::World | Place::Narrator => {}
    }
    let text = escape(&line.text);
    let _ = write!(page, "</svg><span{title}>{text}</span></div>");
}

fn arrow(page: &mut String, from: usize, to: usize) {
    let (tip, back) = if to > from { (to - 2, to - 9) } else { (to + 2, to + 9) };
    let _ = write!(
        page,
        "<path class=\"arrow\" d=\"M{from} 10H{tip}M{back} 6L{tip} 10L{back} 14\"/>\
         <circle class=\"sender\" cx=\"{from}\" cy=\"10\" r=\"2\"/>"
    );
}

/// Which replicas are down: their lanes are drawn so.
fn note_lives(down: &mut BTreeSet<usize>, line: &Line) {
    let Place::At(at) = line.place else { return };
    if !line.is_fault {
        return;
    }
    if line.text.ends_with("dies") || line.text.ends_with("stops") {
        down.insert(at);
    } else if line.text.ends_with("starts again") {
        down.remove(&at);
    }
}

fn width(run: &Run) -> usize {
    LANE * (run.replicas + run.clients)
}

fn middle(lane: usize) -> usize {
    LANE * lane + LANE / 2
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "<style>
body{font:13px/20px system-ui,sans-serif;margin:1em;color:#222;background:#fff}
h1{margin:.2em 0}pre{max-height:24em;overflow:auto;background:#f6f6f6;padding:.5em;line-height:1.3}
nav{margin:.6em 0}nav label{margin-right:1em}
header{position:sticky;top:0;background:#fff;border-bottom:1px solid #999;font-weight:600}
header,main>div{display:flex;height:20px;white-space:pre}main>div:hover{background:#eef4ff}
time{width:6.5em;text-align:right;padding-right:1em;color:#777;font-variant-numeric:tabular-nums}
span{padding-left:1em}svg{flex:none}svg text{text-anchor:middle}
path{stroke:#ccc;fill:none}path.down{stroke:#d33;stroke-dasharray:2 4}
path.arrow{stroke:#36c;stroke-width:1.5}circle{fill:#2a7}circle.sender{fill:#36c}
main .fault{background:#fff1e8;color:#a40}.fault circle{fill:#e60}.message span{color:#446}
.broken,main>.broken{background:#fdd;border-left:4px solid #c00;padding:.5em;height:auto;white-space:pre-wrap}
.good{background:#e4f7e8;border-left:4px solid #2a7;padding:.5em}
.narrator{font-weight:600}main>.hidden{display:none}
@media(prefers-color-scheme:dark){body,header{background:#181818;color:#ddd}pre{background:#222}
main>div:hover{background:#223}main .fault{background:#321;color:#fb8}.message span{color:#aac}
.broken,main>.broken{background:#411}.good{background:#132}path{stroke:#444}}
</style>";

const SCRIPT: &str = "<script>
const rows=[...document.querySelectorAll('main>div')],boxes=[...document.querySelectorAll('nav input[type=checkbox]')],
find=document.querySelector('nav input[type=search]');
function show(){const off=new Set(boxes.filter(b=>!b.checked).map(b=>b.dataset.kind)),word=find.value.toLowerCase();
for(const row of rows){const kind=row.className.split(' ')[0];
row.classList.toggle('hidden',off.has(kind)||(word&&kind!='broken'&&!row.textContent.toLowerCase().includes(word)))}}
boxes.forEach(b=>b.onchange=show);find.oninput=show;
</script>";
