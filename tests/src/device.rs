//! A device that answers over HTTP, misbehaves on demand, and remembers every answer.
//!
//! Each answer holds a number that no answer of any device held before, and that only rises; so what is lost, doubled,
//! altered or out of order in storage shows. The number stands in three forms: JSON at `/status`, a Prometheus page at
//! `/metrics`. What was asked and not answered is remembered too: it must be a gap.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::wait;

/// What a device does with a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Manner {
    /// Answers at once.
    #[default]
    Answers,
    /// Answers after so long.
    Slow(Duration),
    /// Takes the request and says nothing until the other side closes.
    Silent,
    /// Closes the connection without a word.
    HangsUp,
    /// Answers with something that is not what it should be.
    Garbage,
    /// Answers with this HTTP status.
    Status(u16),
    /// Answers with so many bytes.
    Huge(usize),
    /// Begins an answer and sends a byte a second of it.
    Trickles,
    /// Answers on its page with so many more series, of digits that hardly compress.
    Noise(usize),
    /// Sends the client to this URL.
    Redirects(String),
}

/// One request, as the checker compares it with what is stored.
#[derive(Debug, Clone, Copy, Serialize)]
struct Entry {
    wall_ms: i64,
    /// The number that was answered; none where nothing useful was.
    tick: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    manner: Mutex<Manner>,
    log: Mutex<Vec<Entry>>,
    next: AtomicU64,
    connections: AtomicU64,
    ended: AtomicBool,
}

/// The device.
#[derive(Debug)]
pub struct Device {
    port: u16,
    shared: Arc<Shared>,
}

impl Device {
    /// A device of this name that answers.
    ///
    /// # Errors
    /// When no port is to be had.
    pub fn new(name: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the device")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            manner: Mutex::default(),
            log: Mutex::default(),
            // The port makes the numbers of two devices differ.
            next: AtomicU64::new(u64::from(port) * 1_000_000),
            connections: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.ended.load(Ordering::Relaxed) {
                    return;
                }
                of_thread.connections.fetch_add(1, Ordering::Relaxed);
                let shared = Arc::clone(&of_thread);
                // A client that hangs up in the middle is the client's affair; the log says that it asked.
                std::thread::spawn(move || stream.map(|stream| drop(serve(&stream, &shared))));
            }
        });
        Ok(Self { port, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on it behaves like this.
    pub fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Connections that anyone opened to it.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Requests that it got.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.log().len()
    }

    /// Requests that it answered with a number.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.log().iter().filter(|entry| entry.tick.is_some()).count()
    }

    fn log(&self) -> Vec<Entry> {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The device of a configuration document that polls this one's JSON.
    #[must_use]
    pub fn as_http(&self, every: &str) -> String {
        let (name, port) = (&self.shared.name, self.port);
        format!(
            "[[device]]\nname = \"{name}\"\ncollector = \"http\"\nurl = \"http://127.0.0.1:{port}/status\"\n\
             every = \"{every}\"\ntimeout = \"2s\"\n\
             [[device.metric]]\nname = \"device_tick\"\npath = \"$.tick\"\n\
             [[device.metric]]\nname = \"device_echo\"\npath = \"$.echo\"\n"
        )
    }

    /// The device of a configuration document that scrapes this one's page.
    #[must_use]
    pub fn as_prometheus(&self, every: &str) -> String {
        let (name, port) = (&self.shared.name, self.port);
        format!(
            "[[device]]\nname = \"{name}\"\ncollector = \"prometheus\"\nurl = \"http://127.0.0.1:{port}/metrics\"\n\
             every = \"{every}\"\ntimeout = \"2s\"\n"
        )
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Writes what the devices saw, for the checker.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_logs(devices: &[&Self], file: &Path) -> Result<()> {
        let logs: Vec<_> = devices
            .iter()
            .map(|device| serde_json::json!({"device": device.shared.name, "requests": device.log()}))
            .collect();
        std::fs::write(file, serde_json::to_string(&logs)?).with_context(|| file.display().to_string())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// What stands beside a number in every answer, so that an altered one shows.
#[must_use]
pub fn echo(tick: u64) -> f64 {
    tick as f64 * 1.25 + 0.1
}

fn serve(stream: &TcpStream, shared: &Shared) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream.take(64 << 10));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    if request.is_empty() {
        return Ok(());
    }
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    // When it was asked: a gap for an answer that came too late stands there.
    let wall_ms = wait::wall_ms();
    let manner = shared.manner.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Manner::Slow(by) = manner {
        std::thread::sleep(by);
    }
    let answers = matches!(manner, Manner::Answers | Manner::Slow(_) | Manner::Noise(_));
    let tick = answers.then(|| shared.next.fetch_add(1, Ordering::Relaxed));
    // Before the answer leaves: what arrives has then always been written down.
    let entry = Entry { wall_ms, tick };
    shared.log.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    answer(stream, &request, &manner, tick.unwrap_or_default(), &mut reader)
}

fn answer(mut stream: &TcpStream, request: &str, manner: &Manner, tick: u64, rest: &mut impl Read) -> Result<()> {
    let page = request.contains(" /metrics ");
    let body = match manner {
        Manner::Answers | Manner::Slow(_) | Manner::Noise(_) if page => page_of(tick, manner),
        Manner::Answers | Manner::Slow(_) | Manner::Noise(_) => {
            format!("{{\"tick\": {tick}, \"echo\": {}, \"state\": \"on\"}}", echo(tick))
        }
        Manner::Silent => {
            drop(rest.read(&mut [0]));
            return Ok(());
        }
        Manner::HangsUp => return Ok(()),
        Manner::Garbage => "<html>{]\u{0}\u{fffd} 12e</html>".to_owned(),
        Manner::Huge(bytes) => format!("{{\"tick\": \"{}\"}}", "9".repeat(*bytes)),
        Manner::Status(_) | Manner::Redirects(_) => String::new(),
        Manner::Trickles => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")?;
            loop {
                stream.write_all(b" ")?;
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    };
    let (status, more) = match manner {
        Manner::Status(status) => (*status, String::new()),
        Manner::Redirects(url) => (302, format!("Location: {url}\r\n")),
        Manner::Answers
        | Manner::Slow(_)
        | Manner::Silent
        | Manner::HangsUp
        | Manner::Garbage
        | Manner::Huge(_)
        | Manner::Noise(_)
        | Manner::Trickles => (200, String::new()),
    };
    let kind = if page { "text/plain; version=0.0.4" } else { "application/json" };
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    Ok(())
}

/// The page of an exporter.
fn page_of(tick: u64, manner: &Manner) -> String {
    let mut page = format!(
        "# HELP device_tick_total Answers so far.\n# TYPE device_tick_total counter\ndevice_tick_total {tick}\n\
         # TYPE device_echo gauge\ndevice_echo{{form=\"page\"}} {}\n# TYPE device_noise gauge\n",
        echo(tick)
    );
    let more = if let Manner::Noise(series) = manner { *series } else { 0 };
    let mut state = tick | 1;
    for series in 0..more {
        // Xorshift: every run the same, every bit another.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        page.push_str(&format!("device_noise{{n=\"{series}\"}} 0.{state}\n"));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(device: &Device, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", device.port())).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        all
    }

    #[test]
    fn every_answer_holds_a_number_of_its_own_and_is_remembered() {
        let device = Device::new("plug").unwrap();
        let first = u64::from(device.port()) * 1_000_000;
        assert!(get(&device, "/status").contains(&format!("\"tick\": {first}, ")));
        assert!(get(&device, "/metrics").contains(&format!("device_tick_total {}\n", first + 1)));
        device.behave(Manner::Status(500));
        assert!(get(&device, "/status").starts_with("HTTP/1.1 500"));
        assert_eq!((device.requests(), device.answers(), device.connections()), (3, 2, 3));
    }
}
