//! Somebody between satellite and relay who can read, drop, repeat and reorder what they say.
//!
//! Mutual TLS leaves no such room; so the test hands over both ends' secrets, which it owns: the relay's certificate and
//! the satellite's identity. Two WebSockets, and dice in between. What it does to the messages no correct network
//! can do, but a lost connection at the worst moment looks like it: an acknowledgement that never came, a block that
//! came already, blocks in another order.
//!
//! Deliberately absent: changed bytes. TLS excludes them, and frames have their own checksum.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use satellite_shared::wire::version;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::impostor::{Impostor, stolen_identity};
use crate::rounds::Dice;
use crate::wait;

/// How often it looks whether something that it holds is due.
const LOOK: Duration = Duration::from_millis(20);
/// How long anything is held at most.
const HELD_MS_MAX: u64 = 2_500;

/// What it does, each in one case of so many; 0 for never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mischief {
    /// Loses an `ACK`.
    pub lose_ack: u64,
    /// Says an `ACK` again, later.
    pub repeat_ack: u64,
    /// Holds another event of the relay's back, so that later ones overtake it.
    pub hold_event: u64,
    /// Sends a frame again, later.
    pub repeat_frame: u64,
    /// Holds a frame back, so that later ones overtake it.
    pub hold_frame: u64,
    /// Cuts the connection instead of passing a message.
    pub cut: u64,
}

impl Mischief {
    /// All of it, as often as the dice say.
    #[must_use]
    pub fn drawn(dice: &mut Dice) -> Self {
        let mut one_in = |least: u64, more: u64| if dice.one_in(4) { 0 } else { least + dice.below(more) };
        Self {
            lose_ack: one_in(1, 4),
            repeat_ack: one_in(2, 4),
            hold_event: one_in(2, 6),
            repeat_frame: one_in(2, 4),
            hold_frame: one_in(2, 4),
            cut: one_in(12, 40),
        }
    }
}

/// How often it did what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deeds {
    /// Connections that it carried.
    pub carried: u64,
    /// `ACK`s that were lost.
    pub lost_acks: u64,
    /// `ACK`s that were said again.
    pub repeated_acks: u64,
    /// Other events that were overtaken.
    pub held_events: u64,
    /// Frames that were sent again.
    pub repeated_frames: u64,
    /// Frames that were overtaken.
    pub held_frames: u64,
    /// Connections that were cut.
    pub cuts: u64,
}

#[derive(Debug)]
struct State {
    mischief: Mischief,
    dice: Dice,
    deeds: Deeds,
    target: SocketAddr,
    connections: CancellationToken,
}

/// The man in the middle.
#[derive(Debug)]
pub struct Middleman {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    ended: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What it needs of both ends.
#[derive(Debug, Clone)]
struct Secrets {
    relay: PathBuf,
    satellite: PathBuf,
}

impl Middleman {
    /// Somebody who passes everything between a satellite and the relay's door, for now.
    ///
    /// # Errors
    /// When no port is to be had.
    pub fn new(relay_data_dir: &Path, satellite_state_dir: &Path, target: SocketAddr, dice: Dice) -> Result<Self> {
        let listener = StdListener::bind("127.0.0.1:0").context("a port for the middleman")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let connections = CancellationToken::new();
        let state = State { mischief: Mischief::default(), dice, deeds: Deeds::default(), target, connections };
        let state = Arc::new(Mutex::new(state));
        let ended = CancellationToken::new();
        let secrets = Secrets { relay: relay_data_dir.to_owned(), satellite: satellite_state_dir.to_owned() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (of_thread, stop) = (Arc::clone(&state), ended.clone());
        let thread = std::thread::spawn(move || {
            // Whoever is carried is cut with the runtime.
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, secrets, of_thread) => {}
                    () = stop.cancelled() => {}
                }
            });
        });
        Ok(Self { address, state, ended, thread: Some(thread) })
    }

    /// Where the satellite's line has to lead.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this from now on.
    pub fn behave(&self, mischief: Mischief) {
        self.state().mischief = mischief;
    }

    /// Cuts what it carries; what it held is lost.
    pub fn cut_once(&self) {
        let mut state = self.state();
        state.connections.cancel();
        state.connections = CancellationToken::new();
    }

    /// What it did so far.
    #[must_use]
    pub fn deeds(&self) -> Deeds {
        self.state().deeds
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Middleman {
    fn drop(&mut self) {
        self.ended.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: StdListener, secrets: Secrets, state: Arc<Mutex<State>>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let carried = TaskTracker::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (secrets, state) = (secrets.clone(), Arc::clone(&state));
        let cut = lock(&state).connections.clone();
        carried.spawn(async move {
            tokio::select! {
                // What can't be carried is closed; the satellite comes again.
                end = carry(stream, secrets, &state) => drop(end),
                () = cut.cancelled() => {}
            }
        });
    }
}

async fn carry(satellite: TcpStream, secrets: Secrets, state: &Mutex<State>) -> Result<()> {
    satellite.set_nodelay(true)?;
    let tls = TlsAcceptor::from(Arc::new(relay_tls(&secrets.relay)?));
    let satellite = tls.accept(satellite).await?;
    #[expect(clippy::result_large_err, reason = "the shape that the upgrade's callback has")]
    let upgrade = |_: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(version::SUBPROTOCOL));
        Ok(response)
    };
    let satellite = tokio_tungstenite::accept_hdr_async(satellite, upgrade).await?;

    let target = lock(state).target;
    let identity = stolen_identity(&secrets.satellite)?;
    let tls = TlsConnector::from(Impostor::with_identity(&identity)?.tls());
    let relay = TcpStream::connect(target).await?;
    relay.set_nodelay(true)?;
    let relay = tls.connect(ServerName::try_from("localhost")?, relay).await?;
    let uri = format!("wss://localhost:{}{}", target.port(), version::PATH).parse()?;
    let request = ClientRequestBuilder::new(uri).with_sub_protocol(version::SUBPROTOCOL);
    let (relay, _) = tokio_tungstenite::client_async(request, relay).await?;
    lock(state).deeds.carried += 1;
    pass(satellite, relay, state).await
}

/// TLS as the relay has it at its satellites' door.
fn relay_tls(data_dir: &Path) -> Result<ServerConfig> {
    let read = |name: &str| std::fs::read(data_dir.join("authority").join(name)).with_context(|| name.to_owned());
    let (server, authority) = (read("server.pem")?, read("authority.pem")?);
    let key = PrivateKeyDer::from_pem_slice(&server)?;
    let authority = CertificateDer::from_pem_slice(&authority)?;
    let chain = vec![CertificateDer::from_pem_slice(&server)?, authority.clone()];
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?)
}

/// What becomes of a message.
#[derive(Debug, Default)]
struct Fate {
    now: bool,
    /// Passed, or passed once more, after so many milliseconds.
    later_ms: Option<u64>,
    cut: bool,
}

/// Passes messages both ways, as the dice want it.
async fn pass<S, R>(
    mut satellite: WebSocketStream<S>,
    mut relay: WebSocketStream<R>,
    state: &Mutex<State>,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let mut held: Vec<(u64, bool, Message)> = Vec::new();
    loop {
        let (up, message) = tokio::select! {
            message = satellite.next() => (true, message),
            message = relay.next() => (false, message),
            () = tokio::time::sleep(LOOK) => {
                for (_, up, message) in held.extract_if(.., |(due_ms, ..)| *due_ms <= wait::mono_ms()) {
                    if up { relay.send(message).await? } else { satellite.send(message).await? }
                }
                continue;
            }
        };
        // The end of one side is the end of the other.
        let Some(message) = message.transpose()? else { return Ok(()) };
        if matches!(message, Message::Ping(_) | Message::Pong(_)) {
            // Each side's own WebSocket answers.
            continue;
        }
        let fate = fate_of(&mut lock(state), up, &message);
        if fate.cut {
            return Ok(());
        }
        if let Some(ms) = fate.later_ms {
            held.push((wait::mono_ms() + ms, up, message.clone()));
        }
        if fate.now {
            let closing = message.is_close();
            if up {
                relay.send(message).await?
            } else {
                satellite.send(message).await?
            }
            if closing {
                return Ok(());
            }
        }
    }
}

fn fate_of(state: &mut State, up: bool, message: &Message) -> Fate {
    let State { mischief, dice, deeds, .. } = state;
    let mut strikes = |one_in: u64| one_in > 0 && dice.one_in(one_in);
    if strikes(mischief.cut) {
        deeds.cuts += 1;
        return Fate { cut: true, ..Fate::default() };
    }
    let event = event_of(message);
    let (held, repeated, lost) = match (up, event.as_deref()) {
        (true, None) if message.is_binary() => (strikes(mischief.hold_frame), strikes(mischief.repeat_frame), false),
        (false, Some("ACK")) => (false, strikes(mischief.repeat_ack), strikes(mischief.lose_ack)),
        // The order of these is the protocol's.
        (_, Some("HELLO" | "AUTHENTICATE" | "AUTHENTICATED" | "REFUSED")) => (false, false, false),
        (false, Some(_)) => (strikes(mischief.hold_event), false, false),
        _ => (false, false, false),
    };
    let counter = match (up, event.as_deref()) {
        _ if lost => Some(&mut deeds.lost_acks),
        (true, _) if held => Some(&mut deeds.held_frames),
        (false, _) if held => Some(&mut deeds.held_events),
        (true, _) if repeated => Some(&mut deeds.repeated_frames),
        (false, _) if repeated => Some(&mut deeds.repeated_acks),
        _ => None,
    };
    if let Some(counter) = counter {
        *counter += 1;
    }
    let later = (held || repeated) && !lost;
    Fate { now: !held && !lost, later_ms: later.then(|| 1 + dice.below(HELD_MS_MAX)), cut: false }
}

/// The name of an event; none for a frame.
fn event_of(message: &Message) -> Option<String> {
    let Message::Text(text) = message else { return None };
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    value["event"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(mischief: Mischief) -> State {
        State {
            mischief,
            dice: Dice::new(1),
            deeds: Deeds::default(),
            target: "127.0.0.1:1".parse().unwrap(),
            connections: CancellationToken::new(),
        }
    }

    #[test]
    fn an_honest_middleman_passes_everything_at_once() {
        let mut state = state(Mischief::default());
        for message in [Message::binary(vec![1]), Message::text("{\"event\": \"ACK\"}")] {
            let fate = fate_of(&mut state, message.is_binary(), &message);
            assert!(fate.now && fate.later_ms.is_none() && !fate.cut);
        }
        assert_eq!(state.deeds, Deeds::default());
    }

    #[test]
    fn acknowledgements_are_lost_and_frames_are_repeated_and_overtaken() {
        let ack = Message::text("{\"event\": \"ACK\", \"data\": {}}");
        let mut loses = state(Mischief { lose_ack: 1, repeat_ack: 1, ..Mischief::default() });
        let fate = fate_of(&mut loses, false, &ack);
        assert!(!fate.now && fate.later_ms.is_none());
        assert_eq!(loses.deeds.lost_acks, 1);

        let frame = Message::binary(vec![1]);
        let mut repeats = state(Mischief { repeat_frame: 1, ..Mischief::default() });
        let fate = fate_of(&mut repeats, true, &frame);
        assert!(fate.now && fate.later_ms.is_some());
        let mut holds = state(Mischief { hold_frame: 1, ..Mischief::default() });
        let fate = fate_of(&mut holds, true, &frame);
        assert!(!fate.now && fate.later_ms.is_some());
    }

    #[test]
    fn what_opens_a_session_is_left_alone() {
        let mut state = state(Mischief { hold_event: 1, repeat_frame: 1, hold_frame: 1, ..Mischief::default() });
        for (up, name) in [(false, "HELLO"), (true, "AUTHENTICATE"), (false, "AUTHENTICATED")] {
            let fate = fate_of(&mut state, up, &Message::text(format!("{{\"event\": \"{name}\"}}")));
            assert!(fate.now && fate.later_ms.is_none(), "{name}");
        }
    }
}
