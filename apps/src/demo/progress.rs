//! How the demo shows that it goes on: a line that changes on a terminal, now and then a line
//! elsewhere. All of it on standard error.

use std::{
    io::{self, Write},
    time::Duration,
};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far the demo is.
#[derive(Debug)]
pub(super) struct Progress {
    /// Draws nothing where there is no terminal.
    bar: ProgressBar,
    /// How often there is a line where there is no terminal.
    interval: Duration,
    /// What was shown last: when, and how many operations had been acknowledged.
    last: (Duration, u64),
}

impl Progress {
    pub(super) fn new(duration: Duration) -> Self {
        let millis = duration.as_millis() as u64;
        let bar = ProgressBar::with_draw_target(Some(millis), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("  {bar:24} {msg}");
        bar.set_style(style.expect("the template is fixed").progress_chars("━╸ "));
        let interval = (duration / 10).max(Duration::from_secs(1));
        Self { bar, interval, last: (Duration::ZERO, 0) }
    }

    /// Says what is done before the load begins.
    pub(super) fn stage(&self, what: &str) {
        self.print(format!("  {what} …"));
    }

    /// Shows the state `elapsed` after the beginning.
    pub(super) fn show(&mut self, elapsed: Duration, acknowledged: u64, unknown: u64) {
        let is_drawn = !self.bar.is_hidden();
        let since = elapsed.saturating_sub(self.last.0);
        if since < if is_drawn { Duration::from_millis(100) } else { self.interval } {
            return;
        }
        let count = u128::from(acknowledged - self.last.1);
        let per_second = (count * 1_000_000_000 / since.as_nanos()) as u64;
        let per_second = HumanCount(per_second).to_string();
        let (seconds, total) = (elapsed.as_secs_f64(), HumanCount(acknowledged).to_string());
        let mut line =
            format!("{seconds:5.1} s  {per_second:>9} requests/s  {total:>11} acknowledged");
        if unknown > 0 {
            line.extend(["  ", &HumanCount(unknown).to_string(), " unknown"]);
        }
        self.last = (elapsed, acknowledged);
        if is_drawn {
            self.bar.set_message(line);
            self.bar.set_position(elapsed.as_millis() as u64);
        } else {
            self.print(format!("  {line}"));
        }
    }

    /// Says what has happened.
    pub(super) fn event(&self, elapsed: Duration, what: &str) {
        self.print(format!("  {:5.1} s  {what}", elapsed.as_secs_f64()));
    }

    /// Takes away the line that changes.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn print(&self, line: String) {
        if self.bar.is_hidden() {
            // If nobody can read it there is nobody to tell.
            let _ = writeln!(io::stderr(), "{line}");
        } else {
            self.bar.println(line);
        }
    }
}
