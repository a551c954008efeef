//! A line between satellite and relay that fails on demand.
//!
//! It listens on one port for as long as the test lives and passes bytes to wherever the relay is now, so that a relay
//! may come back on another port. TLS goes through untouched. Two threads a connection; a connection that was cut
//! while bytes were held never passes bytes again, as no real line would.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

/// How often a pump looks at what the test wants.
const LOOK: Duration = Duration::from_millis(10);
const CHUNK: usize = 16 << 10;

/// What a line does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// Passes them.
    #[default]
    Open,
    /// Takes connections and closes them at once.
    Refusing,
    /// Holds them: nothing arrives, nothing is closed; later they go on, as TCP does after an outage.
    Frozen,
    /// Loses them and says nothing: a half-open connection, which is dead for ever.
    Swallowing,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    target: Option<SocketAddr>,
    bytes_per_second: Option<u64>,
    delay: Duration,
    /// Bytes that may still go up before everything is cut.
    cut_in: Option<u64>,
    /// Bytes that may still go up before one is flipped.
    flip_in: Option<u64>,
    connections: Vec<Arc<Connection>>,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// Closed by the test or by an end.
    dead: AtomicBool,
    /// Half-open: what goes in is lost, and nobody is told.
    swallowed: AtomicBool,
}

impl Connection {
    fn passes(&self) -> bool {
        !self.dead.load(Ordering::Relaxed) && !self.swallowed.load(Ordering::Relaxed)
    }

    fn cut(&self) {
        self.dead.store(true, Ordering::Relaxed);
        for stream in [&self.client, &self.server] {
            // Closed already is as good as cut.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: AtomicBool,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    accepted: AtomicU64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The line.
#[derive(Debug)]
pub struct Link {
    port: u16,
    shared: Arc<Shared>,
}

impl Link {
    /// A line that leads nowhere yet.
    ///
    /// # Errors
    /// When no port is to be had.
    pub fn new() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the link")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &of_thread));
        Ok(Self { port, shared })
    }

    /// Where the satellite connects to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the relay is now; `None` while it is away.
    pub fn lead_to(&self, target: Option<SocketAddr>) {
        self.shared.state().target = target;
    }

    /// Passes bytes again; what was swallowed stays dead, and its two ends have yet to find out.
    pub fn mend(&self) {
        let mut state = self.shared.state();
        *state =
            State { target: state.target, connections: std::mem::take(&mut state.connections), ..State::default() };
    }

    /// Closes what is open and whatever comes.
    pub fn cut(&self) {
        self.shared.state().mode = Mode::Refusing;
        self.cut_once();
    }

    /// Closes what is open; new connections pass.
    pub fn cut_once(&self) {
        let connections = std::mem::take(&mut self.shared.state().connections);
        for connection in connections {
            connection.cut();
        }
    }

    /// Holds bytes until [`Link::mend`]: nothing is closed, nothing is lost.
    pub fn freeze(&self) {
        self.shared.state().mode = Mode::Frozen;
    }

    /// Loses bytes from now on and closes nothing: both ends are left with a half-open connection.
    pub fn swallow(&self) {
        let mut state = self.shared.state();
        state.mode = Mode::Swallowing;
        for connection in &state.connections {
            connection.swallowed.store(true, Ordering::Relaxed);
        }
    }

    /// Passes so many bytes a second, each way.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.shared.state().bytes_per_second = Some(bytes_per_second.max(1));
    }

    /// Passes each piece later.
    pub fn delay(&self, by: Duration) {
        self.shared.state().delay = by;
    }

    /// Cuts in the middle of whatever is going up, after so many more bytes, once.
    pub fn cut_after(&self, bytes_up: u64) {
        self.shared.state().cut_in = Some(bytes_up);
    }

    /// Flips a bit of what is going up, after so many more bytes, once.
    pub fn flip_after(&self, bytes_up: u64) {
        self.shared.state().flip_in = Some(bytes_up);
    }

    /// Bytes that went from satellite to relay.
    #[must_use]
    pub fn bytes_up(&self) -> u64 {
        self.shared.bytes_up.load(Ordering::Relaxed)
    }

    /// Bytes that went from relay to satellite.
    #[must_use]
    pub fn bytes_down(&self) -> u64 {
        self.shared.bytes_down.load(Ordering::Relaxed)
    }

    /// Connections that were made to it so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open through it now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.state().connections.iter().filter(|connection| connection.passes()).count()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A connection that can't be passed on is closed; the satellite notices and the test asks for more.
            drop(carry(client, &shared));
        });
    }
}

fn carry(client: TcpStream, shared: &Arc<Shared>) -> Result<()> {
    let target = loop {
        let (mode, target) = {
            let state = shared.state();
            (state.mode, state.target)
        };
        match (mode, target) {
            (Mode::Open, Some(target)) => break target,
            (Mode::Refusing, _) | (Mode::Open, None) => return Ok(()),
            (Mode::Frozen | Mode::Swallowing, _) if shared.ended.load(Ordering::Relaxed) => return Ok(()),
            (Mode::Frozen | Mode::Swallowing, _) => std::thread::sleep(LOOK),
        }
    };
    let server = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    }
    let connection =
        Arc::new(Connection { client, server, dead: AtomicBool::new(false), swallowed: AtomicBool::new(false) });
    {
        let mut state = shared.state();
        state.connections.retain(|other| !other.dead.load(Ordering::Relaxed));
        state.connections.push(Arc::clone(&connection));
    }
    let (of_thread, shared_of_thread) = (Arc::clone(&connection), Arc::clone(shared));
    let down = std::thread::spawn(move || pump(&of_thread, &shared_of_thread, false));
    pump(&connection, shared, true);
    if down.join().is_err() {
        connection.cut();
    }
    Ok(())
}

/// Moves bytes one way until one end closes or the test cuts.
fn pump(connection: &Connection, shared: &Shared, up: bool) {
    let (mut from, mut to) =
        if up { (&connection.client, &connection.server) } else { (&connection.server, &connection.client) };
    let counter = if up { &shared.bytes_up } else { &shared.bytes_down };
    let mut chunk = vec![0; CHUNK];
    while !connection.dead.load(Ordering::Relaxed) && !shared.ended.load(Ordering::Relaxed) {
        let (mode, size, pause) = {
            let state = shared.state();
            let per_look = |rate: u64| usize::try_from(rate / 50).unwrap_or(CHUNK).clamp(1, CHUNK);
            let pace = state.bytes_per_second.map_or(Duration::ZERO, |_| Duration::from_millis(20));
            (state.mode, state.bytes_per_second.map_or(CHUNK, per_look), pace + state.delay)
        };
        if mode == Mode::Frozen {
            std::thread::sleep(LOOK);
            continue;
        }
        let read = match from.read(&mut chunk[..size]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            // The end of a half-open connection does not reach the other side either.
            Ok(0) | Err(_) if connection.swallowed.load(Ordering::Relaxed) => {
                std::thread::sleep(LOOK);
                continue;
            }
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        std::thread::sleep(pause);
        // It may have been frozen while this piece was awaited.
        while shared.state().mode == Mode::Frozen && !shared.ended.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
        }
        if connection.swallowed.load(Ordering::Relaxed) {
            continue;
        }
        let cut = up && damage(&mut shared.state(), &mut chunk, read);
        if to.write_all(&chunk[..if cut { read / 2 } else { read }]).is_err() || cut {
            break;
        }
        counter.fetch_add(read as u64, Ordering::Relaxed);
    }
    connection.cut();
}

/// Flips a bit where the test wants one flipped; says whether to cut within this piece.
fn damage(state: &mut State, chunk: &mut [u8], read: usize) -> bool {
    let piece = read as u64;
    if let Some(left) = state.flip_in {
        state.flip_in = left.checked_sub(piece);
        if state.flip_in.is_none() {
            chunk[read / 2] ^= 0x10;
        }
    }
    if let Some(left) = state.cut_in {
        state.cut_in = left.checked_sub(piece);
        return state.cut_in.is_none();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::until_true;

    /// A server that says everything back.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    drop(std::io::copy(&mut &stream, &mut &stream));
                });
            }
        });
        address
    }

    fn connect(link: &Link) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", link.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream
    }

    fn says_back(mut stream: &TcpStream, text: &[u8]) -> bool {
        let mut back = vec![0; text.len()];
        stream.write_all(text).is_ok() && stream.read_exact(&mut back).is_ok() && back == text
    }

    #[test]
    fn an_open_link_passes_bytes_and_a_cut_one_closes() {
        let link = Link::new().unwrap();
        link.lead_to(Some(echo()));
        let stream = connect(&link);
        assert!(says_back(&stream, b"hello"));
        assert_eq!((link.bytes_up(), link.open()), (5, 1));
        link.cut();
        assert!(!says_back(&stream, b"hello"));
        assert!(!says_back(&connect(&link), b"hello"));
        link.mend();
        assert!(says_back(&connect(&link), b"again"));
    }

    #[test]
    fn a_frozen_link_closes_nothing_and_goes_on_afterwards() {
        let link = Link::new().unwrap();
        link.lead_to(Some(echo()));
        let stream = connect(&link);
        assert!(says_back(&stream, b"one"));
        link.freeze();
        (&stream).write_all(b"two").unwrap();
        assert_eq!((&stream).read(&mut [0; 3]).unwrap_err().kind(), ErrorKind::WouldBlock);
        link.mend();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut back = [0; 3];
        (&stream).read_exact(&mut back).unwrap();
        assert_eq!(&back, b"two");
    }

    #[test]
    fn a_swallowing_link_loses_bytes_for_ever() {
        let link = Link::new().unwrap();
        link.lead_to(Some(echo()));
        let stream = connect(&link);
        assert!(says_back(&stream, b"one"));
        link.swallow();
        assert!(!says_back(&stream, b"two"));
        link.mend();
        assert!(!says_back(&stream, b"three"));
        until_true("a new connection passes", Duration::from_secs(5), || Ok(says_back(&connect(&link), b"four")))
            .unwrap();
    }

    #[test]
    fn a_link_cuts_in_the_middle_of_a_piece() {
        let link = Link::new().unwrap();
        link.lead_to(Some(echo()));
        link.cut_after(3);
        let stream = connect(&link);
        assert!(!says_back(&stream, b"eight by"));
        assert!(says_back(&connect(&link), b"once only"));
    }
}
