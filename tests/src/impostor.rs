//! Somebody who speaks TLS and the upgrade to the satellites' door by hand, with an identity that was copied or none.
//!
//! It never authenticates, so that it does not disturb the satellite whose identity it has. Its TLS sessions are
//! remembered, so that it resumes where the relay lets it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use satellite_shared::wire::version;
use serde_json::Value;

/// How soon a refusal follows the greeting.
const REFUSAL_WITHIN: Duration = Duration::from_secs(2);

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
