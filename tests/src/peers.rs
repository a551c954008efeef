//! The real peers that tests run against: which there are, and how to get the others.
//!
//! A test whose peer is missing is ignored with the reason, never failed and never silently passed; `cargo verify`
//! installs them where it may.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::automount;
use crate::hanging_mount;
use crate::network;
use crate::nut;
use crate::podman;
use crate::{disk, programs};

/// Something real to test against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// A Python with pyarrow, duckdb and polars: the readers that are not ours.
    Python,
    /// An S3-compatible server (moto).
    S3,
    /// Prometheus' node exporter.
    NodeExporter,
    /// An HTTP CONNECT proxy.
    Tinyproxy,
    /// A SOCKS5 proxy.
    Microsocks,
    /// A file system on a loop device: no program, but root and a kernel that lets it.
    LoopDevice,
    /// Strace, which makes system calls fail.
    Strace,
    /// Libfaketime, which turns the wall clock of one program.
    Faketime,
    /// `ip`, for network namespaces.
    Iproute2,
    /// `nft` in a network namespace: packets that are lost. Root, and a kernel that lets it.
    LossyNetwork,
    /// What makes the Debian packages.
    Debhelper,
    /// What finds fault with them.
    Lintian,
    /// What lists them for apt.
    AptFtparchive,
    /// What signs the list.
    Gpg,
    /// What scores units.
    SystemdAnalyze,
    /// A machine to install them on.
    Qemu,
    /// Its Debian. Root.
    Mmdebstrap,
    /// Its first program.
    Cpio,
    /// Network UPS Tools' daemon, with its driver of a UPS that is not there.
    Nut,
    /// A Modbus TCP server (pymodbus).
    Modbus,
    /// Devices that say that they are there (zeroconf, async-upnp-client).
    Neighbours,
    /// A TLS server and what makes its certificate.
    Openssl,
    /// An MQTT broker.
    Mosquitto,
    /// What publishes to it.
    MosquittoClients,
    /// A message bus, with a Python that speaks on it (jeepney).
    MessageBus,
    /// Podman, and what its containers are made of. Root.
    Podman,
    /// A web server that lets in by digest.
    Lighttpd,
    /// Net-SNMP's agent.
    Snmpd,
    /// A name server.
    Dnsmasq,
    /// What asks disks how they are.
    Smartctl,
    /// What starts a program for each visitor of a socket, as systemd does.
    SocketActivate,
    /// A mount that never answers: no program, but root and a kernel that lets it.
    HangingMount,
    /// A mount that is made when it is looked at: no program, but root and a kernel that lets it.
    Automount,
    /// What asks WireGuard's interfaces.
    WireGuard,
    /// An interface of WireGuard where the kernel has none.
    WireGuardGo,
}

/// All of them.
pub const ALL: [Peer; 35] = [
    Peer::Python,
    Peer::S3,
    Peer::NodeExporter,
    Peer::Tinyproxy,
    Peer::Microsocks,
    Peer::LoopDevice,
    Peer::Strace,
    Peer::Faketime,
    Peer::Iproute2,
    Peer::LossyNetwork,
    Peer::Debhelper,
    Peer::Lintian,
    Peer::AptFtparchive,
    Peer::Gpg,
    Peer::SystemdAnalyze,
    Peer::Qemu,
    Peer::Mmdebstrap,
    Peer::Cpio,
    Peer::Nut,
    Peer::Modbus,
    Peer::Neighbours,
    Peer::Openssl,
    Peer::Mosquitto,
    Peer::MosquittoClients,
    Peer::MessageBus,
    Peer::Podman,
    Peer::Lighttpd,
    Peer::Snmpd,
    Peer::Dnsmasq,
    Peer::Smartctl,
    Peer::SocketActivate,
    Peer::HangingMount,
    Peer::Automount,
    Peer::WireGuard,
    Peer::WireGuardGo,
];

impl Peer {
    /// The Debian package that brings it.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::Python | Self::S3 | Self::Modbus | Self::Neighbours => "python3-venv",
            Self::NodeExporter => "prometheus-node-exporter",
            Self::Tinyproxy => "tinyproxy-bin",
            Self::Microsocks => "microsocks",
            Self::LoopDevice => "e2fsprogs",
            Self::Strace => "strace",
            Self::Faketime => "faketime",
            Self::Iproute2 => "iproute2",
            Self::LossyNetwork => "nftables",
            Self::Debhelper => "debhelper",
            Self::Lintian => "lintian",
            Self::AptFtparchive => "apt-utils",
            Self::Gpg => "gnupg",
            Self::SystemdAnalyze | Self::SocketActivate => "systemd",
            Self::Qemu => "qemu-system-x86",
            Self::Mmdebstrap => "mmdebstrap",
            Self::Cpio => "cpio",
            Self::Nut => "nut-server",
            Self::Openssl => "openssl",
            Self::Mosquitto => "mosquitto",
            Self::MosquittoClients => "mosquitto-clients",
            Self::MessageBus => "dbus",
            Self::Podman => "podman runc busybox-static",
            Self::Lighttpd => "lighttpd",
            Self::Snmpd => "snmpd",
            Self::Dnsmasq => "dnsmasq-base",
            Self::Smartctl => "smartmontools",
            Self::HangingMount | Self::Automount => "mount",
            Self::WireGuard => "wireguard-tools",
            Self::WireGuardGo => "wireguard-go",
        }
    }

    /// Where it is, if it is there. Asked once: a Python that loads its libraries takes seconds to say so.
    #[must_use]
    pub fn path(self) -> Option<PathBuf> {
        static FOUND: Mutex<BTreeMap<Peer, Option<PathBuf>>> = Mutex::new(BTreeMap::new());
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        found.entry(self).or_insert_with(|| self.find()).clone()
    }

    /// Where it is now, if it is there.
    #[must_use]
    pub fn find(self) -> Option<PathBuf> {
        match self {
            Self::Python => python_with("pyarrow, duckdb, polars"),
            Self::S3 => python_with("moto.server, boto3"),
            Self::NodeExporter => in_path("prometheus-node-exporter"),
            Self::Tinyproxy => in_path("tinyproxy"),
            Self::Microsocks => in_path("microsocks"),
            Self::LoopDevice => disk::works().then(|| PathBuf::from("/dev/loop-control")),
            Self::Faketime => library("faketime/libfaketime.so.1"),
            Self::Strace => in_path("strace").filter(|strace| {
                let traced = Command::new(strace).args(["-f", "-o", "/dev/null", "true"]).output();
                traced.is_ok_and(|said| said.status.success())
            }),
            Self::Iproute2 => in_path("ip"),
            Self::LossyNetwork => in_path("nft").filter(|_| network::works()),
            Self::Debhelper => in_path("dh"),
            Self::Lintian => in_path("lintian"),
            Self::AptFtparchive => in_path("apt-ftparchive"),
            Self::Gpg => in_path("gpg").filter(|_| in_path("gpg-agent").is_some()),
            Self::SystemdAnalyze => in_path("systemd-analyze"),
            Self::Qemu => in_path("qemu-system-x86_64").filter(|_| cfg!(target_arch = "x86_64")),
            Self::Mmdebstrap => in_path("mmdebstrap").filter(|_| rustix::process::geteuid().is_root()),
            Self::Cpio => in_path("cpio"),
            Self::Nut => nut::find(),
            Self::Openssl => in_path("openssl"),
            Self::Modbus => python_with("pymodbus"),
            Self::Neighbours => python_with("zeroconf, async_upnp_client.server"),
            Self::Mosquitto => in_path("mosquitto").filter(|_| in_path("mosquitto_passwd").is_some()),
            Self::MosquittoClients => in_path("mosquitto_pub"),
            Self::MessageBus => python_with("jeepney").filter(|_| in_path("dbus-daemon").is_some()),
            Self::Podman => podman::find(),
            Self::Lighttpd => in_path("lighttpd"),
            Self::Snmpd => in_path("snmpd"),
            Self::Dnsmasq => in_path("dnsmasq"),
            Self::Smartctl => in_path("smartctl"),
            Self::SocketActivate => in_path("systemd-socket-activate"),
            Self::HangingMount => hanging_mount::works().then(|| PathBuf::from("/dev/fuse")),
            Self::Automount => automount::works().then(|| PathBuf::from("/dev/autofs")),
            Self::WireGuard => in_path("wg"),
            Self::WireGuardGo => in_path("wireguard-go").filter(|_| PathBuf::from("/dev/net/tun").exists()),
        }
    }

    /// Why a test that needs it is ignored.
    #[must_use]
    pub fn missing(self) -> String {
        if self == Self::LoopDevice {
            return "LoopDevice is not there: it needs root, mkfs.ext4 and loop devices".into();
        }
        if self == Self::HangingMount {
            return "HangingMount is not there: it needs root and /dev/fuse".into();
        }
        if self == Self::Automount {
            return "Automount is not there: it needs root and a kernel with autofs".into();
        }
        format!("{self:?} is not there: `cargo verify` as root installs it, or `apt-get install {}`", self.package())
    }
}

/// The environment that `cargo verify` makes for the Python peers.
#[must_use]
pub fn venv() -> Option<PathBuf> {
    programs::target_dir().ok().map(|target| target.join("verify-venv"))
}

fn python_with(modules: &str) -> Option<PathBuf> {
    let candidates = [venv().map(|venv| venv.join("bin/python")), in_path("python3")];
    candidates.into_iter().flatten().find(|python| {
        let asked = Command::new(python).args(["-c", &format!("import {modules}")]).output();
        asked.is_ok_and(|said| said.status.success())
    })
}

/// Where a program is.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A library in one of Debian's folders for them.
fn library(name: &str) -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    folders.map(|folder| folder.path().join(name)).find(|file| file.is_file())
}
