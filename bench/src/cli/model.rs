//! `hovercraft-bench model`.

use std::path::{Path, PathBuf};

use hovercraft_bench::{
    draw,
    model::{Costs, Figure, figures},
};

use super::{Failure, Verdict, cannot_write, progress, writable, write_json};

/// The real core on modelled machines. Without --floor and --run, the machines' costs are assumed to
/// be those of the paper's set-up. Exit code 1 if a queue with a known result is off by 2 % or more.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What `floor --json` wrote: the price of a datagram.
    #[arg(long, requires = "run")]
    floor: Option<PathBuf>,
    /// What `run --mode unreplicated --json` wrote: the price of a request.
    #[arg(long, requires = "floor")]
    run: Option<PathBuf>,
    /// How many requests are modelled for each point.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    requests: u64,
    /// Where the figures are written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A directory for the pictures.
    #[arg(long)]
    svg: Option<PathBuf>,
}

impl Arguments {
    pub(super) async fn execute(self) -> Verdict {
        // In a thread that may be left alone, so that an interrupt ends it.
        let modelled = tokio::task::spawn_blocking(|| self.model()).await;
        modelled.unwrap_or_else(|panic| Err(Failure::Other(panic.to_string())))
    }

    fn model(self) -> Verdict {
        writable(self.json.as_deref())?;
        let costs = match (&self.floor, &self.run) {
            (Some(floor), Some(run)) => Costs::measured(&read(floor)?, &read(run)?)
                .map_err(|error| Failure::Usage(format!("--floor or --run: {error}")))?,
            _ => Costs::assumed(),
        };
        println!("costs: {costs:?}\n");
        let bar = progress("modelling Figures 7 to 11");
        let model = figures(&costs, self.requests, |figure| {
            bar.suspend(|| println!("{}", figure.table()));
        });
        bar.finish_and_clear();
        println!("queues with known results (mean wait, in service times):");
        for check in &model.checks {
            println!("{}", check.line());
        }
        if let Some(directory) = &self.svg {
            std::fs::create_dir_all(directory).map_err(|error| cannot_write(directory, &error))?;
            for (name, svg) in model.figures.iter().flat_map(Figure::draw) {
                let path = directory.join(name + ".svg");
                draw::write(&path, &svg).map_err(|error| cannot_write(&path, &error))?;
            }
        }
        if let Some(path) = &self.json {
            write_json(path, &model)?;
        }
        Ok(model.checks.iter().all(|check| check.error() < 0.02))
    }
}

fn read(path: &Path) -> Result<serde_json::Value, Failure> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("cannot read {}: {error}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    serde_json::from_str(&text).map_err(|error| wrong(&error))
}
