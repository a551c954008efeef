//! One connection to a device: TCP, TLS where it is asked for, HTTP/1.1; fair to others and bounded.
//!
//! HTTP is spoken by hyper, and the bytes pass through here: whoever sends without end gives the others their turn, and
//! gets no further than [`HEAD_BYTES_MAX`] until a head of an answer has come. Without that a device could keep the
//! whole satellite busy with `100 Continue`. Nothing is spawned: the connection moves while somebody waits for it.

use std::future::{Future, Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready as when_ready};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_service::Service;

/// All that may come before and with the head of an answer: a TLS handshake, `100 Continue`, headers.
pub(super) const HEAD_BYTES_MAX: usize = 512 << 10;
/// What is read for one before others get their turn.
const TURN_BYTES: usize = 32 << 10;
/// What is read at once.
const READ_BYTES: usize = 64 << 10;
/// Headers of one answer.
const HEADERS_MAX: usize = 100;

/// Why an exchange failed; what it is for a device is the client's to say.
pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The connection, with the body of an answer on it.
pub(super) struct Connection {
    moving: Option<Moving>,
    sender: http1::SendRequest<Full<Bytes>>,
    body: Option<Incoming>,
    /// What may still come before the head of the answer is there.
    left: Arc<AtomicUsize>,
    from: Option<SocketAddr>,
}

type Moving = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

/// Hands out the addresses that passed the gate, whatever name is asked for.
#[derive(Clone)]
struct Approved(Vec<SocketAddr>);

impl Service<Name> for Approved {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        ready(Ok(self.0.clone().into_iter()))
    }
}

/// TLS with a device.
pub(super) struct Tls {
    /// Whom to trust.
    pub(super) config: Arc<ClientConfig>,
    /// Whom we mean.
    pub(super) name: ServerName<'static>,
}

impl Connection {
    /// Connects to one of these addresses, all of which passed the gate.
    pub(super) async fn open(addresses: Vec<SocketAddr>, tls: Option<Tls>) -> Result<Self, Error> {
        let port = addresses.first().map_or(0, SocketAddr::port);
        let mut connector = HttpConnector::new_with_resolver(Approved(addresses));
        connector.set_nodelay(true);
        // A name that stands for all of them: the connector asks for it, and never reads an address out of a URL.
        let to: Uri = format!("http://device:{port}/").parse()?;
        let tcp: TcpStream = TokioIo::into_inner(connector.call(to).await?);
        let from = tcp.peer_addr().ok();
        Ok(Self { from, ..Self::over(tcp, tls).await? })
    }

    /// The same over a stream that stands already.
    pub(super) async fn over<S>(stream: S, tls: Option<Tls>) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let left = Arc::new(AtomicUsize::new(HEAD_BYTES_MAX));
        let stream = Fair { inner: stream, read: 0, left: Arc::clone(&left) };
        let (sender, moving) = match tls {
            None => begin(stream).await?,
            Some(tls) => begin(TlsConnector::from(tls.config).connect(tls.name, stream).await?).await?,
        };
        Ok(Self { moving: Some(moving), sender, body: None, left, from: None })
    }

    /// Sends a request and reads the head of the answer.
    pub(super) async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Response<()>, Error> {
        self.left.store(HEAD_BYTES_MAX, Ordering::Relaxed);
        let sent = self.sender.send_request(request);
        let (head, body) = self.wait(sent).await?.into_parts();
        self.left.store(usize::MAX, Ordering::Relaxed);
        self.body = Some(body);
        Ok(Response::from_parts(head, ()))
    }

    /// Whether another request may follow: the last answer was read to its end, and the device keeps the connection.
    pub(super) async fn is_open(&mut self) -> bool {
        if self.body.is_some() {
            return false;
        }
        self.left.store(HEAD_BYTES_MAX, Ordering::Relaxed);
        std::future::poll_fn(|cx| {
            let Some(moving) = self.moving.as_mut() else { return Poll::Ready(false) };
            if moving.as_mut().poll(cx).is_ready() {
                self.moving = None;
                return Poll::Ready(false);
            }
            self.sender.poll_ready(cx).map(|ready| ready.is_ok())
        })
        .await
    }

    /// The address that answers.
    pub(super) fn from(&self) -> Option<SocketAddr> {
        self.from
    }

    /// The next piece of the body.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(mut body) = self.body.take() else { return Ok(None) };
        loop {
            let Some(frame) = self.wait(body.frame()).await else { return Ok(None) };
            // Trailers are no body.
            if let Ok(data) = frame?.into_data() {
                self.body = Some(body);
                return Ok(Some(data));
            }
        }
    }

    /// Waits for something that needs the connection to move.
    async fn wait<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            let has_ended = self.moving.as_mut().is_some_and(|moving| moving.as_mut().poll(cx).is_ready());
            if has_ended {
                // Its error comes with the work that waits for it.
                self.moving = None;
            }
            work.as_mut().poll(cx)
        })
        .await
    }
}

async fn begin<S>(stream: S) -> Result<(http1::SendRequest<Full<Bytes>>, Moving), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http1::Builder::new();
    http.max_headers(HEADERS_MAX).max_buf_size(READ_BYTES);
    let (sender, moving) = http.handshake(TokioIo::new(stream)).await?;
    Ok((sender, Box::pin(moving)))
}

/// A stream that gives others their turn and ends where nothing useful comes.
struct Fair<S> {
    inner: S,
    /// Since the last pause.
    read: usize,
    /// Until there is too much.
    left: Arc<AtomicUsize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Fair<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read >= TURN_BYTES {
            self.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_pending() {
            self.read = 0;
        }
        when_ready!(polled)?;
        let read = buf.filled().len() - before;
        self.read += read;
        let left = self.left.load(Ordering::Relaxed);
        if left == usize::MAX {
            return Poll::Ready(Ok(()));
        }
        if read > left {
            let what = format!("no head of an answer within {HEAD_BYTES_MAX} bytes");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        self.left.store(left - read, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Fair<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
