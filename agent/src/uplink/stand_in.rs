//! What the tests of the uplink and the credential talk to: an authority, a TLS server on loopback, proxies.
//!
//! Real sockets, real TLS, real certificates. What a relay decides is not here; the journeys run the real one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use satellite_shared::id::{LeaseId, SatelliteId};
use satellite_shared::secret::{Token, TokenKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::credential::key::Key;
use crate::credential::keystore::Identity;
use crate::credential::pin::Pin;

pub(crate) const DAY_S: i64 = 24 * 3600;

/// What stands for a certificate's life: seconds before and after this moment.
#[derive(Clone, Copy)]
pub(crate) struct Life(pub(crate) i64, pub(crate) i64);

pub(crate) const GOOD: Life = Life(60, 7 * DAY_S);
pub(crate) const ENDED: Life = Life(7 * DAY_S, -3600);

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let (pem, certificate) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(params, key), certificate, pem }
    }

    pub(crate) fn pin(&self) -> String {
        Pin::of(&self.certificate).unwrap().to_string()
    }

    /// A client certificate for a request, leaf first, PEM.
    pub(crate) fn issue(&self, csr: &str, life: Life) -> String {
        let request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let mut params = lasting(life);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&request.public_key, &self.issuer).unwrap().pem() + &self.pem
    }

    /// A satellite of this authority that streams to an address.
    pub(crate) fn identity(&self, session: SocketAddr, life: Life) -> Identity {
        let key = Key::generate().unwrap();
        Identity {
            satellite: SatelliteId::from_bits([1; 10]),
            lease: LeaseId::from_bits([2; 10]),
            name: "attic".into(),
            token: Token::from_bits(TokenKind::Satellite, [3; 32]),
            relay: format!("https://{session}"),
            session_url: format!("wss://{session}"),
            ca_pin: self.pin(),
            chain: self.issue(&key.request().unwrap(), life),
            key,
            ca_bundle: self.pem.clone(),
            generation: 1,
            not_after_ms: now_ms() + life.1 * 1000,
            renew_after_ms: now_ms() + life.1 * 500 - 1000,
        }
    }

    /// A certificate for loopback.
    pub(crate) fn leaf(&self) -> CertificateDer<'static> {
        self.server_leaf(GOOD).0
    }

    fn server_leaf(&self, life: Life) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = lasting(life);
        let localhost = SanType::DnsName("localhost".try_into().unwrap());
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into()), localhost];
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }

    /// A server for loopback; `clients` must show a certificate of this authority.
    pub(crate) fn server(&self, life: Life, clients: bool) -> Arc<ServerConfig> {
        let (leaf, key) = self.server_leaf(life);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let builder = if clients {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.certificate.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = builder.with_single_cert(vec![leaf, self.certificate.clone()], key).unwrap();
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn lasting(Life(before_s, after_s): Life) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("leaf");
    let at = |offset_s: i64| {
        let seconds = now_ms() / 1000 + offset_s;
        let at = chrono::DateTime::from_timestamp(seconds, 0).unwrap();
        use chrono::Datelike as _;
        let day = |n: u32| u8::try_from(n).unwrap();
        let midnight = at.date_naive().and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp();
        rcgen::date_time_ymd(at.year(), day(at.month()), day(at.day()))
            + std::time::Duration::from_secs(u64::try_from(seconds - midnight).unwrap())
    };
    params.not_before = at(-before_s);
    params.not_after = at(after_s);
    params
}

pub(crate) fn now_ms() -> i64 {
    use satellite_shared::clock::{Clock as _, SystemClock};
    SystemClock.now().wall_ms
}

/// A TLS listener on loopback.
pub(crate) struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn start(tls: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, tls: TlsAcceptor::from(tls), address }
    }

    /// The next connection, or why its handshake failed.
    pub(crate) async fn accept(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let (tcp, _) = self.listener.accept().await?;
        self.tls.accept(tcp).await
    }

    /// One HTTP exchange: the request's head and body.
    pub(crate) async fn answer(&self, status: &str, body: &str) -> String {
        let mut stream = self.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        reply(&mut stream, status, body).await;
        request
    }
}

pub(crate) async fn reply(stream: &mut TlsStream<TcpStream>, status: &str, body: &str) {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.ok();
}

/// Head and body of one request.
pub(crate) async fn read_request(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = vec![];
    let mut piece = [0; 4096];
    loop {
        let n = stream.read(&mut piece).await.unwrap();
        bytes.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let Some(end) = text.find("\r\n\r\n") else { continue };
        let length = text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse().ok());
        if n == 0 || bytes.len() >= end + 4 + length.unwrap_or(0usize) {
            return String::from_utf8_lossy(&bytes).into_owned();
        }
    }
}

/// What a proxy was asked for, as it came.
pub(crate) type Asked = Arc<Mutex<Vec<String>>>;

/// An HTTP proxy that opens every way, or answers with a status.
pub(crate) async fn connect_proxy(refusal: Option<&'static str>) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Asked::default());
    let seen = Arc::clone(&asked);
    detached(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap().to_owned();
            seen.lock().unwrap().push(head);
            if let Some(status) = refusal {
                client.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.unwrap();
                continue;
            }
            let mut server = TcpStream::connect(target).await.unwrap();
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            detached(async move { copy_bidirectional(&mut client, &mut server).await.map_or((), |_| ()) });
        }
    });
    (address, asked)
}

/// A SOCKS 5 proxy that wants `bob` and `pw`, and opens every way.
pub(crate) async fn socks_proxy() -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Asked::default());
    let seen = Arc::clone(&asked);
    detached(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut some = [0; 3];
            client.read_exact(&mut some).await.unwrap();
            assert_eq!(some, [5, 1, 2], "one method, user and password");
            client.write_all(&[5, 2]).await.unwrap();
            let mut login = [0; 8];
            client.read_exact(&mut login).await.unwrap();
            let right = &login == b"\x01\x03bob\x02pw";
            client.write_all(&[1, u8::from(!right)]).await.unwrap();
            if !right {
                continue;
            }
            let mut head = [0; 4];
            client.read_exact(&mut head).await.unwrap();
            let host = if head[3] == 1 {
                std::net::Ipv4Addr::from(client.read_u32().await.unwrap()).to_string()
            } else {
                let mut name = vec![0; usize::from(client.read_u8().await.unwrap())];
                client.read_exact(&mut name).await.unwrap();
                String::from_utf8(name).unwrap()
            };
            let port = client.read_u16().await.unwrap();
            seen.lock().unwrap().push(format!("{host}:{port}"));
            let mut server = TcpStream::connect((host, port)).await.unwrap();
            client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0]).await.unwrap();
            detached(async move { copy_bidirectional(&mut client, &mut server).await.map_or((), |_| ()) });
        }
    });
    (address, asked)
}

#[expect(clippy::disallowed_methods, reason = "a test has no tracker")]
pub(crate) fn detached(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}
