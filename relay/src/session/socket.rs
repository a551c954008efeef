//! The WebSocket under a session: bounded in what it reads, in what it holds, and in how long it writes.
//!
//! Large events leave in small fragments, so that no connection keeps a large write buffer. Bytes that never become a
//! message (a flood of fragments) end the connection. A close lingers: a socket that is dropped with unread bytes
//! resets the connection, and the satellite would not hear why.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use satellite_shared::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Utf8Bytes};

use super::handshake;
use super::limits::Limits;
use super::machine::Closing;

/// Allocated for each connection, idle or not; grows to a block of 7,000 bytes where one comes.
const READ_BUFFER_BYTES: usize = 1 << 10;
const FRAGMENT_BYTES: usize = 16 << 10;
/// A fragment, its header, and a pong that may stand in line.
const WRITE_BUFFER_BYTES_MAX: usize = 4 * FRAGMENT_BYTES;
const DISCARDED_BYTES_MAX: u64 = 8 << 20;

/// One WebSocket.
#[derive(Debug)]
pub(super) struct Socket<S> {
    stream: WebSocketStream<Metered<S>>,
    limits: Arc<Limits>,
}

/// What came.
#[derive(Debug)]
pub(super) enum Incoming {
    Text(String),
    Binary(Bytes),
    Control,
    /// What no satellite sends.
    Garbage(&'static str),
    /// The other end closed or the connection broke.
    Gone(String),
}

/// Why something could not be said.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    #[error("the satellite takes nothing any more")]
    Stuck,
    #[error(transparent)]
    WebSocket(#[from] Box<WsError>),
}

impl From<WsError> for SocketError {
    fn from(error: WsError) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Waits for the upgrade and answers it.
    pub(super) async fn accept(stream: S, limits: Arc<Limits>) -> Result<Self, SocketError> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));
        let metered = Metered { stream, unfinished: 0, unfinished_max: limits.unfinished_bytes_max };
        let accept = tokio_tungstenite::accept_hdr_async_with_config(metered, handshake::upgrade, Some(config));
        let stream = timeout(limits.upgrade, accept).await.map_err(|_| SocketError::Stuck)??;
        Ok(Self { stream, limits })
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Incoming {
        let message = self.stream.next().await;
        self.stream.get_mut().unfinished = 0;
        match message {
            Some(Ok(Message::Text(text))) => Incoming::Text(text.as_str().to_owned()),
            Some(Ok(Message::Binary(frame))) => Incoming::Binary(frame),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Incoming::Control,
            Some(Ok(Message::Close(frame))) => Incoming::Gone(said(frame)),
            Some(Err(error)) => failed(&error),
            None => Incoming::Gone("closed".into()),
        }
    }

    /// Says an event.
    pub(super) async fn send(&mut self, event: String) -> Result<(), SocketError> {
        let saying = async {
            if event.len() <= FRAGMENT_BYTES {
                return self.stream.send(Message::Text(Utf8Bytes::from(event))).await;
            }
            let mut rest = Bytes::from(event);
            let mut opcode = Data::Text;
            while !rest.is_empty() {
                let part = rest.split_to(rest.len().min(FRAGMENT_BYTES));
                let frame = Frame::message(part, OpCode::Data(opcode), rest.is_empty());
                self.stream.send(Message::Frame(frame)).await?;
                opcode = Data::Continue;
            }
            Ok(())
        };
        Ok(timeout(self.limits.send, saying).await.map_err(|_| SocketError::Stuck)??)
    }

    /// Asks for a pong.
    pub(super) async fn ping(&mut self) -> Result<(), SocketError> {
        let ping = self.stream.send(Message::Ping(Bytes::new()));
        Ok(timeout(self.limits.send, ping).await.map_err(|_| SocketError::Stuck)??)
    }

    /// Says goodbye, and reads on for a moment so that it arrives.
    pub(super) async fn close(mut self, closing: Closing) {
        let frame =
            CloseFrame { code: CloseCode::from(closing.code()), reason: Utf8Bytes::from_static(closing.reason()) };
        let goodbye = async {
            self.stream.send(Message::Close(Some(frame))).await?;
            let stream = &mut self.stream.get_mut().stream;
            stream.shutdown().await?;
            tokio::io::copy(&mut stream.take(DISCARDED_BYTES_MAX), &mut tokio::io::sink()).await?;
            Ok::<_, WsError>(())
        };
        match timeout(self.limits.linger, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::trace!(%error, "the satellite was gone before the close"),
            Err(_) => tracing::trace!("the satellite did not answer the close"),
        }
    }
}

fn said(frame: Option<CloseFrame>) -> String {
    frame.map_or_else(
        || "the satellite closed".into(),
        |frame| {
            let reason: String = frame.reason.chars().filter(|c| !c.is_control()).take(80).collect();
            format!("the satellite closed: {} {reason}", u16::from(frame.code))
        },
    )
}

#[expect(clippy::wildcard_enum_match_arm, reason = "foreign enums that grow")]
fn failed(error: &WsError) -> Incoming {
    match error {
        WsError::Capacity(CapacityError::MessageTooLong { .. }) => Incoming::Garbage("a message that is too long"),
        WsError::Utf8(_) => Incoming::Garbage("text that is not UTF-8"),
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Incoming::Gone("the connection broke".into()),
        WsError::Protocol(_) => Incoming::Garbage("not WebSocket"),
        WsError::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Unfinished>()) => {
            Incoming::Garbage("fragments without end")
        }
        other => Incoming::Gone(other.to_string()),
    }
}

/// A stream that gives up on bytes which never become a message.
#[derive(Debug)]
struct Metered<S> {
    stream: S,
    unfinished: usize,
    unfinished_max: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("too many bytes without a whole message")]
struct Unfinished;

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.unfinished > self.unfinished_max {
            return Poll::Ready(Err(io::Error::other(Unfinished)));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.unfinished += buf.filled().len() - before;
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
