//! Somebody at the web door, for tests: real TLS, and HTTP written by hand so that it can be wrong.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) struct Visitor {
    address: SocketAddr,
    connector: TlsConnector,
}

impl Visitor {
    /// Trusts this authority alone.
    pub(crate) fn new(address: SocketAddr, ca_bundle: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_bundle.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { address, connector: TlsConnector::from(Arc::new(config)) }
    }

    /// A connection with TLS on it.
    pub(crate) async fn connect(&self, name: &'static str) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        self.connector.connect(ServerName::try_from(name).unwrap(), stream).await
    }

    /// Status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.say(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await
    }

    /// Status and body.
    pub(crate) async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        self.say(&(head + body)).await
    }

    /// Says this and reads to the end.
    pub(crate) async fn say(&self, request: &str) -> (u16, String) {
        let mut stream = self.connect("localhost").await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        answer(&mut stream).await
    }
}

/// What comes until the connection ends.
pub(crate) async fn answer(stream: &mut TlsStream<TcpStream>) -> (u16, String) {
    let mut bytes = Vec::new();
    // A connection that ends without TLS's goodbye has ended too.
    drop(stream.read_to_end(&mut bytes).await);
    let text = String::from_utf8(bytes).unwrap();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
