//! A server that is not the relay, and keeps what it is told: the bytes as they came, and what they said under TLS.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::wait;

/// How long a visitor is listened to who says nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long its visitors may take to leave.
const LEFT_WITHIN: Duration = Duration::from_secs(60);

/// The server.
#[derive(Debug)]
pub struct FarEnd {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    raw: Mutex<Vec<u8>>,
    plain: Mutex<Vec<u8>>,
    visits: AtomicUsize,
    inside: AtomicUsize,
    ended: AtomicBool,
}

impl FarEnd {
    /// A server with this certificate.
    ///
    /// # Errors
    /// When no port is to be had.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the far end")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), Ok(connection)) = (stream, ServerConnection::new(Arc::clone(&config))) else {
                    continue;
                };
                of_thread.inside.fetch_add(1, Ordering::SeqCst);
                of_thread.visits.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&of_thread);
                std::thread::spawn(move || {
                    listen(stream, connection, &shared);
                    shared.inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(Self { port, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Who came so far.
    #[must_use]
    pub fn visits(&self) -> usize {
        self.shared.visits.load(Ordering::SeqCst)
    }

    /// Somebody came, said nothing under TLS, and none of these is in the bytes below.
    ///
    /// # Errors
    /// With what it was told.
    pub fn must_have_heard_nothing(&self, secrets: &[&str]) -> Result<()> {
        ensure!(self.visits() > 0, "nobody came");
        wait::until_true("the visitors leave", LEFT_WITHIN, || Ok(self.shared.inside.load(Ordering::SeqCst) == 0))?;
        let plain = self.shared.plain.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(plain.is_empty(), "it was told {:?}", String::from_utf8_lossy(&plain));
        let raw = self.shared.raw.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!raw.is_empty(), "nobody greeted it");
        for secret in secrets {
            let there = raw.windows(secret.len()).any(|window| window == secret.as_bytes());
            ensure!(!there, "a secret went out in clear");
        }
        Ok(())
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn listen(stream: TcpStream, connection: ServerConnection, shared: &Arc<Shared>) {
    if stream.set_read_timeout(Some(PATIENCE)).is_err() {
        return;
    }
    let mut tls = StreamOwned::new(connection, Recorder { stream, shared: Arc::clone(shared) });
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = tls.read(&mut chunk) {
        shared.plain.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..read]);
    }
}

/// A socket that keeps what it reads.
struct Recorder {
    stream: TcpStream,
    shared: Arc<Shared>,
}

impl Read for Recorder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.shared.raw.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
