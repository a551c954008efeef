//! A real MQTT broker, mosquitto, with one user and a certificate of the test's own, on two ports that the kernel chose.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::peers::Peer;
use crate::process::{self, Process};
use crate::wait;

/// The one who may publish and listen.
pub const USER: &str = "reader";
const SOON: Duration = Duration::from_secs(30);

/// The broker, running.
#[derive(Debug)]
pub struct Mosquitto {
    /// Where it listens without TLS.
    pub port: u16,
    /// Where it listens with TLS.
    pub tls_port: u16,
    host: IpAddr,
    dir: PathBuf,
    password: String,
    process: Process,
}

impl Mosquitto {
    /// A broker that knows nothing yet.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(dir: &Path, password: &str) -> Result<Self> {
        std::fs::create_dir(dir)?;
        // Chosen by the kernel and free again a moment later: mosquitto takes no sockets from outside.
        let sockets = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let [port, tls_port] = [sockets[0].local_addr()?.port(), sockets[1].local_addr()?.port()];
        drop(sockets);
        let key = rcgen::KeyPair::generate()?;
        let params = rcgen::CertificateParams::new(vec!["broker.lan".to_owned(), "127.0.0.1".to_owned()])?;
        std::fs::write(dir.join("cert.pem"), params.self_signed(&key)?.pem())?;
        std::fs::write(dir.join("key.pem"), key.serialize_pem())?;
        let mut passwd = Command::new("mosquitto_passwd");
        process::run(passwd.args(["-c", "-b", "passwd", USER, password]).current_dir(dir), "")?.success()?;
        let at = |name: &str| dir.join(name).display().to_string();
        let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
        let text = format!(
            "user {user}\nallow_anonymous false\npassword_file {}\npersistence false\nlog_dest stderr\n\
             listener {port} 127.0.0.1\n\
             listener {tls_port} 127.0.0.1\ncertfile {}\nkeyfile {}\n",
            at("passwd"),
            at("cert.pem"),
            at("key.pem")
        );
        std::fs::write(dir.join("mosquitto.conf"), text)?;
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let process = run(dir, (host, port).into())?;
        Ok(Self { port, tls_port, host, dir: dir.to_owned(), password: password.to_owned(), process })
    }

    /// A broker where it is told to listen, which asks nobody who they are.
    ///
    /// # Errors
    /// When it does not start.
    pub fn open_at(at: SocketAddr, dir: &Path) -> Result<Self> {
        std::fs::create_dir(dir)?;
        let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
        let (host, port) = (at.ip(), at.port());
        let own =
            format!("user {user}\nallow_anonymous true\npersistence false\nlog_dest stderr\nlistener {port} {host}\n");
        std::fs::write(dir.join("mosquitto.conf"), own)?;
        let process = run(dir, at)?;
        Ok(Self { port, tls_port: 0, host, dir: dir.to_owned(), password: String::new(), process })
    }

    /// Publishes a message, kept by the broker where it is to be retained.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub fn publish(&self, topic: &str, message: &str, retain: bool) -> Result<()> {
        let program = Peer::MosquittoClients.path().context("mosquitto_pub")?;
        let mut command = Command::new(program);
        command.args(["-h", &self.host.to_string(), "-p", &self.port.to_string(), "-u", USER, "-P", &self.password]);
        command.args(["-q", "1", "-t", topic, "-m", message]).args(retain.then_some("-r"));
        process::run(&mut command, "")?.success().map(drop)
    }

    /// `kill -9`: what it had retained is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it anew on the same ports.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process = run(&self.dir, (self.host, self.port).into())?;
        Ok(())
    }
}

fn run(dir: &Path, at: SocketAddr) -> Result<Process> {
    let program = Peer::Mosquitto.path().context("mosquitto")?;
    let mut command = Command::new(program);
    command.arg("-c").arg(dir.join("mosquitto.conf"));
    let mut process = Process::start("mosquitto", &mut command, &dir.join("mosquitto.log"))?;
    wait::until_true("the broker's port", SOON, || {
        process.check_running()?;
        Ok(std::net::TcpStream::connect(at).is_ok())
    })?;
    Ok(process)
}
