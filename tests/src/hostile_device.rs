//! Devices that want to do harm: whatever asks them gets too much, too little, too late, or a lie.
//!
//! Each attack is one way to answer, at a port of its own, with the reason that its gap should carry. A flood goes on
//! for as long as somebody reads, up to a bound that is far above what a satellite may take.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::wait::Deadline;

/// A flood ends after so much, or so long: nobody should have read that.
const FLOOD_BYTES_MAX: usize = 1 << 30;
const FLOOD_TIME_MAX: Duration = Duration::from_secs(60);
const PIECE_BYTES: usize = 64 << 10;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";

/// How a satellite asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// For JSON.
    Http,
    /// For a page of an exporter.
    Prometheus,
    /// For JSON, over TLS.
    Https,
    /// Whether it accepts connections.
    Tcp,
}

/// One way to answer.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    /// Its name in the configuration.
    pub name: &'static str,
    /// How it is asked.
    pub asked: Asked,
    /// The reasons that its gap may carry.
    pub reasons: &'static [&'static str],
    /// A word that stands in the gap's detail.
    pub says: &'static str,
    serve: fn(&mut Client) -> Result<()>,
}

const LATE: &[&str] = &["timeout"];
const BAD: &[&str] = &["bad_answer"];
/// The bound of what is read, or the time, whichever comes first on this machine.
const MUCH: &[&str] = &["bad_answer", "timeout"];
const CUT: &[&str] = &["bad_answer", "refused"];

const fn http(
    name: &'static str,
    reasons: &'static [&'static str],
    says: &'static str,
    serve: fn(&mut Client) -> Result<()>,
) -> Attack {
    Attack { name, asked: Asked::Http, reasons, says, serve }
}

const fn page(
    name: &'static str,
    reasons: &'static [&'static str],
    says: &'static str,
    serve: fn(&mut Client) -> Result<()>,
) -> Attack {
    Attack { name, asked: Asked::Prometheus, reasons, says, serve }
}

const fn tls(
    name: &'static str,
    reasons: &'static [&'static str],
    says: &'static str,
    serve: fn(&mut Client) -> Result<()>,
) -> Attack {
    Attack { name, asked: Asked::Https, reasons, says, serve }
}

const fn tcp(name: &'static str, serve: fn(&mut Client) -> Result<()>) -> Attack {
    Attack { name, asked: Asked::Tcp, reasons: &[], says: "", serve }
}

/// What a port may do once it has accepted, which is all that it was asked.
pub const PORTS: &[Attack] = &[
    tcp("port-silent", |c| c.hold()),
    tcp("port-drips", |c| c.drip(b"SSH-2.0-")),
    tcp("port-floods", |c| c.flood(b"220 welcome\r\n")),
    tcp("port-closes", |_| Ok(())),
    tcp("port-resets", |c| c.reset()),
];

/// All that answer with HTTP, or should. Those that may each take the most stand far apart, since some attack together.
pub const ALL: &[Attack] = &[
    // Too much.
    http("endless", BAD, "more than 1048576", |c| c.endless("", b"[1, 2, 3],")),
    http("endless-blanks", BAD, "more than 1048576", |c| c.endless("", b"      ")),
    http("endless-chunks", MUCH, "", |c| c.endless("Transfer-Encoding: chunked\r\n", b"10\r\n[1,2,3,4,5,6,7,8\r\n")),
    http("gzip-bomb", BAD, "encoded (gzip)", |c| c.bomb("Content-Encoding: gzip\r\n")),
    http("gzip-unsaid", BAD, "not JSON", |c| c.bomb("")),
    http("giant-header", CUT, "", |c| c.unending(&format!("{OK}X-Giant: "), b"g")),
    http("giant-status", CUT, "", |c| c.unending("HTTP/1.1 200 ", b"g")),
    http("many-headers", BAD, "", |c| c.unending(OK, b"X-One: more\r\n")),
    http("giant-trailers", CUT, "", |c| {
        c.unending(&format!("{OK}Transfer-Encoding: chunked\r\n\r\n0\r\n"), b"X-T: y\r\n")
    }),
    http("chunk-extension", CUT, "", |c| c.unending(&format!("{OK}Transfer-Encoding: chunked\r\n\r\n1;"), b"e")),
    http("continues", BAD, "no head of an answer", |c| c.unending("", b"HTTP/1.1 100 Continue\r\n\r\n")),
    http("hints", BAD, "no head of an answer", |c| c.unending("", b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")),
    // Too little, too late.
    http("silent", LATE, "", |c| c.whole(b"")?.hold()),
    http("drips-head", LATE, "", |c| c.whole(b"")?.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")),
    http("drips-body", LATE, "", |c| c.whole(format!("{OK}Content-Length: 1000\r\n\r\n").as_bytes())?.drip(b" ")),
    http("drips-chunks", LATE, "", |c| {
        c.whole(format!("{OK}Transfer-Encoding: chunked\r\n\r\n").as_bytes())?.drip(b"1\r\n \r\n")
    }),
    http("says-half", LATE, "", |c| c.whole(format!("{OK}Content-Length: 1000\r\n\r\n{{").as_bytes())?.hold()),
    // Nothing, at every point.
    http("closes-at-once", CUT, "", |_| Ok(())),
    http("resets-at-once", CUT, "", |c| c.reset()),
    http("closes-when-asked", CUT, "", |c| c.whole(b"").map(drop)),
    http("closes-in-status", CUT, "", |c| c.whole(b"HTTP/1.1 20").map(drop)),
    http("closes-in-head", CUT, "", |c| c.whole(b"HTTP/1.1 200 OK\r\nContent-Le").map(drop)),
    http("closes-in-body", CUT, "", |c| c.whole(format!("{OK}Content-Length: 9\r\n\r\n{{").as_bytes()).map(drop)),
    http("closes-in-chunk", CUT, "", |c| {
        c.whole(format!("{OK}Transfer-Encoding: chunked\r\n\r\n5\r\n{{").as_bytes()).map(drop)
    }),
    http("resets-in-body", CUT, "", |c| c.whole(format!("{OK}Content-Length: 9\r\n\r\n{{").as_bytes())?.reset()),
    // Lies about lengths.
    http("length-short", BAD, "not JSON", |c| c.body("Content-Length: 1\r\n", b"{\"a\": 1}")),
    http("length-long", CUT, "", |c| c.body("Content-Length: 900\r\n", b"{\"a\": 1}")),
    http("length-huge", BAD, "", |c| c.body("Content-Length: 18446744073709551615\r\n", b"{\"a\": 1}")),
    http("length-beyond", BAD, "", |c| c.body("Content-Length: 99999999999999999999\r\n", b"{\"a\": 1}")),
    http("length-negative", BAD, "", |c| c.body("Content-Length: -8\r\n", b"{\"a\": 1}")),
    http("length-words", BAD, "", |c| c.body("Content-Length: eight\r\n", b"{\"a\": 1}")),
    http("length-twice", BAD, "", |c| c.body("Content-Length: 8\r\nContent-Length: 9\r\n", b"{\"a\": 1}")),
    http("chunk-huge", CUT, "", |c| c.body("Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\n{\"a\": 1}")),
    http("chunk-beyond", CUT, "", |c| c.body("Transfer-Encoding: chunked\r\n", b"10000000000000000\r\n{\"a\": 1}")),
    http("chunk-negative", CUT, "", |c| c.body("Transfer-Encoding: chunked\r\n", b"-8\r\n{\"a\": 1}")),
    http("chunk-no-end", CUT, "", |c| c.body("Transfer-Encoding: chunked\r\n", b"8\r\n{\"a\": 1}XX")),
    http("coding-unknown", CUT, "", |c| c.body("Transfer-Encoding: bogus\r\n", b"{\"a\": 1")),
    // Not what was asked.
    http("no-http", BAD, "", |c| c.whole(b"SSH-2.0-OpenSSH_9.2\r\n").map(drop)),
    http("http-2", BAD, "", |c| c.whole(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").map(drop)),
    http("http-9", BAD, "", |c| c.whole(b"HTTP/9.9 999 Later\r\n\r\n").map(drop)),
    http("status-zero", BAD, "", |c| c.whole(b"HTTP/1.1 000 Nothing\r\nContent-Length: 0\r\n\r\n").map(drop)),
    http("status-long", BAD, "", |c| c.whole(b"HTTP/1.1 20000 OK\r\nContent-Length: 0\r\n\r\n").map(drop)),
    http("switches", &["bad_answer", "refused"], "", |c| {
        c.whole(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")?.flood(b"x")
    }),
    http("redirects", BAD, "not followed", |c| {
        c.whole(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n").map(drop)
    }),
    http("redirects-far", BAD, "not followed", |c| {
        let far = "a".repeat(100_000);
        c.whole(format!("HTTP/1.1 301 X\r\nLocation: http://{far}/\r\nContent-Length: 0\r\n\r\n").as_bytes()).map(drop)
    }),
    http("header-bytes", BAD, "", |c| c.body("X-\u{0}\u{1}: \u{7f}\r\n", b"{\"a\": 1}")),
    // JSON that is too much of something.
    http("deep", BAD, "", |c| c.json("[".repeat(900_000).as_bytes())),
    http("deep-objects", BAD, "", |c| c.json("{\"a\":".repeat(180_000).as_bytes())),
    http("wide", BAD, "", |c| c.json(format!("[{}0]", "0,".repeat(500_000)).as_bytes())),
    http("wide-objects", BAD, "", |c| c.json(format!("[{}{{}}]", "{\"\":{}},".repeat(110_000)).as_bytes())),
    http("long-text", BAD, "", |c| c.json(format!("{{\"a\": \"{}\"}}", "9".repeat(1_000_000)).as_bytes())),
    http("no-number", BAD, "", |c| c.json(b"{\"a\": 1e999999999999}")),
    http("long-number", BAD, "", |c| c.json(format!("{{\"b\": {}}}", "9".repeat(1_000_000)).as_bytes())),
    http("not-text", BAD, "", |c| c.json(b"{\"a\": \"\xff\xfe\xed\xa0\x80\"}")),
    // Pages that are too much of something.
    page("page-comments", MUCH, "", |c| c.unending(OK_HEAD, b"# HELP x y\n")),
    page("page-endless", MUCH, "", |c| c.unending(OK_HEAD, b"up 1\n")),
    page("page-one-line", BAD, "more than 16384", |c| c.unending(OK_HEAD, b"a")),
    page("page-too-long-labels", BAD, "4096", |c| c.series(10, 8_000)),
    page("page-many-labels", BAD, "", |c| c.text(&format!("x{{{}}} 1\n", labels(2_000)))),
    page("page-long-name", BAD, "", |c| c.text(&format!("{} 1\n", "n".repeat(10_000)))),
    page("page-million", MUCH, "", |c| c.series(1_000_000, 20)),
    page("page-no-name", BAD, "", |c| c.text("1x 1\n")),
    page("page-bytes", BAD, "", |c| c.text("x{a=\"\u{0}\"} \u{0}\n")),
    page("page-open-quote", BAD, "", |c| c.text(&format!("x{{a=\"{}\n", "\\".repeat(15_001)))),
    page("page-no-value", BAD, "", |c| c.text("x 1\nx\n")),
    page("page-long-labels", MUCH, "", |c| c.series(1_000_000, 3_900)),
    page("page-html", BAD, "", |c| c.text("<html>it works</html>\n")),
    page("page-gzip", BAD, "encoded (gzip)", |c| c.bomb("Content-Encoding: gzip\r\n")),
    page("page-drips", LATE, "", |c| c.whole(OK_HEAD.as_bytes())?.drip(b"x")),
    // TLS that is none, or never ends.
    tls("tls-silent", LATE, "", |c| c.hold()),
    tls("tls-closes", &["bad_answer", "refused"], "", |_| Ok(())),
    tls("tls-plain", BAD, "TLS", |c| c.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
    tls("tls-noise", BAD, "TLS", |c| c.flood(b"\x16\x03\x03\x40\x00noise")),
    tls("tls-alerts", BAD, "TLS", |c| c.flood(b"\x15\x03\x03\x00\x02\x01\x00")),
    tls("tls-empty-records", BAD, "TLS", |c| c.flood(b"\x16\x03\x03\x00\x00")),
    tls("tls-long-hello", BAD, "TLS", |c| {
        c.say(b"\x16\x03\x03\x40\x00\x02\xff\xff\xff")?;
        c.flood(b"x")
    }),
    tls("tls-drips", LATE, "", |c| c.drip(b"\x16\x03\x03\x40\x00\x02")),
    tls("tls-stranger", BAD, "set tls = \"pin:", Client::stranger),
];

const OK_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n";

fn labels(count: usize) -> String {
    (0..count).map(|n| format!("l{n}=\"v\",")).collect()
}

/// A connection of whoever asks.
struct Client {
    stream: TcpStream,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    ended: AtomicBool,
    asked: AtomicU64,
    /// Clients that are being answered.
    answering: AtomicU64,
    certificate: RwLock<Option<Arc<ServerConfig>>>,
}

impl Client {
    fn say(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads the request, then says this.
    fn whole(&mut self, bytes: &[u8]) -> Result<&mut Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && self.stream.read(&mut byte)? > 0 {
            head.push(byte[0]);
        }
        self.say(bytes)?;
        Ok(self)
    }

    fn body(&mut self, headers: &str, body: &[u8]) -> Result<()> {
        self.whole(format!("{OK}{headers}\r\n").as_bytes())?.say(body)
    }

    fn json(&mut self, body: &[u8]) -> Result<()> {
        self.body(&format!("Content-Length: {}\r\n", body.len()), body)
    }

    fn text(&mut self, page: &str) -> Result<()> {
        self.whole(OK_HEAD.as_bytes())?.say(page.as_bytes())
    }

    /// So many series, each with a label of so many bytes.
    fn series(&mut self, count: usize, bytes: usize) -> Result<()> {
        self.whole(OK_HEAD.as_bytes())?;
        let pad = "v".repeat(bytes);
        let mut piece = String::new();
        for n in 0..count {
            piece.push_str(&format!("x{{n=\"{n}\",pad=\"{pad}\"}} NaN\n"));
            if piece.len() > PIECE_BYTES {
                self.say(piece.as_bytes())?;
                piece.clear();
            }
        }
        self.say(piece.as_bytes())
    }

    fn endless(&mut self, headers: &str, pattern: &[u8]) -> Result<()> {
        self.whole(format!("{OK}{headers}\r\n").as_bytes())?.flood(pattern)
    }

    fn unending(&mut self, beginning: &str, pattern: &[u8]) -> Result<()> {
        self.whole(beginning.as_bytes())?.flood(pattern)
    }

    /// The same again and again, for as long as somebody reads.
    fn flood(&mut self, pattern: &[u8]) -> Result<()> {
        let piece = pattern.repeat(PIECE_BYTES / pattern.len() + 1);
        let until = Deadline::after(FLOOD_TIME_MAX);
        let mut sent = 0;
        while sent < FLOOD_BYTES_MAX && !until.has_passed() && !self.shared.ended.load(Ordering::Relaxed) {
            self.say(&piece)?;
            sent += piece.len();
        }
        Ok(())
    }

    /// A byte a second, around and around.
    fn drip(&mut self, pattern: &[u8]) -> Result<()> {
        self.stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let until = Deadline::after(FLOOD_TIME_MAX);
        for byte in pattern.iter().cycle() {
            self.say(&[*byte])?;
            // The pause is a read that nobody answers; one that is answered says that the client has gone.
            let gone = match self.stream.read(&mut [0; 512]) {
                Ok(read) => read == 0,
                Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            };
            if gone || until.has_passed() || self.shared.ended.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }

    /// Says nothing until the other side goes.
    fn hold(&mut self) -> Result<()> {
        self.stream.set_read_timeout(Some(FLOOD_TIME_MAX))?;
        while self.stream.read(&mut [0; 512])? > 0 {}
        Ok(())
    }

    /// Ends with a reset instead of an end.
    fn reset(&mut self) -> Result<()> {
        Ok(rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))?)
    }

    /// A small answer that unpacks into a hundred megabytes.
    fn bomb(&mut self, headers: &str) -> Result<()> {
        static BOMB: OnceLock<Vec<u8>> = OnceLock::new();
        let bomb = BOMB.get_or_init(|| gzip_of_zeros(1 << 27));
        self.body(&format!("{headers}Content-Length: {}\r\n", bomb.len()), bomb)
    }

    /// TLS as it should be, with a certificate of an authority that nobody knows.
    fn stranger(&mut self) -> Result<()> {
        let config = self.shared.certificate.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(config) = config else { return Ok(()) };
        let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
        let mut tls = StreamOwned::new(connection, self.stream.try_clone()?);
        tls.read(&mut [0; 512]).map(drop)
    }
}

/// A device that attacks whoever asks it.
#[derive(Debug)]
pub struct HostileDevice {
    attack: Attack,
    port: u16,
    shared: Arc<Shared>,
}

impl HostileDevice {
    /// One that answers like this.
    ///
    /// # Errors
    /// When no port is to be had.
    pub fn new(attack: Attack) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.ended.load(Ordering::Relaxed) {
                    return;
                }
                of_thread.asked.fetch_add(1, Ordering::Relaxed);
                of_thread.answering.fetch_add(1, Ordering::Relaxed);
                let shared = Arc::clone(&of_thread);
                // A client that has gone is what an attack ends with.
                std::thread::spawn(move || {
                    let served = stream.map(|stream| {
                        stream.set_read_timeout(Some(FLOOD_TIME_MAX)).ok();
                        stream.set_write_timeout(Some(FLOOD_TIME_MAX)).ok();
                        drop((attack.serve)(&mut Client { stream, shared: Arc::clone(&shared) }));
                    });
                    drop(served);
                    shared.answering.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self { attack, port, shared })
    }

    /// Gives it a certificate, for the attacks that begin with TLS as it should be.
    pub fn show(&self, certificate: Arc<ServerConfig>) {
        *self.shared.certificate.write().unwrap_or_else(PoisonError::into_inner) = Some(certificate);
    }

    /// What it does.
    #[must_use]
    pub fn attack(&self) -> Attack {
        self.attack
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How often it was asked.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Whether somebody still reads what it says.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.shared.answering.load(Ordering::Relaxed) > 0
    }

    /// The device of a configuration document that asks it.
    #[must_use]
    pub fn as_device(&self, timeout: &str) -> String {
        let (name, port) = (self.attack.name, self.port);
        let (collector, scheme, more) = match self.attack.asked {
            Asked::Tcp => return tcp_device(name, port, timeout),
            Asked::Prometheus => ("prometheus", "http", String::new()),
            Asked::Http | Asked::Https => {
                let metrics = (0..3).map(|n| format!("[[device.metric]]\nname = \"m{n}\"\npath = \"$.a\"\n"));
                ("http", if self.attack.asked == Asked::Http { "http" } else { "https" }, metrics.collect())
            }
        };
        format!(
            "[[device]]\nname = \"{name}\"\ncollector = \"{collector}\"\nurl = \"{scheme}://127.0.0.1:{port}/metrics\"\n\
             every = \"3s\"\ntimeout = \"{timeout}\"\n{more}"
        )
    }
}

/// The device that asks whether this port of loopback accepts connections.
#[must_use]
pub fn tcp_device(name: &str, port: u16, timeout: &str) -> String {
    format!(
        "[[device]]\nname = \"{name}\"\ncollector = \"tcp\"\naddress = \"127.0.0.1:{port}\"\nevery = \"1s\"\n\
         timeout = \"{timeout}\"\n"
    )
}

impl Drop for HostileDevice {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// A gzip member of zeros: one literal, then copies of 258 bytes at 13 bits each (RFC 1951, fixed codes).
fn gzip_of_zeros(bytes: usize) -> Vec<u8> {
    let mut bits = Bits::default();
    // The last block, with fixed codes; then the literal 0, whose code is 00110000.
    bits.push(0b011, 3);
    bits.push_reversed(0b0011_0000, 8);
    for _ in 0..bytes / 258 {
        // The length 258 has the code 11000101 (285), the distance 1 the code 00000.
        bits.push_reversed(0b1100_0101, 8);
        bits.push(0, 5);
    }
    bits.push(0, 7);
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    gzip.extend(bits.bytes);
    // Checksum and length would follow; who came so far has unpacked it all.
    gzip.extend([0; 8]);
    gzip
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        for at in 0..count {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= u8::from(value >> at & 1 == 1) << (self.used % 8);
            }
            self.used += 1;
        }
    }

    /// Codes stand with their first bit first.
    fn push_reversed(&mut self, code: u32, count: u32) {
        self.push(code.reverse_bits() >> (32 - count), count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_short_enough_for_a_device() {
        let mut names: Vec<&str> = ALL.iter().chain(PORTS).map(|attack| attack.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len() + PORTS.len());
        assert!(names.iter().all(|name| name.len() < 60));
    }

    #[test]
    fn a_bomb_is_small() {
        let bomb = gzip_of_zeros(1 << 27);
        assert!(bomb.len() < 1 << 20 && bomb.starts_with(&[0x1f, 0x8b, 8]), "{}", bomb.len());
    }
}
