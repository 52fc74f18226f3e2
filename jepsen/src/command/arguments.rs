//! What can be said on the command line.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};
use hovercraft_jepsen::{model, named::ModelName};

/// Checks histories of operations on a replicated service.
#[derive(Debug, Parser)]
#[command(name = "hovercraft-jepsen", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Says whether histories are linearizable.
    ///
    /// Exit code: 0 if all are, 1 if one is not, 2 if a limit was reached before that was known, 3 if the
    /// input or the usage is bad; of several files the worst: 3, 1, 2, 0.
    Check(Check),
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Histories: JSON lines, Jepsen's EDN, or its log.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// What the operations mean.
    #[arg(long)]
    pub(crate) model: Model,
    /// What failures and nil mean: to knossos what failed never happened, a nil read is unknown and a
    /// register begins as 0; to etcd a cas that failed did not match, a nil read saw that there is
    /// nothing, and a register begins as nil.
    #[arg(long, value_enum, default_value_t = Semantics::Knossos)]
    pub(crate) semantics: Semantics,
    /// Gives up on a file after so long, for example 500ms, 60s or 5m.
    #[arg(long, default_value = "60s", value_name = "TIME")]
    pub(crate) time_limit: Time,
    /// Gives up what takes more memory, for example 512MiB or 2GiB.
    #[arg(long, default_value = "2GiB", value_name = "SIZE")]
    pub(crate) memory_limit: Size,
    /// Gives up on a file after so many steps of the search. Unlike the time this gives the same
    /// result on every machine.
    #[arg(long, value_name = "STEPS")]
    pub(crate) step_limit: Option<u64>,
    /// Writes what was found as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draws the histories, with what is wrong with them, on a page for a browser.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// A model's name as a value of a flag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model(pub(crate) ModelName);

impl ValueEnum for Model {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Model; ModelName::ALL.len()] = {
            let mut all = [Model(ModelName::Register); ModelName::ALL.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = Model(ModelName::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Semantics {
    Knossos,
    Etcd,
}

impl Semantics {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Knossos => "knossos",
            Self::Etcd => "etcd",
        }
    }
}

impl From<Semantics> for model::Semantics {
    fn from(semantics: Semantics) -> Self {
        match semantics {
            Semantics::Knossos => Self::Knossos,
            Semantics::Etcd => Self::Etcd,
        }
    }
}

/// A length of time as a value of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

/// A number of bytes as a value of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("", 1000)];
        let millis = with_unit(text, &units).ok_or("not a time such as 500ms, 60s or 5m")?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("kB", 1000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("K", 1 << 10),
            ("M", 1 << 20),
            ("G", 1 << 30),
            ("B", 1),
            ("", 1),
        ];
        let bytes = with_unit(text, &units).and_then(|bytes| usize::try_from(bytes).ok());
        Ok(Self(bytes.ok_or("not a size such as 512MiB or 2GiB")?))
    }
}

/// A whole number, times what its unit says.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) =
        text.split_at(text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len()));
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_units() {
        let time = |text: &str| text.parse::<Time>().map(|it| it.0.as_millis());
        assert_eq!(
            (time("60s"), time("5"), time("1500ms"), time("2m")),
            (Ok(60_000), Ok(5000), Ok(1500), Ok(120_000))
        );
        let size = |text: &str| text.parse::<Size>().map(|it| it.0);
        assert_eq!((size("2GiB"), size("10"), size("3 MB")), (Ok(2 << 30), Ok(10), Ok(3_000_000)));
        for wrong in ["", "s", "-1s", "1.5s", "5x", "99999999999999999999"] {
            assert!(time(wrong).is_err() && size(wrong).is_err(), "{wrong}");
        }
        assert!(size("99999999999GiB").is_err());
    }
}
