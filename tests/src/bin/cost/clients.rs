//! A satellite's end of the wire, for load: it sends frames that were encoded before and counts what is acknowledged.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::ServerName;
use satellite_shared::id::Epoch;
use satellite_shared::wire::to_relay::{Authenticate, Stream};
use satellite_shared::wire::{ToRelay, ToSatellite, version};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::crowd::Member;

const PATIENCE: Duration = Duration::from_secs(120);

/// One authenticated connection.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    credit: u64,
}

impl Wire {
    /// Connects from an address, authenticates, announces this epoch.
    ///
    /// # Errors
    /// With what the relay said.
    pub(crate) async fn connect(member: &Member, relay: SocketAddr, from: IpAddr, epoch: Epoch) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let tcp = socket.connect(relay).await.context("connecting")?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(std::sync::Arc::clone(&member.tls));
        let tls = connector.connect(ServerName::try_from("localhost")?, tcp).await.context("TLS")?;
        let mut request = format!("wss://localhost{}", version::PATH).into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(version::SUBPROTOCOL));
        let (socket, _) = tokio_tungstenite::client_async(request, tls).await.context("upgrade")?;
        let mut wire = Self { socket, credit: 0 };
        let ToSatellite::Hello(_) = wire.hear().await? else { bail!("HELLO comes first") };
        wire.say(&ToRelay::Authenticate(Authenticate {
            protocol: version::CURRENT,
            lease: member.lease.clone(),
            token: member.token.clone(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            hostname: "crowd".into(),
            // One program that comes again and again, not several that take turns.
            instance: member.lease.to_string(),
            clock_ms: satellite_tests::wait::wall_ms(),
            config_version: 0,
            generation: member.generation,
            streams: vec![Stream { epoch, boot_id: String::new(), opened_ms: 0, first_seq: 1, last_seq: 1 }],
        }))
        .await?;
        let ToSatellite::Authenticated(said) = wire.hear().await? else { bail!("AUTHENTICATED comes next") };
        wire.credit = said.credit_bytes;
        Ok(wire)
    }

    async fn say(&mut self, event: &ToRelay) -> Result<()> {
        self.write(Message::text(serde_json::to_string(event)?)).await?;
        self.flush().await
    }

    async fn write(&mut self, message: Message) -> Result<()> {
        use futures_util::SinkExt as _;
        Ok(self.socket.feed(message).await?)
    }

    async fn flush(&mut self) -> Result<()> {
        use futures_util::SinkExt as _;
        Ok(self.socket.flush().await?)
    }

    async fn hear(&mut self) -> Result<ToSatellite> {
        use futures_util::StreamExt as _;
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.context("the relay is silent")?;
            match message.context("the relay closed")?? {
                Message::Text(text) => {
                    let said = serde_json::from_str(&text)?;
                    if let ToSatellite::Refused(_) | ToSatellite::Error(_) = said {
                        bail!("the relay says: {said:?}");
                    }
                    return Ok(said);
                }
                Message::Close(frame) => bail!("the relay closed: {frame:?}"),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Announces descriptors.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn announce(&mut self, frames: Vec<Vec<u8>>) -> Result<()> {
        for frame in frames {
            self.write(Message::Binary(frame.into())).await?;
        }
        self.flush().await
    }

    /// Sends blocks within the credit until every one is acknowledged. Each is `(first record, records, bytes)`.
    ///
    /// # Errors
    /// When one is not taken.
    pub(crate) async fn stream(&mut self, blocks: Vec<(u64, u64, Bytes)>) -> Result<()> {
        let mut waiting: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let (mut unanswered, mut blocks) = (0_u64, blocks.into_iter().peekable());
        loop {
            while let Some((first, records, frame)) =
                blocks.next_if(|(_, _, frame)| unanswered + frame.len() as u64 <= self.credit)
            {
                unanswered += frame.len() as u64;
                waiting.insert(first, (records, frame.len() as u64));
                self.write(Message::Binary(frame)).await?;
            }
            self.flush().await?;
            if waiting.is_empty() {
                return Ok(());
            }
            match self.hear().await? {
                ToSatellite::Ack(ack) => {
                    self.credit = ack.credit_bytes;
                    for &(first, last) in ack.stored.iter().flat_map(|stored| stored.ranges.as_slice()) {
                        let done: Vec<u64> = waiting.range(first..=last).map(|(first, _)| *first).collect();
                        for (_, bytes) in done.iter().filter_map(|first| waiting.remove(first)) {
                            unanswered -= bytes;
                        }
                    }
                }
                ToSatellite::Nack(nack) => bail!("a block was not taken: {}", nack.message),
                ToSatellite::Hello(_)
                | ToSatellite::Authenticated(_)
                | ToSatellite::Refused(_)
                | ToSatellite::Config(_)
                | ToSatellite::Certificate(_)
                | ToSatellite::Heartbeat(_)
                | ToSatellite::Drain(_)
                | ToSatellite::Error(_) => {}
            }
        }
    }

    /// Answers pings and says nothing else, for ever.
    ///
    /// # Errors
    /// When the relay ends it.
    pub(crate) async fn idle(mut self) -> Result<()> {
        loop {
            self.hear().await?;
        }
    }

    /// Says farewell.
    pub(crate) async fn close(mut self) {
        // The relay may have gone first.
        self.socket.close(None).await.ok();
    }
}
