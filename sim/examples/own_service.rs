//! A service of one's own under the simulation, with a mistake that only replication shows: it
//! draws a ticket's number by itself, so that it differs from replica to replica.
//!
//! `cargo run -p hovercraft-sim --example own_service` finds that and tells the story. With
//! arguments it is a `hovercraft-sim` of its own: `… --example own_service -- shrink --seed 0 --out
//! small.json`.

use std::{
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    process::ExitCode,
};

use hovercraft::{Context, SnapshotWriter, StateMachine};
use hovercraft_sim::{Command, Runner, Sweep, Wrapped};

/// Hands out tickets.
struct Tickets {
    sold: u64,
    fixed: bool,
}

impl StateMachine for Tickets {
    fn execute(&mut self, context: &Context, _: &[u8], reply: &mut Vec<u8>) {
        self.sold += 1;
        // The mistake: every replica draws a number of its own. The context has a seed for all.
        let drawn = if self.fixed { context.seed } else { RandomState::new().hash_one(self.sold) };
        reply.extend_from_slice(&[self.sold.to_be_bytes(), drawn.to_be_bytes()].concat());
    }
    fn query(&self, _: &Context, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.sold.to_be_bytes());
    }
    fn snapshot(&self) -> SnapshotWriter {
        let sold = self.sold;
        Box::new(move |to| to.write_all(&sold.to_be_bytes()))
    }
    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut bytes = [0; 8];
        snapshot.read_exact(&mut bytes)?;
        self.sold = u64::from_be_bytes(bytes);
        Ok(())
    }
}

/// The service, what is asked of it, and what it ought to answer: this is all that it takes.
fn ticket_office(fixed: bool) -> Wrapped {
    Wrapped::new(move || Tickets { sold: 0, fixed }, |_| "a ticket, please")
        .describe(|body| format!("visitor: {}", String::from_utf8_lossy(body)))
        .reads(|_| "how many?")
        .model(|| {
            let mut sold = 0_u64;
            move |command: &Command, reply: &[u8]| {
                sold += u64::from(!command.is_read);
                reply.starts_with(&sold.to_be_bytes())
            }
        })
}

fn main() -> ExitCode {
    if std::env::args().len() > 1 {
        return hovercraft_sim::command_line(ticket_office(false));
    }
    for fixed in [false, true] {
        println!("# with the mistake {}", if fixed { "mended" } else { "in it" });
        let sweep = Sweep { first_only: true, ..Sweep::new(0..50) };
        let report = sweep.run(&Runner::new(ticket_office(fixed)), |_, _| ());
        println!("{report}\n");
        assert_eq!(report.failures.is_empty(), fixed, "the mistake is found, and nothing else");
    }
    ExitCode::SUCCESS
}
