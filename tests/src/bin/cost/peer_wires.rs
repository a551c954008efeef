//! The peers' protocols, as little of each as it takes to send a load and see it acknowledged.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use satellite_tests::relay::Relay;

use crate::Plan;
use crate::crowd::{self, Member};
use crate::ingest::{self, SENDERS, SETTINGS};
use crate::rivals::{Rival, Running, free_port};
use crate::table::Report;
use crate::workload::{self, Poll, SERIES};

/// Messages that a sender has unanswered.
const WINDOW: usize = 64;
/// What a database does after its last answer is part of the work.
const AFTERWARDS: Duration = Duration::from_secs(6);

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// How a peer wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    RemoteWrite,
    JetStream,
    Mqtt,
}

impl Target {
    /// One poll, framed.
    pub(crate) fn message(self, sender: usize, poll: &Poll) -> Vec<u8> {
        let (mut head, body) = match self {
            Self::RemoteWrite => {
                let body = workload::remote_write(sender, poll);
                let head = format!(
                    "POST /api/v1/write HTTP/1.1\r\nHost: x\r\nContent-Encoding: snappy\r\n\
                     Content-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                (head.into_bytes(), body)
            }
            Self::JetStream => {
                let mut body = workload::lines(sender, poll);
                let head = format!("PUB s.{sender} _INBOX.{sender} {}\r\n", body.len());
                body.extend_from_slice(b"\r\n");
                (head.into_bytes(), body)
            }
            Self::Mqtt => {
                let text = workload::lines(sender, poll);
                let mut body = Vec::with_capacity(text.len() + 16);
                mqtt_text(&mut body, &format!("sat/{sender}"));
                body.extend_from_slice(&1_u16.to_be_bytes());
                body.extend_from_slice(&text);
                (mqtt_head(0x32, body.len()), body)
            }
        };
        head.extend_from_slice(&body);
        head
    }
}

/// Takes a rival's figures, or says why there are none.
pub(crate) fn measure_ingest(
    plan: Plan,
    polls: u64,
    rival: Rival,
    runtime: &tokio::runtime::Runtime,
    report: &mut Report,
) {
    if let Err(why) = rival.find() {
        for row in ingest::ROWS {
            report.skipped(row, rival.name(), &format!("{why:#}"));
        }
        return;
    }
    if let Err(error) = ingest_rounds(plan, polls, rival, runtime, report) {
        report.failed_for("relay-cpu", rival.name(), &format!("{error:#}"));
    }
}

fn ingest_rounds(
    plan: Plan,
    polls: u64,
    rival: Rival,
    runtime: &tokio::runtime::Runtime,
    report: &mut Report,
) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("cost-").tempdir()?;
    let server = Server::start(rival, dir.path(), SENDERS, runtime)?;
    let (mut cpu, mut rate) = (Vec::new(), Vec::new());
    // The first round makes the series; it is not shown.
    for round in 0..=plan.rounds {
        let loads = ingest::peer_loads(polls, u64::from(round), server.target);
        let start = server.running.meter.start();
        std::thread::scope(|scope| {
            let server = &server;
            let spawn = |(sender, load)| scope.spawn(move || server.send(sender, load));
            let senders: Vec<_> = loads.into_iter().enumerate().map(spawn).collect();
            senders.into_iter().try_for_each(|sender| sender.join().unwrap_or_else(|_| bail!("a sender panicked")))
        })?;
        let (_, wall_s) = server.running.meter.since(start);
        if rival == Rival::VictoriaMetrics {
            std::thread::sleep(if plan.quick { Duration::from_secs(1) } else { AFTERWARDS });
        }
        let (cpu_s, _) = server.running.meter.since(start);
        if round > 0 {
            let samples = (polls * SENDERS as u64 * SERIES as u64) as f64;
            cpu.push(cpu_s * 1e6 / samples);
            rate.push(samples / wall_s);
        }
    }
    let how = match rival {
        Rival::VictoriaMetrics => "remote write without TLS, parsed and indexed, flushed after the answer",
        Rival::Nats => "JetStream file, mutual TLS, opaque text, acknowledged before any fsync",
        Rival::Mosquitto => "QoS 1, mutual TLS, opaque text, no subscriber: dropped",
        Rival::NodeExporter | Rival::Vmagent | Rival::PrometheusAgent | Rival::Collectd => "",
    };
    report.add("relay-cpu", rival.name(), cpu, format!("{how}; {}", rival.version()));
    report.add("relay-ceiling", rival.name(), rate, how);
    Ok(())
}

/// A rival that takes what others send.
#[derive(Debug)]
pub(crate) struct Server {
    pub running: Running,
    pub target: Target,
    port: u16,
    members: Vec<Member>,
}

impl Server {
    /// Starts it on loopback; those that can demand client certificates do, of our own authority.
    ///
    /// # Errors
    /// With what did not start.
    pub(crate) fn start(rival: Rival, dir: &Path, members: usize, runtime: &tokio::runtime::Runtime) -> Result<Self> {
        let port = free_port()?;
        let data = dir.join("data");
        std::fs::create_dir_all(&data)?;
        let data_text = data.display();
        let (arguments, target, tls) = match rival {
            Rival::VictoriaMetrics => (
                vec![format!("-httpListenAddr=127.0.0.1:{port}"), format!("-storageDataPath={data_text}")],
                Target::RemoteWrite,
                false,
            ),
            Rival::Nats => {
                let config = format!(
                    "listen: \"127.0.0.1:{port}\"\nmax_payload: 8MB\nmax_pending: 256MB\n\
                     jetstream {{ store_dir: \"{data_text}\", max_file_store: 20GB }}\n\
                     tls {{ cert_file: \"{0}/server.crt\", key_file: \"{0}/server.key\", ca_file: \"{0}/ca.crt\", \
                     verify: true, timeout: 30 }}\n",
                    dir.display()
                );
                std::fs::write(dir.join("nats.conf"), config)?;
                (vec!["-c".into(), dir.join("nats.conf").display().to_string()], Target::JetStream, true)
            }
            Rival::Mosquitto => {
                let config = format!(
                    "listener {port} 127.0.0.1\ncafile {0}/ca.crt\ncertfile {0}/server.crt\nkeyfile {0}/server.key\n\
                     require_certificate true\nuse_identity_as_username true\nallow_anonymous true\npersistence true\n\
                     persistence_location {data_text}/\nmax_inflight_messages 0\nmax_queued_messages 0\n\
                     set_tcp_nodelay true\n{1}",
                    dir.display(),
                    if rustix::process::getuid().is_root() { "user root\n" } else { "" }
                );
                std::fs::write(dir.join("mosquitto.conf"), config)?;
                (vec!["-c".into(), dir.join("mosquitto.conf").display().to_string()], Target::Mqtt, true)
            }
            Rival::NodeExporter | Rival::Vmagent | Rival::PrometheusAgent | Rival::Collectd => {
                bail!("{} takes nothing", rival.name())
            }
        };
        let members = if tls { certificates(dir, members, runtime)? } else { Vec::new() };
        let running = rival.start(dir, &arguments, Some(port))?;
        let server = Self { running, target, port, members };
        if rival == Rival::Nats {
            server.make_stream()?;
        }
        Ok(server)
    }

    fn tls(&self, number: usize) -> Result<Arc<ClientConfig>> {
        Ok(Arc::clone(&self.members.get(number % self.members.len().max(1)).context("an identity")?.tls))
    }

    /// One connection that has said who it is.
    ///
    /// # Errors
    /// When it is not taken.
    pub(crate) fn connect(&self, number: usize) -> Result<Tls> {
        let mut tcp = TcpStream::connect(("127.0.0.1", self.port))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(Duration::from_secs(120)))?;
        if self.target == Target::JetStream {
            // nats says who it is before TLS; nothing else comes until it is answered.
            read_line(&mut tcp)?;
        }
        let connection = ClientConnection::new(self.tls(number)?, ServerName::try_from("localhost")?)?;
        let mut tls = StreamOwned::new(connection, tcp);
        if self.target == Target::JetStream {
            tls.write_all(
                b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"raw\",\"version\":\"1\"}\r\nPING\r\n",
            )?;
            tls.flush()?;
            while read_line(&mut tls)? != "PONG\r\n" {}
        } else {
            let mut body = Vec::new();
            mqtt_text(&mut body, "MQTT");
            body.extend_from_slice(&[4, 2, 0, 0]);
            mqtt_text(&mut body, &format!("sat{number:05}"));
            let mut packet = mqtt_head(0x10, body.len());
            packet.extend_from_slice(&body);
            tls.write_all(&packet)?;
            tls.flush()?;
            let mut answer = [0; 4];
            tls.read_exact(&mut answer)?;
            anyhow::ensure!(answer[0] == 0x20 && answer[3] == 0, "mosquitto refused: {answer:?}");
        }
        Ok(tls)
    }

    fn make_stream(&self) -> Result<()> {
        let mut tls = self.connect(0)?;
        let body = "{\"name\":\"S\",\"subjects\":[\"s.*\"],\"storage\":\"file\",\"retention\":\"limits\",\"max_consumers\":-1,\
                    \"max_msgs\":-1,\"max_bytes\":-1,\"discard\":\"old\",\"num_replicas\":1}";
        let ask = format!("SUB _INBOX.m 1\r\nPUB $JS.API.STREAM.CREATE.S _INBOX.m {}\r\n{body}\r\n", body.len());
        tls.write_all(ask.as_bytes())?;
        tls.flush()?;
        read_line(&mut tls)?;
        let answer = read_line(&mut tls)?;
        anyhow::ensure!(!answer.contains("\"error\""), "no stream: {answer}");
        Ok(())
    }

    /// Sends all of it, a window at a time, until the last is answered.
    fn send(&self, sender: usize, load: Vec<Vec<u8>>) -> Result<()> {
        if self.target == Target::RemoteWrite {
            return self.post(load);
        }
        let mut tls = self.connect(sender)?;
        if self.target == Target::JetStream {
            tls.write_all(format!("SUB _INBOX.{sender} 1\r\n").as_bytes())?;
        }
        let (mut sent, mut answered) = (0, 0);
        let mut answers = Answers::new(self.target);
        let mut chunk = vec![0; 64 << 10];
        for messages in load.chunks(WINDOW / 2) {
            for message in messages {
                tls.write_all(message)?;
            }
            tls.flush()?;
            sent += messages.len();
            while answered + WINDOW / 2 < sent {
                answered += answers.count(&mut tls, &mut chunk)?;
            }
        }
        while answered < sent {
            answered += answers.count(&mut tls, &mut chunk)?;
        }
        Ok(())
    }

    fn post(&self, load: Vec<Vec<u8>>) -> Result<()> {
        let mut tcp = TcpStream::connect(("127.0.0.1", self.port))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut reader = BufReader::new(tcp.try_clone()?);
        for message in load {
            tcp.write_all(&message)?;
            let mut line = String::new();
            reader.read_line(&mut line)?;
            anyhow::ensure!(line.contains(" 204 "), "refused: {line}");
            while line != "\r\n" {
                line.clear();
                reader.read_line(&mut line)?;
            }
        }
        Ok(())
    }
}

/// Counts acknowledgements in what a server says.
struct Answers {
    target: Target,
    rest: Vec<u8>,
}

impl Answers {
    fn new(target: Target) -> Self {
        Self { target, rest: Vec::new() }
    }

    fn count(&mut self, tls: &mut Tls, chunk: &mut [u8]) -> Result<usize> {
        let read = tls.read(chunk)?;
        anyhow::ensure!(read > 0, "the server closed");
        self.rest.extend_from_slice(&chunk[..read]);
        if self.target == Target::Mqtt {
            // PUBACK: four bytes each, and nothing else comes.
            let whole = self.rest.len() / 4;
            self.rest.drain(..whole * 4);
            return Ok(whole);
        }
        let mut answers = 0;
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line);
            anyhow::ensure!(!text.starts_with("-ERR") && !text.contains("\"error\""), "refused: {text}");
            answers += usize::from(text.contains("\"seq\":"));
        }
        Ok(answers)
    }
}

fn read_line(from: &mut impl Read) -> Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.last() != Some(&b'\n') && line.len() < 8192 {
        from.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn mqtt_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn mqtt_head(first: u8, mut length: usize) -> Vec<u8> {
    let mut head = vec![first];
    while length >= 0x80 {
        head.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    head.push(length as u8);
    head
}

/// A relay's authority lends its certificates: the server's for the peer, clients' for us.
fn certificates(dir: &Path, members: usize, runtime: &tokio::runtime::Runtime) -> Result<Vec<Member>> {
    let mut relay = Relay::new(dir, SETTINGS)?;
    relay.start()?;
    let members = runtime.block_on(crowd::enrol(&relay.data_dir(), members))?;
    relay.stop()?;
    let folder = relay.data_dir().join("authority");
    let (key, certificate) = parts(&std::fs::read_to_string(folder.join("server.pem"))?)?;
    let (_, authority) = parts(&std::fs::read_to_string(folder.join("authority.pem"))?)?;
    for (name, text) in [("server.key", key), ("server.crt", certificate), ("ca.crt", authority)] {
        std::fs::write(dir.join(name), text)?;
    }
    Ok(members)
}

fn parts(pem: &str) -> Result<(String, String)> {
    let at = pem.find("-----BEGIN CERTIFICATE-----").context("no certificate in the file")?;
    Ok((pem[..at].to_owned(), pem[at..].to_owned()))
}
