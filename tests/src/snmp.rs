//! A real `snmpd` (Net-SNMP) on a port of loopback that the kernel chose, with a community, users who sign and seal in every
//! way that it knows, and whatever objects a test wants it to have beside its own.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::peers::Peer;
use crate::process::Process;
use crate::wait;

/// How a user can sign: as a device's settings call it, and as snmpd.conf(5) does.
pub const AUTH: [(&str, &str); 5] =
    [("sha1", "SHA"), ("sha224", "SHA-224"), ("sha256", "SHA-256"), ("sha384", "SHA-384"), ("sha512", "SHA-512")];
/// How a user can seal, likewise.
pub const PRIVACY: [(&str, &str); 5] = [
    ("aes128", "AES"),
    ("aes192", "AES-192"),
    ("aes192c", "AES-192-C"),
    ("aes256", "AES-256"),
    ("aes256c", "AES-256-C"),
];
/// Who asks signed alone: SHA-1.
pub const SIGNED: &str = "signed";
const SOON: Duration = Duration::from_secs(30);

/// What it takes to be answered.
#[derive(Debug, Clone, Copy)]
pub struct Secrets<'a> {
    /// Of SNMPv2c.
    pub community: &'a str,
    /// By which all users sign.
    pub password: &'a str,
    /// By which those seal who do.
    pub privacy: &'a str,
}

/// The user who signs and seals in these ways.
#[must_use]
pub fn sealed(auth: &str, privacy: &str) -> String {
    format!("{auth}-{privacy}")
}

/// The daemon, running.
#[derive(Debug)]
pub struct Snmpd {
    /// Where it listens.
    pub port: u16,
    log: PathBuf,
    _process: Process,
}

impl Snmpd {
    /// A device with these objects, each `OID TYPE VALUE` as `override` in snmpd.conf(5) takes it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(dir: &Path, secrets: Secrets<'_>, objects: &[&str]) -> Result<Self> {
        // Chosen by the kernel and free again a moment later: `snmpd` takes no socket from outside.
        let at = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        Self::start_at(at, dir, secrets, objects)
    }

    /// The same where it is told to listen.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_at(at: SocketAddr, dir: &Path, secrets: Secrets<'_>, objects: &[&str]) -> Result<Self> {
        let program = Peer::Snmpd.path().context("snmpd")?;
        std::fs::create_dir_all(dir)?;
        let Secrets { community, password, privacy } = secrets;
        let mut config = format!(
            "rocommunity \"{community}\" default\n\
             createUser {SIGNED} SHA \"{password}\"\nrouser {SIGNED} auth\n\
             sysLocation The attic\n"
        );
        for (auth, signs) in AUTH {
            for (cipher, seals) in PRIVACY {
                let user = sealed(auth, cipher);
                writeln!(config, "createUser {user} {signs} \"{password}\" {seals} \"{privacy}\"\nrouser {user} priv")?;
            }
        }
        for object in objects {
            writeln!(config, "override {object}")?;
        }
        let file = dir.join("snmpd.conf");
        std::fs::write(&file, config)?;
        let mut command = Command::new(program);
        command.args(["-f", "-Lo", "-C", "-c"]).arg(&file).arg(format!("udp:{at}"));
        // No MIB file is read, and nothing is kept where the machine's own daemon keeps it.
        command.env("MIBS", "").env("SNMP_PERSISTENT_DIR", dir.join("kept")).env("SNMPCONFPATH", dir);
        let log = dir.join("snmpd.log");
        let mut process = Process::start("snmpd", &mut command, &log)?;
        wait::until_true("snmpd's port", SOON, || {
            process.check_running()?;
            // It has the port once nobody else can have it.
            Ok(UdpSocket::bind(at).is_err())
        })?;
        Ok(Self { port: at.port(), log, _process: process })
    }

    /// The ports that questions came from, one a datagram, in their order.
    ///
    /// # Errors
    /// When its log can't be read.
    pub fn heard(&self) -> Result<Vec<String>> {
        let log = std::fs::read_to_string(&self.log)?;
        let from =
            |line: &str| Some(line.strip_prefix("Connection from UDP: [127.0.0.1]:")?.split_once('-')?.0.to_owned());
        Ok(log.lines().filter_map(from).collect())
    }
}
