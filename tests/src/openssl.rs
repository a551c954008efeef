//! A real TLS server (`openssl s_server`) whose certificate signs for itself.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::peers::Peer;
use crate::process::{self, Process};
use crate::wait;

const SOON: Duration = Duration::from_secs(30);

/// The server, running.
#[derive(Debug)]
pub struct Openssl {
    /// Where it listens.
    pub port: u16,
    /// The SHA-256 of its certificate, in hexadecimal digits.
    pub fingerprint: String,
    _process: Process,
}

impl Openssl {
    /// A server of this subject (`/CN=nas.lan`), good for so many days, which takes no other version than `-tls1_2` says.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(dir: &Path, subject: &str, days: u32, version: &str) -> Result<Self> {
        // Chosen by the kernel and free again a moment later: openssl takes no socket from outside.
        let at = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Self::start_at(at, dir, subject, days, version)
    }

    /// The same where it is told to listen.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_at(at: SocketAddr, dir: &Path, subject: &str, days: u32, version: &str) -> Result<Self> {
        let program = Peer::Openssl.path().context("openssl")?;
        let stem = dir.join(format!("tls-{}", at.port()));
        let (key, certificate) = (stem.with_extension("key"), stem.with_extension("pem"));
        let mut make = Command::new(&program);
        make.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-subj", subject]);
        make.args(["-days", &days.to_string(), "-addext", &format!("subjectAltName=IP:{}", at.ip())]);
        make.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        process::run(&mut make, "")?.success()?;
        let mut show = Command::new(&program);
        show.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(&certificate);
        let shown = process::run(&mut show, "")?.success()?;
        let fingerprint = shown.trim().rsplit('=').next().context("a fingerprint")?.replace(':', "").to_lowercase();
        let mut serve = Command::new(&program);
        serve.args(["s_server", "-quiet", "-accept", &at.to_string(), version, "-key"]).arg(&key);
        serve.arg("-cert").arg(&certificate);
        let mut process = Process::start("openssl", &mut serve, &stem.with_extension("log"))?;
        wait::until_true("openssl's port", SOON, || {
            process.check_running()?;
            Ok(TcpStream::connect(at).is_ok())
        })?;
        Ok(Self { port: at.port(), fingerprint, _process: process })
    }
}
