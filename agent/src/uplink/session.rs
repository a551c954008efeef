//! The socket of one session around its [`Link`]: bytes in, bytes out, the buffer's answers.
//!
//! [`Session::step`] gives one happening at a time and can be dropped at any await: all that is under way stands in the
//! struct. Work on the buffer is done one piece after the other, in order, so that what was forgotten is not read again.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Sink as _, Stream as _};
use rustls::AlertDescription;
use satellite_shared::clock::Now;
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::ToRelay;
use satellite_shared::wire::to_relay::Stream;
use satellite_shared::wire::to_satellite::Stored;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::buffer::{Buffer, Place, ReadError, StoredBlock};
use crate::uplink::dial::{Socket, chain, rustls_error};
use crate::uplink::link::{Link, Next, Read, Way};

/// So much is taken from the link before the socket has to take it.
const OUT_BYTES_MAX: usize = 64 << 10;

/// So much may wait for the buffer before the socket is read again: a relay that talks faster than the disk works waits.
const JOBS_MAX: usize = 64;

/// One thing that happened.
#[derive(Debug)]
pub enum Step {
    /// A message came.
    Received(Message),
    /// The connection is gone.
    Broken {
        /// Why, for people.
        why: String,
        /// Whether the relay's TLS says that our certificate has ended.
        expired: bool,
    },
    /// The socket has taken everything.
    Written,
    /// The buffer has answered.
    Worked(Done),
}

/// What the buffer is asked.
#[derive(Debug)]
pub enum Job {
    /// What it holds, to say AUTHENTICATE in this protocol version.
    Streams(u32),
    /// Compare what the relay says that it stores.
    Compare(SatelliteId, Vec<Stored>),
    /// To delete what is committed.
    Forget(Epoch, Ranges),
    /// Blocks or series.
    Read(Read),
}

/// What the buffer answered.
#[derive(Debug)]
pub enum Done {
    /// What it holds.
    Streams(u32, Vec<Stream>),
    /// What came of comparing: records that the relay has lost.
    Compared(Result<u64, ReadError>),
    /// Deleted, or why not.
    Forgot(Result<(), ReadError>),
    /// Blocks.
    Blocks(Way, Place, Vec<StoredBlock>),
    /// Series frames, and the newest block when they were asked for.
    Series(u32, Vec<Bytes>, Place),
    /// Nothing, for now.
    Failed(Read, ReadError),
}

/// The session.
pub struct Session {
    /// What decides.
    pub link: Link,
    socket: Socket,
    buffer: Buffer,
    out: VecDeque<Message>,
    out_bytes: usize,
    flushed: bool,
    jobs: VecDeque<Job>,
    working: Option<BoxFuture<'static, Done>>,
    reading: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?})", self.link)
    }
}

impl Session {
    /// A session over a socket.
    #[must_use]
    pub fn new(link: Link, socket: Socket, buffer: Buffer) -> Self {
        Self {
            link,
            socket,
            buffer,
            out: VecDeque::new(),
            out_bytes: 0,
            flushed: true,
            jobs: VecDeque::new(),
            working: None,
            reading: false,
        }
    }

    /// Says an event.
    pub fn say(&mut self, now: Now, event: &ToRelay) {
        match serde_json::to_string(event) {
            Ok(text) => self.push(now, Message::text(text)),
            Err(error) => tracing::error!(%error, "an event could not be written"),
        }
    }

    /// Makes the relay show that it is there.
    pub fn ping(&mut self, now: Now) {
        self.push(now, Message::Ping(Bytes::new()));
    }

    /// Asks the buffer.
    pub fn ask(&mut self, job: Job) {
        self.jobs.push_back(job);
    }

    /// Gives the socket what the link has, as far as both have room.
    pub fn fill(&mut self, now: Now) {
        while !self.reading && self.out_bytes < OUT_BYTES_MAX {
            match self.link.next(now) {
                Next::Frame(frame) => self.push(now, Message::Binary(frame)),
                Next::Read(read) => {
                    self.reading = true;
                    self.jobs.push_back(Job::Read(read));
                }
                Next::Idle => return,
            }
        }
    }

    /// Whether everything that was there to send is sent and acknowledged.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        !self.reading && self.out.is_empty() && self.link.is_drained()
    }

    /// The next thing that happens.
    pub async fn step(&mut self) -> Step {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// Says what is still to be said, and farewell. What was acknowledged and is not yet deleted is sent again one day,
    /// and dropped by the relay.
    pub async fn close(mut self) {
        while !self.out.is_empty() || !self.flushed {
            if std::future::poll_fn(|cx| self.poll_write(cx)).await.is_err() {
                return;
            }
        }
        // The relay may have gone first.
        self.socket.close(None).await.ok();
    }

    fn push(&mut self, now: Now, message: Message) {
        self.link.on_said(now);
        self.out_bytes += message.len();
        self.out.push_back(message);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if let Poll::Ready(done) = self.poll_work(cx) {
            return Poll::Ready(Step::Worked(done));
        }
        let next = if self.jobs.len() < JOBS_MAX { Pin::new(&mut self.socket).poll_next(cx) } else { Poll::Pending };
        match next {
            Poll::Ready(Some(Ok(message))) => return Poll::Ready(Step::Received(message)),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(broken(&error)),
            Poll::Ready(None) => {
                return Poll::Ready(Step::Broken { why: "the relay closed the connection".into(), expired: false });
            }
            Poll::Pending => {}
        }
        if self.out.is_empty() && self.flushed {
            return Poll::Pending;
        }
        match ready!(self.poll_write(cx)) {
            Ok(()) => Poll::Ready(Step::Written),
            Err(error) => Poll::Ready(broken(&error)),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        while !self.out.is_empty() {
            ready!(Pin::new(&mut self.socket).poll_ready(cx))?;
            let Some(message) = self.out.pop_front() else { break };
            self.out_bytes -= message.len();
            self.flushed = false;
            Pin::new(&mut self.socket).start_send(message)?;
        }
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        if self.working.is_none() {
            let Some(job) = self.jobs.pop_front() else { return Poll::Pending };
            self.working = Some(work(self.buffer.clone(), job));
        }
        let Some(working) = &mut self.working else { return Poll::Pending };
        let done = ready!(working.poll_unpin(cx));
        self.working = None;
        if matches!(done, Done::Blocks(..) | Done::Series(..) | Done::Failed(..)) {
            self.reading = false;
        }
        Poll::Ready(done)
    }
}

fn work(buffer: Buffer, job: Job) -> BoxFuture<'static, Done> {
    async move {
        match job {
            Job::Streams(protocol) => Done::Streams(protocol, buffer.numbered().await),
            Job::Compare(satellite, stored) => Done::Compared(buffer.compare(&satellite, &stored).await),
            Job::Forget(epoch, ranges) => Done::Forgot(buffer.forget(epoch, &ranges).await),
            Job::Read(read @ Read::Blocks { way, from, below, bytes_max }) => {
                match buffer.read(from, below, bytes_max).await {
                    Ok(blocks) => Done::Blocks(way, below, blocks),
                    Err(error) => Done::Failed(read, error),
                }
            }
            Job::Read(read @ Read::Series { opening }) => {
                let newest = buffer.state().borrow().last;
                match buffer.series(opening).await {
                    Ok(frames) => Done::Series(opening, frames, newest),
                    Err(error) => Done::Failed(read, error),
                }
            }
        }
    }
    .boxed()
}

/// A certificate that the relay's TLS refuses may show only at the first reading.
fn broken(error: &WsError) -> Step {
    let expired =
        matches!(rustls_error(error), Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)));
    let why = if let WsError::Capacity(capacity) = error {
        format!("the relay sent too large a message: {capacity}")
    } else {
        format!("the connection broke: {}", chain(error))
    };
    Step::Broken { why, expired }
}
