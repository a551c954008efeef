//! Somebody who speaks to the satellites' door by hand, with an identity that was copied, forged, or none.
//!
//! [`Impostor::attempt`] never authenticates, so that it does not disturb the satellite whose identity it has. A
//! [`Session`] goes all the way and then says whatever it is told to. TLS sessions are remembered, so that an impostor
//! resumes where the relay lets it. [`forge`] makes frames that no satellite makes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use satellite_shared::id::Epoch;
use satellite_shared::secret::{Token, TokenKind};
use satellite_shared::wire::to_relay::{Authenticate, Stream, ToRelay};
use satellite_shared::wire::to_satellite::{Authenticated, ToSatellite};
use satellite_shared::wire::version;
use serde_json::Value;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use crate::wait::Deadline;

/// How soon a refusal follows the greeting.
const REFUSAL_WITHIN: Duration = Duration::from_secs(2);
/// What a busy relay may take to answer, and what an idle one may take to close.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(90);
/// How often a waiting session looks at the time.
const LOOK: Duration = Duration::from_millis(50);

/// The impostor.
#[derive(Debug, Clone)]
pub struct Impostor {
    tls: Arc<ClientConfig>,
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// TLS refused it.
    NoTls,
    /// TLS took it, the upgrade was refused.
    NoUpgrade,
    /// It was greeted and refused at once.
    Refused,
    /// It was greeted, and the relay waited for what it would say.
    WouldBeHeard,
}

/// What came of one attempt.
#[derive(Debug)]
pub struct Attempt {
    /// How far it came.
    pub reached: Reached,
    /// Whether TLS went on with an earlier session.
    pub resumed: bool,
    /// The last thing that was said or went wrong, for people.
    pub detail: String,
}

/// The identity file of a satellite, read as a thief would.
///
/// # Errors
/// When it is not there or of another form.
pub fn stolen_identity(state_dir: &Path) -> Result<Value> {
    let file = state_dir.join("identity/identity.json");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let all: Value = serde_json::from_str(&text)?;
    Ok(if all["identity"].is_object() { all["identity"].clone() } else { all })
}

impl Impostor {
    /// One that has an identity.
    ///
    /// # Errors
    /// When the identity can't be used.
    pub fn with_identity(identity: &Value) -> Result<Self> {
        let text = |field: &str| identity[field].as_str().with_context(|| format!("the identity has no {field}"));
        let chain = CertificateDer::pem_slice_iter(text("chain")?.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(text("key")?.as_bytes())?;
        let tls = builder(text("ca_bundle")?)?.with_client_auth_cert(chain, key)?;
        Ok(Self { tls: Arc::new(tls) })
    }

    /// One without a certificate, who trusts the relay all the same.
    ///
    /// # Errors
    /// When the authorities can't be read.
    pub fn without_certificate(identity: &Value) -> Result<Self> {
        let bundle = identity["ca_bundle"].as_str().context("the identity has no ca_bundle")?;
        Ok(Self { tls: Arc::new(builder(bundle)?.with_no_client_auth()) })
    }

    /// How it speaks TLS.
    #[must_use]
    pub fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    /// Connects, upgrades, waits for the relay's greeting.
    ///
    /// # Errors
    /// When there is nobody to connect to.
    pub fn attempt(&self, port: u16) -> Result<Attempt> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let connection = ClientConnection::new(Arc::clone(&self.tls), ServerName::try_from("localhost")?)?;
        let mut tls = StreamOwned::new(connection, stream);
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {}\r\n\r\n",
            version::PATH,
            version::SUBPROTOCOL
        );
        let mut answer = Vec::new();
        let mut ended = tls.write_all(request.as_bytes()).and_then(|()| tls.flush());
        let mut chunk = [0; 4096];
        while ended.is_ok() && !holds(&answer, "\"REFUSED\"") {
            if holds(&answer, "\"HELLO\"") {
                // A refusal would follow at once; who would be heard is waited for longer than this.
                tls.sock.set_read_timeout(Some(REFUSAL_WITHIN))?;
            }
            ended = tls.read(&mut chunk).and_then(|read| match read {
                0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => {
                    answer.extend_from_slice(&chunk[..read]);
                    Ok(())
                }
            });
        }
        let reached = match answer.as_slice() {
            [] => Reached::NoTls,
            said if holds(said, "\"REFUSED\"") => Reached::Refused,
            said if holds(said, "\"HELLO\"") => Reached::WouldBeHeard,
            _ => Reached::NoUpgrade,
        };
        let said = String::from_utf8_lossy(&answer).into_owned();
        let resumed = tls.conn.handshake_kind() == Some(HandshakeKind::Resumed);
        Ok(Attempt { reached, resumed, detail: format!("{said} {ended:?}") })
    }
}

/// TLS over a socket, as the impostor holds it.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

impl Impostor {
    /// TLS as far as it goes, from this address of this machine.
    ///
    /// # Errors
    /// When there is nobody to connect to, or TLS refuses the relay.
    pub fn tls_from(&self, from: Ipv4Addr, port: u16) -> Result<Tls> {
        let stream = connect(from, port)?;
        stream.set_read_timeout(Some(ANSWERED_WITHIN))?;
        stream.set_write_timeout(Some(ANSWERED_WITHIN))?;
        let connection = ClientConnection::new(Arc::clone(&self.tls), ServerName::try_from("localhost")?)?;
        Ok(StreamOwned::new(connection, stream))
    }

    /// Asks over TLS, and reads to the end.
    ///
    /// # Errors
    /// When there is nobody to ask, or no answer in time.
    pub fn request(&self, port: u16, text: &str) -> Result<String> {
        let mut tls = self.tls_from(Ipv4Addr::LOCALHOST, port)?;
        tls.write_all(text.as_bytes())?;
        tls.flush()?;
        let mut said = Vec::new();
        match tls.read_to_end(&mut said) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof && said.is_empty() => return Err(error.into()),
            Ok(_) | Err(_) => {}
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Connects and upgrades; the relay's greeting is the first thing to be heard.
    ///
    /// # Errors
    /// When it does not come so far.
    pub fn connect(&self, port: u16) -> Result<Session> {
        let tls = self.tls_from(Ipv4Addr::LOCALHOST, port)?;
        let mut request = format!("wss://localhost:{port}{}", version::PATH).into_client_request()?;
        let protocol = HeaderValue::from_static(version::SUBPROTOCOL);
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        let (mut socket, _) = tungstenite::client(request, tls).map_err(|error| anyhow::anyhow!("{error}"))?;
        socket.get_mut().sock.set_read_timeout(Some(LOOK))?;
        Ok(Session { socket })
    }

    /// Connects, authenticates with this, and is let in.
    ///
    /// # Errors
    /// With what was heard instead.
    pub fn enter(&self, port: u16, authenticate: Authenticate) -> Result<(Session, Authenticated)> {
        let mut session = self.connect(port)?;
        session.say(&ToRelay::Authenticate(authenticate))?;
        let welcome = session.hear_until("AUTHENTICATED", |event| {
            if let ToSatellite::Authenticated(welcome) = event { Some(welcome) } else { None }
        })?;
        Ok((session, welcome))
    }
}

/// A socket that is bound to this address of this machine.
///
/// # Errors
/// When there is nobody to connect to.
pub fn connect(from: Ipv4Addr, port: u16) -> Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::new(IpAddr::V4(from), 0))?;
    connect(&socket, &SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))?;
    Ok(TcpStream::from(socket))
}

/// What a satellite with this identity says first, of these epochs.
///
/// # Errors
/// When the identity is of another form.
pub fn authenticate(identity: &Value, epochs: &[Epoch]) -> Result<Authenticate> {
    let text = |field: &str| identity[field].as_str().with_context(|| format!("the identity has no {field}"));
    let stream = |&epoch: &Epoch| Stream { epoch, boot_id: String::new(), opened_ms: 0, first_seq: 1, last_seq: 1 };
    Ok(Authenticate {
        protocol: version::CURRENT,
        lease: text("lease")?.parse()?,
        token: Token::parse(TokenKind::Satellite, text("token")?)?,
        agent_version: "0.0.0".into(),
        hostname: "impostor".into(),
        instance: "impostor".into(),
        clock_ms: 0,
        config_version: 0,
        generation: identity["generation"].as_u64().unwrap_or(1),
        streams: epochs.iter().map(stream).collect(),
    })
}

/// A WebSocket to the relay that says what it is told to.
#[derive(Debug)]
pub struct Session {
    socket: WebSocket<Tls>,
}

/// What was heard.
#[derive(Debug)]
pub enum Heard {
    /// An event.
    Event(Box<ToSatellite>),
    /// The end, and how it was said.
    Closed(String),
    /// Nothing in time.
    Nothing,
}

impl Session {
    /// Says an event.
    ///
    /// # Errors
    /// When the relay takes nothing any more.
    pub fn say(&mut self, event: &ToRelay) -> Result<()> {
        self.text(&serde_json::to_string(event)?)
    }

    /// Says a text.
    ///
    /// # Errors
    /// When the relay takes nothing any more.
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.send(Message::text(text))
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the relay takes nothing any more.
    pub fn frame(&mut self, frame: &[u8]) -> Result<()> {
        self.send(Message::binary(frame.to_vec()))
    }

    /// Sends any message.
    ///
    /// # Errors
    /// When the relay takes nothing any more.
    pub fn send(&mut self, message: Message) -> Result<()> {
        match self.socket.send(message) {
            Err(tungstenite::Error::Io(error)) if is_a_wait(&error) => self.flush(),
            sent => Ok(sent?),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let deadline = Deadline::after(ANSWERED_WITHIN);
        loop {
            match self.socket.flush() {
                Err(tungstenite::Error::Io(error)) if is_a_wait(&error) && !deadline.has_passed() => {}
                flushed => return Ok(flushed?),
            }
        }
    }

    /// Sends bytes below the WebSocket: frames that no library writes.
    ///
    /// # Errors
    /// When the relay takes nothing any more.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let tls = self.socket.get_mut();
        tls.write_all(bytes)?;
        Ok(tls.flush()?)
    }

    /// The next thing.
    pub fn hear(&mut self, within: Duration) -> Heard {
        let deadline = Deadline::after(within);
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => match serde_json::from_str(&text) {
                    Ok(event) => return Heard::Event(Box::new(event)),
                    Err(error) => return Heard::Closed(format!("no event: {error}: {text}")),
                },
                Ok(Message::Close(frame)) => return Heard::Closed(format!("{frame:?}")),
                Ok(_) => {}
                Err(tungstenite::Error::Io(error)) if is_a_wait(&error) => {}
                Err(error) => return Heard::Closed(error.to_string()),
            }
            if deadline.has_passed() {
                return Heard::Nothing;
            }
        }
    }

    /// Listens until something is heard that is waited for.
    ///
    /// # Errors
    /// With what was heard instead, at the end or when time is up.
    pub fn hear_until<T>(&mut self, what: &str, mut pick: impl FnMut(ToSatellite) -> Option<T>) -> Result<T> {
        let deadline = Deadline::after(ANSWERED_WITHIN);
        let mut heard = Vec::new();
        while !deadline.has_passed() {
            match self.hear(LOOK) {
                Heard::Event(event) => {
                    heard.push(format!("{event:?}").chars().take(300).collect::<String>());
                    if let Some(picked) = pick(*event) {
                        return Ok(picked);
                    }
                }
                Heard::Closed(how) => bail!("closed ({how}) where {what} was awaited; heard {heard:?}"),
                Heard::Nothing => {}
            }
        }
        bail!("waited in vain for {what}; heard {heard:?}")
    }

    /// Listens to the end, and gives all that was said, each event as text, and how it ended.
    ///
    /// # Errors
    /// When there is no end.
    pub fn hear_the_end(&mut self) -> Result<String> {
        let deadline = Deadline::after(ANSWERED_WITHIN);
        let mut heard = String::new();
        while !deadline.has_passed() {
            match self.hear(LOOK) {
                Heard::Event(event) => heard.push_str(&format!("{event:?}\n").chars().take(400).collect::<String>()),
                Heard::Closed(how) => return Ok(heard + &how),
                Heard::Nothing => {}
            }
        }
        bail!("the session was not closed; heard {heard}")
    }

    /// The socket below, for what is not to be read or written in time.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.socket.get_ref().sock
    }
}

fn is_a_wait(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Frames as no satellite makes them.
pub mod forge {
    use satellite_shared::clock::Now;
    use satellite_shared::id::Epoch;
    use satellite_shared::metric::{Kind, Series};
    use satellite_shared::wire::block::{Body, ClockQuality, Encoder, FrameKind, Group, HEADER_BYTES, Stamp};

    use crate::wait;

    /// Which codec a forged payload claims.
    pub const RAW: u8 = 0;
    /// The other one.
    pub const ZSTD: u8 = 1;

    fn stamp(epoch: Epoch, first_seq: u64, due_before: u64) -> Stamp {
        let made = Now { wall_ms: wait::wall_ms(), mono_ms: wait::mono_ms() };
        Stamp { epoch, first_seq, due_before, made, quality: ClockQuality::Synchronised }
    }

    /// A good frame of samples of one series, all of this moment, whose epoch has no gaps.
    #[must_use]
    pub fn samples(epoch: Epoch, first_seq: u64, series: u32, values: &[f64]) -> Vec<u8> {
        let times_ms = (0..values.len()).map(|n| wait::wall_ms() + i64::try_from(n).unwrap_or_default()).collect();
        let group = Group { series: vec![series], times_ms, values: values.to_vec() };
        body(epoch, first_seq, first_seq.saturating_sub(1), &Body::Samples(vec![group]))
    }

    /// Any body in a frame.
    #[must_use]
    pub fn body(epoch: Epoch, first_seq: u64, due_before: u64, body: &Body) -> Vec<u8> {
        Encoder::default().encode(stamp(epoch, first_seq, due_before), body)
    }

    /// A series that may stand as it is, of a device that nobody has.
    #[must_use]
    pub fn series(name: &str, labels: &[(&str, &str)]) -> Series {
        let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let device = "forged".parse().unwrap_or_else(|_| unreachable!("a plain word is a device's name"));
        Series { device, name: name.to_owned(), kind: Kind::Gauge, unit: String::new(), labels }
    }

    /// The descriptor of one number.
    #[must_use]
    pub fn descriptor(epoch: Epoch, number: u32, series: Series) -> Vec<u8> {
        body(epoch, number.into(), 0, &Body::Series(vec![series]))
    }

    /// A frame with this payload, whatever it is, and this count and due count in its header.
    #[must_use]
    pub fn payload(kind: FrameKind, codec: u8, epoch: Epoch, first_seq: u64, count: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = body(epoch, first_seq, first_seq.saturating_sub(1), &Body::Series(Vec::new()));
        frame.truncate(HEADER_BYTES);
        frame[5] = kind as u8;
        frame[6] = codec;
        frame[8..12].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        frame[40..44].copy_from_slice(&count.to_le_bytes());
        frame[48..56].copy_from_slice(&u64::from(count).to_le_bytes());
        frame.extend_from_slice(payload);
        seal(frame)
    }

    /// The checksum of what the frame is now.
    #[must_use]
    pub fn seal(mut frame: Vec<u8>) -> Vec<u8> {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&frame[..12]);
        sum.update(&frame[16..]);
        frame[12..16].copy_from_slice(&sum.finalize().to_le_bytes());
        frame
    }
}

fn holds(answer: &[u8], word: &str) -> bool {
    answer.windows(word.len()).any(|window| window == word.as_bytes())
}

fn builder(ca_bundle: &str) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_bundle.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots))
}
