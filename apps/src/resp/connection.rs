//! One connection: reads requests, asks the service in their order, writes the answers.
//!
//! Requests that are outstanding at the same time have no order among them, and a connection's
//! commands do. So whatever commands have arrived together go to the service as one batch, in
//! their order: a pipeline costs one replicated request, however deep it is.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use hovercraft::{CallError, CallOutcome};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

use super::{
    Shared,
    command::{Step, step},
    data::Shape,
    local::Client,
    memory::Loan,
    reply::{Answer, Dialect},
    request::RequestReader,
};
use crate::{
    backend::Backend,
    kv::{self, Operation, Reply, Request, Response},
};

/// The most commands that are taken up before any is answered.
const ROUND_COMMANDS_MAX: usize = 1024;

/// The most bytes of operations in one batch, unless it is a single operation. Together with the
/// least size of a key this keeps a batch within what the service takes (`REQUEST_ITEMS_MAX`).
const BATCH_BYTES_MAX: usize = 256 << 10;

/// Room for reading.
const READ_BYTES: usize = 16 << 10;

/// Output beyond this is written before more is made, and its buffer is let go after use.
const KEPT_BYTES: usize = 64 << 10;

/// How long a client may leave a request half sent, or its answers unread.
const STALL_MAX: Duration = Duration::from_mins(1);

pub(super) struct Connection<B> {
    stream: TcpStream,
    backend: B,
    shared: Arc<Shared>,
    client: Client,
    reader: RequestReader,
    output: BytesMut,
    loan: Loan,
}

/// A command that waits for its answer, in the dialect that held when it came.
struct Command {
    dialect: Dialect,
    work: Work,
}

enum Work {
    Answer(Answer),
    /// The next operation of the round that is not answered.
    Data(Shape),
}

impl<B: Backend> Connection<B> {
    pub(super) fn new(stream: TcpStream, backend: B, shared: Arc<Shared>, id: u64) -> Self {
        Self {
            stream,
            backend,
            client: Client::new(id),
            reader: RequestReader::new(shared.request_bytes_max),
            output: BytesMut::new(),
            loan: shared.memory.loan(),
            shared,
        }
    }

    /// Serves until the client or `shutdown` ends it. What was taken up is answered.
    pub(super) async fn serve(mut self, mut shutdown: watch::Receiver<bool>) -> io::Result<()> {
        loop {
            let (commands, operations) = self.take_up();
            if !commands.is_empty() {
                self.answer(commands, operations).await?;
                self.write().await?;
                self.loan.release();
            } else if self.client.closing || *shutdown.borrow() {
                return self.stream.shutdown().await;
            } else if !self.read(&mut shutdown).await? {
                return Ok(());
            }
        }
    }

    /// Reads what has arrived, or waits for it; false at the end.
    async fn read(&mut self, shutdown: &mut watch::Receiver<bool>) -> io::Result<bool> {
        let half_sent = self.reader.waiting_bytes() > 0;
        let patience = if half_sent { STALL_MAX } else { Duration::MAX };
        let buffer = self.reader.buffer();
        buffer.reserve(READ_BYTES);
        let read = tokio::select! {
            biased;
            // What it changed to is for the caller to see.
            changed = shutdown.changed() => return Ok(changed.is_ok()),
            read = timeout(patience, self.stream.read_buf(buffer)) => read??,
        };
        if read > 0 && !self.loan.cover(self.reader.waiting_bytes()) {
            self.refuse(out_of_memory()).await?;
            return Ok(false);
        }
        Ok(read > 0)
    }

    /// Takes up the commands that are here in full, up to a bound.
    fn take_up(&mut self) -> (Vec<Command>, VecDeque<Operation>) {
        let mut commands = Vec::new();
        let mut operations = VecDeque::new();
        while commands.len() < ROUND_COMMANDS_MAX && !self.client.closing {
            let answer = match self.reader.next_request() {
                Ok(None) => break,
                Ok(Some(request)) => step(&mut self.client, &self.shared, &request),
                Err(error) => {
                    self.client.closing = true;
                    Step::Answer(Answer::error(error.to_string()))
                }
            };
            // HELLO is answered in the dialect that it asks for.
            let dialect = self.client.dialect;
            let work = match answer {
                Step::Answer(answer) => Work::Answer(answer),
                Step::Data(data) => {
                    operations.push_back(data.operation);
                    Work::Data(data.shape)
                }
            };
            commands.push(Command { dialect, work });
        }
        (commands, operations)
    }

    /// Puts the answers to a round of commands in the output, in order. Writes them whenever they
    /// are many or large, so a deep pipeline of large values needs no more memory than one of its
    /// replies.
    async fn answer(
        &mut self,
        commands: Vec<Command>,
        mut operations: VecDeque<Operation>,
    ) -> io::Result<()> {
        let mut results = VecDeque::new();
        for command in commands {
            if self.output.len() > KEPT_BYTES {
                self.write().await?;
            }
            let answer = match command.work {
                Work::Answer(answer) => answer,
                Work::Data(shape) => {
                    if results.is_empty() {
                        self.loan.release();
                        results = self.ask(&mut operations).await;
                    }
                    let result = results.pop_front().expect("asking gives a result or more");
                    result.map_or_else(
                        |answer| answer,
                        |reply| shape.answer(reply, &self.shared.cursors),
                    )
                }
            };
            answer.encode(command.dialect, &mut self.output);
        }
        Ok(())
    }

    /// Asks the service for as many of the operations, from the first on, as go into one request
    /// and its reply. Removes these, and returns what came of each: at least one.
    async fn ask(
        &mut self,
        operations: &mut VecDeque<Operation>,
    ) -> VecDeque<Result<Reply, Answer>> {
        let batch: Vec<Operation> = operations.drain(..batch_length(operations)).collect();
        let count = batch.len();
        let read_only = batch.iter().all(Operation::is_read_only);
        let request = match <[Operation; 1]>::try_from(batch) {
            Ok([operation]) => Request::One(operation),
            Err(batch) => Request::Batch(batch),
        };
        let bytes = kv::encode_request(&request);
        let failed = match self.send(bytes, read_only).await {
            Ok(Response::One(reply)) => Ok(reply),
            Ok(Response::Batch(replies)) if !replies.is_empty() => {
                // What got no reply did not fit in, and is asked for again.
                if let Request::Batch(batch) = request {
                    for operation in batch.into_iter().skip(replies.len()).rev() {
                        operations.push_front(operation);
                    }
                }
                return replies.into_iter().map(Ok).collect();
            }
            Ok(Response::Batch(_)) => Err(unreadable()),
            Err(answer) => Err(answer),
        };
        (0..count).map(|_| failed.clone()).collect()
    }

    async fn send(&mut self, request: Bytes, read_only: bool) -> Result<Response, Answer> {
        if request.len() > self.shared.request_bytes_max {
            let limit = self.shared.request_bytes_max;
            let text =
                format!("the request is larger than the {limit} bytes that this cluster takes");
            return Err(Answer::error(text));
        }
        // The request is here twice, as it came and as it goes.
        let held = self.reader.waiting_bytes() + self.output.len() + 2 * request.len();
        if !self.loan.cover(held) {
            return Err(out_of_memory());
        }
        let reply = if read_only {
            self.backend.query(request).await
        } else {
            self.backend.call(request).await
        };
        let reply = reply.map_err(|error| failure(&error))?;
        // The reply, what is read out of it, and the answers made of that.
        if !self.loan.cover(held + 3 * reply.len()) {
            return Err(Answer::error("executed, but there is no memory for the reply"));
        }
        kv::decode_response(&reply).ok_or_else(unreadable)
    }

    /// Writes the output. A client that does not read is waited for, but not for ever, and nothing
    /// more is read from it meanwhile.
    async fn write(&mut self) -> io::Result<()> {
        if !self.loan.cover(self.reader.waiting_bytes() + self.output.len()) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        while !self.output.is_empty() {
            let written = timeout(STALL_MAX, self.stream.write_buf(&mut self.output)).await??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        if self.output.capacity() > KEPT_BYTES {
            self.output = BytesMut::new();
        }
        Ok(())
    }

    /// Says why the connection ends, and first lets go of what will not be served.
    async fn refuse(&mut self, answer: Answer) -> io::Result<()> {
        self.reader = RequestReader::new(self.shared.request_bytes_max);
        self.loan.release();
        answer.encode(self.client.dialect, &mut self.output);
        self.write().await
    }
}

/// How many operations, from the first on, go into one batch: at least one.
fn batch_length(operations: &VecDeque<Operation>) -> usize {
    let mut size = 0;
    let fits = |operation: &&Operation| {
        size += operation.size_bytes();
        size <= BATCH_BYTES_MAX
    };
    operations.iter().take_while(fits).count().max(1)
}

/// The answer to a command whose request failed: its code says whether it was executed.
fn failure(error: &CallError) -> Answer {
    let code = match error.outcome() {
        CallOutcome::NotExecuted => "TRYAGAIN",
        CallOutcome::Executed => "ERR",
        CallOutcome::Unknown => "UNKNOWN",
    };
    Answer::error_with(code, error.to_string())
}

fn unreadable() -> Answer {
    Answer::error_with("UNKNOWN", "the reply is not one of this version of the kv service")
}

fn out_of_memory() -> Answer {
    let text = "not executed: the gateway's memory for large requests and replies is in use";
    Answer::error_with("TRYAGAIN", text)
}
