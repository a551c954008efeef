//! A relay that has gone over to the other side: it has the authority's keys, and says what the test wants.
//!
//! It opens the data directory of a relay that was stopped, so that the satellite trusts it, and speaks the real wire
//! from there. Whatever is not said here by the test is said as the real relay would.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use satellite_relay::authority::{Authority, Door, Names};
use satellite_relay::data_dir::DataDir;
use satellite_shared::clock::{Clock as _, SystemClock};
use satellite_shared::id::SatelliteId;
use satellite_shared::wire::to_relay::{Authenticate, ConfigStatus};
use satellite_shared::wire::to_satellite::{Authenticated, Config, Drain, Hello, ToSatellite};
use satellite_shared::wire::{ToRelay, version};
use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket, accept_hdr_with_config};

use crate::relay::Relay;
use crate::wait;

/// The satellite's longest back-off is five minutes; it is told to come back at once, so this is for a busy machine.
const COMES_WITHIN: Duration = Duration::from_secs(330);
const ANSWERS_WITHIN: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(50);

/// The relay.
#[derive(Debug)]
pub struct HostileRelay {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    satellite: SatelliteId,
}

/// A connection of the satellite's.
pub struct HostileSession {
    socket: WebSocket<StreamOwned<ServerConnection, TcpStream>>,
    satellite: SatelliteId,
    version: u64,
}

impl HostileRelay {
    /// Takes the place of a relay that was stopped or killed, for this satellite.
    ///
    /// # Errors
    /// When its authority can't be opened.
    pub fn instead_of(relay: &Relay, satellite: &str) -> Result<Self> {
        let data_dir = DataDir::open(&relay.data_dir())?;
        let now_ms = SystemClock.now().wall_ms;
        let authority = Authority::load_or_create(&data_dir, now_ms)?;
        authority.renew_server_certificate(&Names::of_this_machine(), now_ms)?;
        let tls = authority.server_config(Door::Satellites, Arc::new(SystemClock))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let hostile = Self { listener, tls, satellite: satellite.parse()? };
        relay.session.lead_to(Some(hostile.address()?));
        Ok(hostile)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel can't say.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// The satellite's next connection, upgraded; nothing is said yet.
    ///
    /// # Errors
    /// When it does not come.
    pub fn meet(&self) -> Result<HostileSession> {
        let met = wait::until("a connection of the satellite's", COMES_WITHIN, || match self.listener.accept() {
            Ok((tcp, _)) => Ok(self.upgrade(tcp).ok()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        });
        Ok(HostileSession { socket: met?, satellite: self.satellite.clone(), version: 1_000 })
    }

    fn upgrade(&self, tcp: TcpStream) -> Result<WebSocket<StreamOwned<ServerConnection, TcpStream>>> {
        tcp.set_nonblocking(false)?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        tcp.set_write_timeout(Some(Duration::from_secs(10)))?;
        let stream = StreamOwned::new(ServerConnection::new(Arc::clone(&self.tls))?, tcp);
        #[expect(clippy::result_large_err, reason = "tungstenite's own signature")]
        let subprotocol = |_: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            let spoken = HeaderValue::from_static(version::SUBPROTOCOL);
            response.headers_mut().insert("Sec-WebSocket-Protocol", spoken);
            Ok(response)
        };
        let unlimited = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let socket = accept_hdr_with_config(stream, subprotocol, Some(unlimited))
            .map_err(|error| anyhow::anyhow!("no upgrade: {error}"))?;
        socket.get_ref().sock.set_read_timeout(Some(LOOK))?;
        Ok(socket)
    }

    /// The satellite's next connection, greeted and let in.
    ///
    /// # Errors
    /// When it does not come, or does not authenticate.
    pub fn welcome(&self) -> Result<HostileSession> {
        // A connection may break while it is made: the satellite then comes again.
        wait::until("a session", COMES_WITHIN, || {
            let mut session = self.meet()?;
            Ok(session.let_in().is_ok().then_some(session))
        })
    }
}

/// A greeting as a real relay says it.
#[must_use]
pub fn hello() -> Hello {
    Hello {
        protocol_min: version::OLDEST,
        protocol_max: version::CURRENT,
        relay: "relay".into(),
        relay_version: "0.1.0".into(),
        clock_ms: SystemClock.now().wall_ms,
        heartbeat_s: 30,
    }
}

impl HostileSession {
    /// HELLO, AUTHENTICATE, AUTHENTICATED.
    ///
    /// # Errors
    /// When the satellite does not authenticate.
    pub fn let_in(&mut self) -> Result<Authenticate> {
        self.say(&ToSatellite::Hello(hello()))?;
        let said = self.hear("AUTHENTICATE", |event| match event {
            ToRelay::Authenticate(said) => Some(said),
            ToRelay::ConfigStatus(_) | ToRelay::Heartbeat(_) | ToRelay::Renew(_) | ToRelay::Error(_) => None,
        })?;
        self.say(&ToSatellite::Authenticated(self.authenticated()))?;
        Ok(said)
    }

    /// A welcome as a real relay says it that has stored nothing.
    #[must_use]
    pub fn authenticated(&self) -> Authenticated {
        Authenticated {
            satellite: self.satellite.clone(),
            session: "se_1".into(),
            stored: vec![],
            credit_bytes: 4 << 20,
            config_version: 1,
            renew_after_ms: i64::MAX,
        }
    }

    /// Says an event.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn say(&mut self, event: &ToSatellite) -> Result<()> {
        self.say_text(serde_json::to_string(event)?)
    }

    /// Says a text.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn say_text(&mut self, text: impl Into<String>) -> Result<()> {
        self.send(Message::text(text.into()))
    }

    /// Sends any message.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, message: Message) -> Result<()> {
        Ok(self.socket.send(message)?)
    }

    /// The next message, if one comes in a moment.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn message(&mut self) -> Result<Option<Message>> {
        match self.socket.read() {
            Ok(message) => Ok(Some(message)),
            Err(tungstenite::Error::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for an event; what else comes is read over.
    ///
    /// # Errors
    /// When it does not come, or the connection is gone.
    pub fn hear<T>(&mut self, what: &str, mut is: impl FnMut(ToRelay) -> Option<T>) -> Result<T> {
        wait::until(what, ANSWERS_WITHIN, || {
            let Some(Message::Text(text)) = self.message()? else { return Ok(None) };
            Ok(serde_json::from_str(text.as_str()).ok().and_then(&mut is))
        })
    }

    /// Sends a configuration and waits for what became of it.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn configure(&mut self, document: Value) -> Result<ConfigStatus> {
        self.version += 1;
        let version = self.version;
        self.say(&ToSatellite::Config(Config { version, document }))?;
        self.hear("CONFIG_STATUS", |event| match event {
            ToRelay::ConfigStatus(status) if status.version == version => Some(status),
            ToRelay::Authenticate(_)
            | ToRelay::ConfigStatus(_)
            | ToRelay::Heartbeat(_)
            | ToRelay::Renew(_)
            | ToRelay::Error(_) => None,
        })
    }

    /// Lets the satellite go, to come back at once.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn drain(&mut self) -> Result<()> {
        self.say(&ToSatellite::Drain(Drain { reason: "again".into(), reconnect_after_ms: 0, spread_ms: 0 }))
    }

    /// Reads until the satellite has closed.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_end(&mut self) -> Result<()> {
        wait::until_true("the satellite closes the session", ANSWERS_WITHIN, || Ok(self.message().is_err()))
    }

    /// Reads for so long.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn read_for(&mut self, time: Duration) -> Result<()> {
        let until = wait::Deadline::after(time);
        while !until.has_passed() {
            self.message()?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for HostileSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostileSession").field("version", &self.version).finish_non_exhaustive()
    }
}

/// A device of a configuration document.
///
/// # Errors
/// When `more` is no object.
pub fn device(name: &str, collector: &str, more: &Value) -> Result<Value> {
    let mut device = serde_json::json!({ "name": name, "collector": collector, "every": "1s", "timeout": "2s" });
    let (Some(fields), Some(more)) = (device.as_object_mut(), more.as_object()) else { bail!("not an object: {more}") };
    fields.extend(more.clone());
    Ok(device)
}

/// The satellite's own word on one device.
///
/// # Errors
/// When it has none of this name.
pub fn outcome(status: &Value, name: &str) -> Result<(String, String)> {
    let devices = status["devices"].as_array().context("no devices in the status")?;
    let device = devices.iter().find(|device| device["device"] == name).with_context(|| format!("no {name}"))?;
    let text = |field: &str| device[field].as_str().unwrap_or_default().to_owned();
    Ok((text("outcome"), text("detail")))
}
