//! `hovercraft-bench report`.

use std::path::{Path, PathBuf};

use hovercraft_bench::report::Results;

use super::{Failure, Verdict, cannot_write, writable};

/// One page of everything that the other commands wrote into a directory by --json.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where the results are.
    #[arg(default_value = "docs/results")]
    directory: PathBuf,
    /// Where the page is written; by default report.html in the directory.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Where the summary is written; by default report.md in the directory.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn execute(self) -> Verdict {
        writable(self.html.as_deref())?;
        writable(self.markdown.as_deref())?;
        let html = self.html.unwrap_or_else(|| self.directory.join("report.html"));
        let markdown = self.markdown.unwrap_or_else(|| self.directory.join("report.md"));
        write_to(&self.directory, &html, &markdown)
    }
}

/// Writes the page and the summary into the directory.
pub(super) fn write(directory: &Path) -> Verdict {
    write_to(directory, &directory.join("report.html"), &directory.join("report.md"))
}

fn write_to(directory: &Path, html: &Path, markdown: &Path) -> Verdict {
    let results = Results::read(directory).map_err(|error| Failure::Usage(error.to_string()))?;
    for (path, text) in [(html, results.html()), (markdown, results.markdown())] {
        std::fs::write(path, text).map_err(|error| cannot_write(path, &error))?;
        println!("{}", path.display());
    }
    Ok(true)
}
