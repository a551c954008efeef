//! A network of its own on this machine, one cable away, whose packets can be lost.
//!
//! A network namespace and a pair of virtual interfaces; packets are dropped by nftables, inside the namespace alone.
//! So TCP itself has to cope, with its own timers, as on a bad line. Needs root; all of it goes with its owner.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::peers::in_path;

/// The network.
#[derive(Debug)]
pub struct Network {
    name: String,
    address: Ipv4Addr,
}

impl Network {
    /// A network whose packets all arrive.
    ///
    /// # Errors
    /// When this user may not make one, or the kernel can't.
    pub fn new() -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        ensure!(rustix::process::geteuid().is_root(), "needs root, for a network namespace of its own");
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("sat{}x{made}", std::process::id());
        // Four addresses each, of a corner of the private space that few use; told apart by process and count.
        let corner = std::process::id().wrapping_mul(7).wrapping_add(made) % (1 << 14) * 4;
        let base = u32::from(Ipv4Addr::new(10, 213, 0, 0)) + corner;
        let (near, far) = (Ipv4Addr::from(base + 1), Ipv4Addr::from(base + 2));
        ip(&["netns", "add", &name])?;
        // From here on the namespace goes with this, and the cable with the namespace.
        let network = Self { name, address: far };
        let name = network.name.as_str();
        ip(&["link", "add", name, "type", "veth", "peer", "name", "far", "netns", name])?;
        ip(&["addr", "add", &format!("{near}/30"), "dev", name])?;
        ip(&["link", "set", name, "up"])?;
        ip(&["-n", name, "addr", "add", &format!("{far}/30"), "dev", "far"])?;
        ip(&["-n", name, "link", "set", "far", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        network.lose(0)?;
        Ok(network)
    }

    /// The address of what runs in it.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A program in it.
    #[must_use]
    pub fn run(&self, program: &Path) -> Command {
        let mut command = Command::new(in_path("ip").unwrap_or_else(|| "ip".into()));
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Loses so many packets of a hundred from now on, each way.
    ///
    /// # Errors
    /// When nftables is not there, or the kernel can't.
    pub fn lose(&self, percent: u8) -> Result<()> {
        let nft = in_path("nft").context("there is no nft: `apt-get install nftables`")?;
        // Packets within the namespace are its own affair.
        let chain = |way: &str, device: &str| {
            let rule = format!("{device} != \"lo\" numgen random mod 100 < {percent} counter drop");
            let rule = if percent == 0 { "" } else { rule.as_str() };
            format!("chain {way} {{\ntype filter hook {way} priority 0;\n{rule}\n}}\n")
        };
        let rules = format!(
            "table inet loss\ndelete table inet loss\ntable inet loss {{\n{}{}}}\n",
            chain("input", "iifname"),
            chain("output", "oifname")
        );
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), rules)?;
        done(self.run(&nft).arg("-f").arg(file.path()))
    }

    /// Packets lost so far since [`Network::lose`] was last called.
    ///
    /// # Errors
    /// When nftables does not say.
    pub fn lost(&self) -> Result<u64> {
        let nft = in_path("nft").context("there is no nft: `apt-get install nftables`")?;
        let output = self.run(&nft).args(["list", "table", "inet", "loss"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split_whitespace();
        let mut lost = 0;
        while words.any(|word| word == "packets") {
            lost += words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(lost)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What still runs in it keeps it for as long as it runs, without its name.
        drop(ip(&["netns", "del", &self.name]));
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let ip = in_path("ip").context("there is no ip: `apt-get install iproute2`")?;
    done(Command::new(ip).args(arguments))
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
