//! A real `upsd` with a real `dummy-ups` behind it, on a port of loopback that the kernel chose.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::Process;
use crate::wait;

/// The one UPS.
pub const UPS: &str = "rack";
/// Who may ask, where asking needs a user.
pub const USER: &str = "reader";
/// Debian keeps drivers and daemon here: what is in the path asks for a setting of the machine first.
const PROGRAMS: &str = "/lib/nut";
const SOON: Duration = Duration::from_secs(30);

/// Whether both programs are there.
#[must_use]
pub fn find() -> Option<PathBuf> {
    ["upsd", "dummy-ups"].iter().all(|name| Path::new(PROGRAMS).join(name).is_file()).then(|| PROGRAMS.into())
}

/// Both, running.
#[derive(Debug)]
pub struct Nut {
    /// Where `upsd` listens.
    pub port: u16,
    driver: Process,
    _upsd: Process,
}

impl Nut {
    /// A UPS with these variables.
    ///
    /// # Errors
    /// When one of the two does not start.
    pub fn start(dir: &Path, variables: &[(&str, &str)], password: &str) -> Result<Self> {
        // Chosen by the kernel and free again a moment later: `upsd` takes no socket from outside.
        let at = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Self::start_at(at, dir, variables, password)
    }

    /// The same where it is told to listen.
    ///
    /// # Errors
    /// When one of the two does not start.
    pub fn start_at(at: SocketAddr, dir: &Path, variables: &[(&str, &str)], password: &str) -> Result<Self> {
        std::fs::create_dir(dir)?;
        let mut device = String::new();
        for (name, value) in variables {
            writeln!(device, "{name}: {value}")?;
        }
        let (host, port) = (at.ip(), at.port());
        let password = password.replace('\\', "\\\\").replace('"', "\\\"").replace('#', "\\#");
        for (name, text) in [
            ("ups.conf", format!("[{UPS}]\ndriver = dummy-ups\nport = {UPS}.dev\ndesc = \"In the rack\"\n")),
            (&format!("{UPS}.dev"), device),
            ("upsd.conf", format!("LISTEN {host} {port}\n")),
            ("upsd.users", format!("[{USER}]\npassword = \"{password}\"\n")),
        ] {
            std::fs::write(dir.join(name), text)?;
        }
        let start = |name: &str, arguments: &[&str]| {
            let mut command = Command::new(Path::new(PROGRAMS).join(name));
            command.args(["-u", &user(), "-F"]).args(arguments);
            command.env("NUT_CONFPATH", dir).env("NUT_STATEPATH", dir).env("NUT_ALTPIDPATH", dir);
            Process::start(name, &mut command, &dir.join(name).with_extension("log"))
        };
        let mut driver = start("dummy-ups", &["-a", UPS])?;
        let socket = dir.join(format!("dummy-ups-{UPS}"));
        wait::until_true("the driver's socket", SOON, || {
            driver.check_running()?;
            Ok(socket.exists())
        })?;
        let mut upsd = start("upsd", &[])?;
        wait::until_true("upsd's port", SOON, || {
            upsd.check_running()?;
            Ok(std::net::TcpStream::connect(at).is_ok())
        })?;
        Ok(Self { port, driver, _upsd: upsd })
    }

    /// Ends the driver: `upsd` goes on and knows nothing any more.
    ///
    /// # Errors
    /// When it does not end.
    pub fn lose_driver(&mut self) -> Result<()> {
        self.driver.kill()
    }
}

/// As whom both run: they would else take the user of the package.
fn user() -> String {
    std::env::var("USER").unwrap_or_else(|_| "root".into())
}
