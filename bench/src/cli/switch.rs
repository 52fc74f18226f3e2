//! `hovercraft-bench switch`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hovercraft_bench::{
    count::{CountError, Counted, count, growth},
    draw,
    switch::{
        Jbsq, JbsqPlan, Overload, OverloadPlan, Row, SwitchError, Table1Plan, instructions, jbsq,
        overload, table1,
    },
};
use serde::Serialize;

use super::{Failure, Verdict, cannot_write, hovercraft, progress, report, write_json};

/// What a switch is worth. Writes JSON, pictures and the report into a directory. Exit code 1 if a
/// figure is not what is promised of it.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only these.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// How long each figure is measured, as a share of what gives stable ones: 0.1 for a look.
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    scale: f64,
    /// Where everything is written.
    #[arg(long, default_value = "docs/results")]
    out: PathBuf,
    /// The `hovercraft` command; by default the one beside this one.
    #[arg(long)]
    bin: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Messages at the leader, from packets (the paper's Table 1); needs root.
    Table1,
    /// Instructions at the leader; needs valgrind.
    Count,
    /// Twice the load that the replicas can do.
    Overload,
    /// Workers of an unreplicated service, chosen by their queues or otherwise.
    Jbsq,
}

impl Arguments {
    pub(super) async fn execute(self) -> Verdict {
        let binary = hovercraft(self.bin.clone())?;
        std::fs::create_dir_all(&self.out).map_err(|error| cannot_write(&self.out, &error))?;
        let all = [Part::Table1, Part::Count, Part::Overload, Part::Jbsq];
        let parts = if self.parts.is_empty() { &all[..] } else { &self.parts };
        let mut is_good = true;
        for part in parts {
            is_good &= match part {
                Part::Table1 => self.table1(&binary).await?,
                Part::Count => self.count().await?,
                Part::Overload => self.overload(&binary).await?,
                Part::Jbsq => self.jbsq(&binary).await?,
            };
        }
        report::write(&self.out)?;
        Ok(is_good)
    }

    fn duration(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64((seconds * self.scale).max(0.2))
    }

    async fn table1(&self, binary: &Path) -> Verdict {
        println!(
            "Messages at the leader: each request, each line one size of cluster\n{}",
            Row::head()
        );
        let bar = progress("Table 1");
        let plan = Table1Plan { binary: binary.to_owned(), duration: self.duration(1.0) };
        let counted = table1(&plan, |row| bar.suspend(|| print!("{}", row.line()))).await;
        bar.finish_and_clear();
        let counted = match counted {
            Ok(counted) => counted,
            Err(error @ (SwitchError::Netns(_) | SwitchError::Capture(_))) => {
                println!("skipped: {error}");
                return Ok(true);
            }
            Err(error) => return Err(failure(error)),
        };
        self.write("table1", &counted, &[("table1", counted.draw())])?;
        Ok(counted.agrees())
    }

    async fn count(&self) -> Verdict {
        const GROWTH_MAX: f64 = 1.1;
        let program = std::env::current_exe()
            .map_err(|error| Failure::Other(format!("this program cannot be found: {error}")))?;
        let counted = count(&program, |name, instructions| {
            println!("{name:<28} {instructions:>10.1} instructions a request");
        });
        let counted: Counted = match counted.await {
            Ok(counted) => counted,
            Err(error @ CountError::NoValgrind) => {
                println!("skipped: {error}");
                return Ok(true);
            }
            Err(error) => return Err(Failure::Other(error.to_string())),
        };
        let growth = growth(&counted.instructions).unwrap_or(f64::INFINITY);
        println!("hovercraft++: the leader of 9 does {growth:.3} times what that of 3 does");
        self.write("count", &counted, &[("count", instructions(&counted.instructions))])?;
        Ok(growth <= GROWTH_MAX)
    }

    async fn overload(&self, binary: &Path) -> Verdict {
        print!("{}", hovercraft_bench::switch::OverloadPoint::head());
        let bar = progress("overload");
        let plan = OverloadPlan { binary: binary.to_owned(), duration: self.duration(2.0) };
        let measured = overload(&plan, |point| bar.suspend(|| print!("{}", point.line()))).await;
        bar.finish_and_clear();
        let measured: Overload = measured.map_err(failure)?;
        println!("{}", measured.summary());
        let pictures = [("overload", measured.draw()), ("overload-p99", measured.draw_p99())];
        self.write("overload", &measured, &pictures)?;
        Ok(measured.is_held())
    }

    async fn jbsq(&self, binary: &Path) -> Verdict {
        print!("{}", hovercraft_bench::switch::JbsqPoint::head());
        let bar = progress("choosing workers");
        let plan = JbsqPlan { binary: binary.to_owned(), duration: self.duration(6.0) };
        let measured = jbsq(&plan, |point| bar.suspend(|| print!("{}", point.line()))).await;
        bar.finish_and_clear();
        let measured: Jbsq = measured.map_err(failure)?;
        for check in &measured.checks {
            println!("{}", check.line());
        }
        self.write("jbsq", &measured, &[("jbsq", measured.draw())])?;
        Ok(measured.is_better())
    }

    /// Writes figures as JSON, and their pictures.
    fn write(
        &self,
        name: &str,
        figures: &impl Serialize,
        pictures: &[(&str, String)],
    ) -> Result<(), Failure> {
        write_json(&self.out.join(name).with_extension("json"), figures)?;
        for (name, svg) in pictures {
            let path = self.out.join(name).with_extension("svg");
            draw::write(&path, svg).map_err(|error| cannot_write(&path, &error))?;
        }
        Ok(())
    }
}

fn failure(error: SwitchError) -> Failure {
    match error {
        SwitchError::Run(error) => error.into(),
        other => Failure::Other(other.to_string()),
    }
}

/// A part of the whole, or some times as much.
fn share(text: &str) -> Result<f64, String> {
    super::positive(text)
        .ok()
        .filter(|share| (0.01..=100.0).contains(share))
        .ok_or_else(|| format!("{text:?} is not a share from 0.01 to 100"))
}
