//! A line between satellite and relay that fails on demand.
//!
//! It listens on one port for as long as the test lives and passes bytes to wherever the relay is now, so that a relay
//! may come back on another port. TLS goes through untouched. Two threads a connection; a connection that was cut
//! while bytes were held never passes bytes again, as no real line would.
//!
//! A long line holds what is on its way and goes on taking: its delay costs no throughput. Lost packets are not made
//! here, since TCP mends them before anybody could see: see [`crate::network`].

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// How often a pump looks at what the test wants.
const LOOK: Duration = Duration::from_millis(10);
const CHUNK: usize = 16 << 10;
/// Between two pieces that are to arrive one by one.
const PIECE_PAUSE: Duration = Duration::from_micros(100);
/// What a line holds that is on its way, each way.
const ON_ITS_WAY_MAX: usize = 4 << 20;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From satellite to relay.
    Up,
    /// From relay to satellite.
    Down,
}

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
    /// The longest piece that is passed at once.
    piece: Option<usize>,
    /// Bytes that may still go before everything is cut, and which way.
    cut_in: Option<(Way, u64)>,
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
    /// Half-open: what goes up is lost, and nobody is told.
    swallowed_up: AtomicBool,
    /// The same of what comes down.
    swallowed_down: AtomicBool,
}

impl Connection {
    fn passes(&self) -> bool {
        !self.dead.load(Ordering::Relaxed) && !self.is_swallowed(Way::Up) && !self.is_swallowed(Way::Down)
    }

    fn swallowed(&self, way: Way) -> &AtomicBool {
        match way {
            Way::Up => &self.swallowed_up,
            Way::Down => &self.swallowed_down,
        }
    }

    fn is_swallowed(&self, way: Way) -> bool {
        self.swallowed(way).load(Ordering::Relaxed)
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
            connection.swallowed_up.store(true, Ordering::Relaxed);
            connection.swallowed_down.store(true, Ordering::Relaxed);
        }
    }

    /// Loses what goes this way on the connections that are open, and closes nothing; the other way passes, and so do
    /// new connections.
    pub fn swallow_one_way(&self, way: Way) {
        for connection in &self.shared.state().connections {
            connection.swallowed(way).store(true, Ordering::Relaxed);
        }
    }

    /// Passes so many bytes a second, each way.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.shared.state().bytes_per_second = Some(bytes_per_second.max(1));
    }

    /// Passes everything so much later, each way.
    pub fn delay(&self, by: Duration) {
        self.shared.state().delay = by;
    }

    /// Passes at most so many bytes at once, and each piece by itself.
    pub fn slice(&self, piece_bytes: usize) {
        self.shared.state().piece = Some(piece_bytes.max(1));
    }

    /// Cuts in the middle of whatever is going up, after exactly so many more bytes, once.
    pub fn cut_after(&self, bytes_up: u64) {
        self.cut_way_after(Way::Up, bytes_up);
    }

    /// Cuts in the middle of whatever is going this way, after exactly so many more bytes, once.
    pub fn cut_way_after(&self, way: Way, bytes: u64) {
        self.shared.state().cut_in = Some((way, bytes));
    }

    /// Whether a cut was asked for and has yet to come.
    #[must_use]
    pub fn is_cut_pending(&self) -> bool {
        self.shared.state().cut_in.is_some()
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
    let connection = Arc::new(Connection {
        client,
        server,
        dead: false.into(),
        swallowed_up: false.into(),
        swallowed_down: false.into(),
    });
    {
        let mut state = shared.state();
        state.connections.retain(|other| !other.dead.load(Ordering::Relaxed));
        state.connections.push(Arc::clone(&connection));
    }
    let (of_thread, shared_of_thread) = (Arc::clone(&connection), Arc::clone(shared));
    let down = std::thread::spawn(move || pump(&of_thread, &shared_of_thread, Way::Down));
    pump(&connection, shared, Way::Up);
    if down.join().is_err() {
        connection.cut();
    }
    Ok(())
}

/// Moves bytes one way until one end closes or the test cuts.
fn pump(connection: &Connection, shared: &Shared, way: Way) {
    let mut from = match way {
        Way::Up => &connection.client,
        Way::Down => &connection.server,
    };
    let mut chunk = vec![0; CHUNK];
    let mut on_its_way: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
    let mut held_bytes = 0;
    let mut ended = false;
    while !connection.dead.load(Ordering::Relaxed) && !shared.ended.load(Ordering::Relaxed) {
        let (mode, size, pause, delay) = {
            let state = shared.state();
            let per_look = |rate: u64| usize::try_from(rate / 50).unwrap_or(CHUNK).clamp(1, CHUNK);
            let pace = state.bytes_per_second.map_or(Duration::ZERO, |_| Duration::from_millis(20));
            (state.mode, state.bytes_per_second.map_or(CHUNK, per_look), pace, state.delay)
        };
        if mode == Mode::Frozen {
            std::thread::sleep(LOOK);
            continue;
        }
        while shared.state().mode != Mode::Frozen
            && let Some((_, piece)) = on_its_way.pop_front_if(|(due_ms, _)| *due_ms <= wait::mono_ms())
        {
            held_bytes -= piece.len();
            if !connection.is_swallowed(way) && !deliver(connection, shared, way, piece) {
                return connection.cut();
            }
        }
        if ended && on_its_way.is_empty() && !connection.is_swallowed(way) {
            break;
        }
        if ended || held_bytes >= ON_ITS_WAY_MAX {
            std::thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut chunk[..size]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Ok(0) | Err(_) => ended = true,
            Ok(read) => {
                held_bytes += read;
                let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                on_its_way.push_back((wait::mono_ms().saturating_add(delay_ms), chunk[..read].to_vec()));
                std::thread::sleep(pause);
            }
        }
    }
    connection.cut();
}

/// Passes a piece to its end; says whether the connection goes on.
fn deliver(connection: &Connection, shared: &Shared, way: Way, mut piece: Vec<u8>) -> bool {
    let (mut to, counter) = match way {
        Way::Up => (&connection.server, &shared.bytes_up),
        Way::Down => (&connection.client, &shared.bytes_down),
    };
    let (passed, cut, slice) = {
        let mut state = shared.state();
        let (passed, cut) = damage(&mut state, &mut piece, way);
        (passed, cut, state.piece)
    };
    for part in piece[..passed].chunks(slice.unwrap_or(CHUNK)) {
        if to.write_all(part).is_err() {
            return false;
        }
        counter.fetch_add(part.len() as u64, Ordering::Relaxed);
        if slice.is_some() {
            std::thread::sleep(PIECE_PAUSE);
        }
    }
    !cut
}

/// Flips a bit where the test wants one flipped; says how much of the piece passes, and whether the line is cut then.
fn damage(state: &mut State, piece: &mut [u8], way: Way) -> (usize, bool) {
    let len = piece.len() as u64;
    if let Some(left) = state.flip_in.filter(|_| way == Way::Up) {
        state.flip_in = left.checked_sub(len);
        if state.flip_in.is_none() {
            piece[piece.len() / 2] ^= 0x10;
        }
    }
    match state.cut_in.filter(|(of, _)| *of == way) {
        Some((_, left)) if left < len => {
            state.cut_in = None;
            (usize::try_from(left).unwrap_or(piece.len()), true)
        }
        Some((_, left)) => {
            state.cut_in = Some((way, left - len));
            (piece.len(), false)
        }
        None => (piece.len(), false),
    }
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

    /// What comes back until the connection ends.
    fn all_of(mut stream: &TcpStream) -> Vec<u8> {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut back = Vec::new();
        drop(stream.read_to_end(&mut back));
        back
    }

    #[test]
    fn a_link_cuts_in_the_middle_of_a_piece() {
        let link = Link::new().unwrap();
        link.lead_to(Some(echo()));
        link.cut_after(3);
        let stream = connect(&link);
        assert!(!says_back(&stream, b"eight by"));
        assert!(!link.is_cut_pending() && link.bytes_up() == 3);
        assert!(says_back(&connect(&link), b"once only"));
    }

    #[test]
    fn a_link_cuts_what_comes_down_at_the_byte() {
        let link = Link::new().unwrap();
        link.lead_to(Some(echo()));
        for bytes in [0, 1, 5] {
            link.cut_way_after(Way::Down, bytes);
            let stream = connect(&link);
            (&stream).write_all(b"eight by").unwrap();
            assert_eq!(all_of(&stream), b"eight by"[..usize::try_from(bytes).unwrap()]);
        }
    }

    #[test]
    fn a_long_link_passes_everything_later_and_holds_nothing_back() {
        let link = Link::new().unwrap();
        link.lead_to(Some(echo()));
        link.delay(Duration::from_millis(200));
        let stream = connect(&link);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let started = wait::mono_ms();
        // Twenty pieces: one after the other they would take eight seconds.
        for _ in 0..20 {
            (&stream).write_all(b"piece").unwrap();
            std::thread::sleep(Duration::from_millis(15));
        }
        let mut back = [0; 100];
        (&stream).read_exact(&mut back).unwrap();
        assert!(wait::mono_ms() - started >= 400, "each way is 200 ms long");
        assert_eq!(back.as_slice(), b"piece".repeat(20));
    }

    #[test]
    fn a_slicing_link_passes_the_same_bytes_one_by_one() {
        let link = Link::new().unwrap();
        link.lead_to(Some(echo()));
        link.slice(1);
        assert!(says_back(&connect(&link), b"in small pieces"));
    }

    #[test]
    fn a_link_that_swallows_one_way_passes_the_other() {
        let link = Link::new().unwrap();
        link.lead_to(Some(echo()));
        let stream = connect(&link);
        assert!(says_back(&stream, b"one"));
        link.swallow_one_way(Way::Down);
        assert!(!says_back(&stream, b"two"));
        assert_eq!((link.bytes_up(), link.bytes_down()), (6, 3));
        assert!(says_back(&connect(&link), b"three"));
    }
}
