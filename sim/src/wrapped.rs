//! A service as it is, with functions for what is asked of it: the shortest way to a sweep.

use bytes::Bytes;
use hovercraft::StateMachine;

use crate::workload::{Command, Model, Workload, in_words};

type Describe = Box<dyn Fn(&[u8]) -> String + Send + Sync>;
type Bodies = Box<dyn Fn(&mut fastrand::Rng) -> Bytes + Send + Sync>;

/// A [`Workload`] that is put together of functions.
pub struct Wrapped {
    service: Box<dyn Fn() -> Box<dyn StateMachine> + Send + Sync>,
    write: Bodies,
    read: Option<Bodies>,
    model: Option<Box<dyn Fn() -> Model + Send + Sync>>,
    describe: Option<Describe>,
}

impl Wrapped {
    /// A service, which every replica makes anew, and a write that a client may ask of it.
    pub fn new<S: StateMachine, B: Into<Bytes>>(
        service: impl Fn() -> S + Send + Sync + 'static,
        write: impl Fn(&mut fastrand::Rng) -> B + Send + Sync + 'static,
    ) -> Self {
        Self {
            service: Box::new(move || Box::new(service())),
            write: Box::new(move |rng| write(rng).into()),
            read: None,
            model: None,
            describe: None,
        }
    }

    /// Clients read too, and ask this. How often, each client's options say.
    #[must_use]
    pub fn reads<B: Into<Bytes>>(
        self,
        read: impl Fn(&mut fastrand::Rng) -> B + Send + Sync + 'static,
    ) -> Self {
        Self { read: Some(Box::new(move |rng| read(rng).into())), ..self }
    }

    /// Says what a command or a query is, in the words of the service. Without it a short text is
    /// shown as it is, and other bytes as hexadecimal digits.
    #[must_use]
    pub fn describe(self, describe: impl Fn(&[u8]) -> String + Send + Sync + 'static) -> Self {
        Self { describe: Some(Box::new(describe)), ..self }
    }

    /// Makes what judges the replies to all commands in their order: false if one is wrong. Without
    /// it a reply is right if every replica gives the same.
    #[must_use]
    pub fn model<M: FnMut(&Command, &[u8]) -> bool + 'static>(
        self,
        model: impl Fn() -> M + Send + Sync + 'static,
    ) -> Self {
        let model = move || -> Model {
            let mut is_right = model();
            Box::new(move |command, reply| {
                let wrong = || Err("the model says otherwise".to_owned());
                if is_right(command, reply) { Ok(()) } else { wrong() }
            })
        };
        Self { model: Some(Box::new(model)), ..self }
    }
}

impl Workload for Wrapped {
    fn service(&self) -> Box<dyn StateMachine> {
        (self.service)()
    }

    fn command(&self, rng: &mut fastrand::Rng, reads_per_mille: u32) -> Command {
        let is_read = rng.u32(..1000) < reads_per_mille;
        match &self.read {
            Some(read) if is_read => Command::read(read(rng)),
            _ => Command::write((self.write)(rng)),
        }
    }

    fn describe(&self, body: &[u8]) -> String {
        self.describe.as_ref().map_or_else(|| in_words(body), |describe| describe(body))
    }

    fn model(&self) -> Model {
        self.model.as_ref().map_or_else(|| -> Model { Box::new(|_, _| Ok(())) }, |model| model())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};

    use hovercraft::{Context, SnapshotWriter};

    use super::*;
    use crate::{runner::Runner, sweep::Sweep};

    /// Counts what it executes.
    #[derive(Default)]
    struct Counter(u64);

    impl StateMachine for Counter {
        fn execute(&mut self, _: &Context, _: &[u8], reply: &mut Vec<u8>) {
            self.0 += 1;
            reply.extend_from_slice(&self.0.to_be_bytes());
        }

        fn query(&self, _: &Context, _: &[u8], reply: &mut Vec<u8>) {
            reply.extend_from_slice(&self.0.to_be_bytes());
        }

        fn snapshot(&self) -> SnapshotWriter {
            let count = self.0;
            Box::new(move |to| to.write_all(&count.to_be_bytes()))
        }

        fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
            let mut bytes = [0; 8];
            snapshot.read_exact(&mut bytes)?;
            self.0 = u64::from_be_bytes(bytes);
            Ok(())
        }
    }

    /// A counter, and a model that counts writes from a number on.
    fn failures(from: u64) -> Vec<String> {
        let counter =
            Wrapped::new(Counter::default, |_| "count").reads(|_| "how many?").model(move || {
                let mut count = from;
                move |command: &Command, reply: &[u8]| {
                    count += u64::from(!command.is_read);
                    reply == count.to_be_bytes()
                }
            });
        let report = Sweep::new(0..10).run(&Runner::new(counter), |_, _| ());
        report.failures.into_iter().map(|failure| failure.invariant).collect()
    }

    #[test]
    fn the_model_judges_a_service_that_is_wrapped() {
        assert_eq!(failures(0), Vec::<String>::new());
        assert_eq!(failures(1), ["linearizable history"; 10]);
    }

    #[test]
    fn without_a_model_what_all_replicas_answer_is_right() {
        let counter = Wrapped::new(Counter::default, |rng| vec![rng.u8(..)]);
        let report = Sweep::new(0..10).run(&Runner::new(counter), |_, _| ());
        assert!(report.failures.is_empty());
        assert_eq!(report.coverage.count("reads executed"), 0);
    }
}
