//! Two WireGuard interfaces that talk to each other over loopback: wireguard-go, which `wg` asks as it asks the kernel.
//!
//! Needs root and `/dev/net/tun`. It belongs in a network namespace of a journey's own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::peers::Peer;
use crate::process::{self, Process};
use crate::{netns, wait};

const SOON: Duration = Duration::from_secs(60);

/// Both ends of the tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// Names and public keys.
    pub ends: [(String, String); 2],
    _programs: Vec<Process>,
}

fn wg(arguments: &[&str], stdin: &str) -> Result<String> {
    let mut command = Command::new(Peer::WireGuard.path().context("wg")?);
    command.args(arguments);
    Ok(process::run(&mut command, stdin)?.success()?.trim().to_owned())
}

impl Tunnel {
    /// Makes both and waits until they have shaken hands.
    ///
    /// # Errors
    /// When they do not.
    pub fn start(dir: &Path) -> Result<Self> {
        ensure!(netns::is_inside(), "not in a namespace of its own");
        let program = Peer::WireGuardGo.path().context("wireguard-go")?;
        let (mut programs, mut ends, mut private) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..2 {
            // Its socket is the machine's: the name is this process's own.
            let name = format!("sat{n}x{}", std::process::id() % 100_000);
            let mut command = Command::new(&program);
            command.args(["-f", &name]).env("WG_PROCESS_FOREGROUND", "1");
            let mut running = Process::start("wireguard-go", &mut command, &dir.join(format!("{name}.log")))?;
            wait::until_true("the interface", SOON, || {
                running.check_running()?;
                Ok(wg(&["show", &name], "").is_ok())
            })?;
            programs.push(running);
            let key = wg(&["genkey"], "")?;
            ends.push((name, wg(&["pubkey"], &format!("{key}\n"))?));
            let file = dir.join(format!("key{n}"));
            std::fs::write(&file, key)?;
            private.push(file.display().to_string());
        }
        let ports: Vec<u16> = (0..2)
            .map(|_| Ok(std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port()))
            .collect::<Result<_>>()?;
        for (own, other) in [(0, 1), (1, 0)] {
            let (port, endpoint) = (ports[own].to_string(), format!("127.0.0.1:{}", ports[other]));
            let allowed = format!("10.99.0.{}/32,fd99::{}/128", other + 1, other + 1);
            let own_half = ["set", &ends[own].0, "listen-port", &port, "private-key", &private[own]];
            let peer_half =
                ["peer", &ends[other].1, "endpoint", &endpoint, "allowed-ips", &allowed, "persistent-keepalive", "1"];
            wg(&[&own_half[..], &peer_half[..]].concat(), "")?;
        }
        for (name, _) in &ends {
            let mut up = Command::new("ip");
            up.args(["link", "set", name, "up"]);
            process::run(&mut up, "")?.success()?;
        }
        wait::until_true("a handshake", SOON, || {
            let shaken = wg(&["show", &ends[0].0, "latest-handshakes"], "")?;
            Ok(shaken.split('\t').nth(1).is_some_and(|seconds| seconds != "0"))
        })?;
        let ends = <[_; 2]>::try_from(ends).map_err(|ends| anyhow::anyhow!("not two ends: {ends:?}"))?;
        Ok(Self { ends, _programs: programs })
    }
}
