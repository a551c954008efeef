//! A real web server, lighttpd, as a device over HTTP: files behind digest or Basic authentication, on a port of loopback
//! that the kernel chose.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::peers::Peer;
use crate::process::{self, Process};
use crate::wait;

/// Who may ask.
pub const USER: &str = "admin";
/// What the server calls itself; part of every digest.
const REALM: &str = "shellyplus1pm-aabbccddeeff";
const SOON: Duration = Duration::from_secs(30);

/// How it lets in.
#[derive(Debug, Clone, Copy)]
pub enum Door {
    /// Digest (RFC 7616) with `MD5` or `SHA-256`.
    Digest(&'static str),
    /// Basic (RFC 7617).
    Basic,
}

/// The server, running.
#[derive(Debug)]
pub struct Lighttpd {
    /// Where it listens.
    pub port: u16,
    dir: PathBuf,
    process: Process,
}

impl Lighttpd {
    /// A server whose files are yet to be [put](Self::put).
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(dir: &Path, door: Door, password: &str) -> Result<Self> {
        std::fs::create_dir_all(dir.join("www"))?;
        // Chosen by the kernel and free again a moment later: lighttpd takes no socket from outside.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = serve(dir, port, door, password)?;
        Ok(Self { port, dir: dir.to_owned(), process })
    }

    /// The same server, which from now on lets in otherwise.
    ///
    /// # Errors
    /// When it does not start again.
    pub fn change(&mut self, door: Door, password: &str) -> Result<()> {
        // Told to end, it writes what its log still lacks.
        self.process.terminate(SOON)?;
        self.process = serve(&self.dir, self.port, door, password)?;
        Ok(())
    }

    /// Gives this to a GET of the path.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn put(&self, path: &str, text: &str) -> Result<()> {
        let file = self.dir.join("www").join(path);
        std::fs::create_dir_all(file.parent().context("a path")?)?;
        // At once: the satellite may be reading what was there.
        let new = self.dir.join("new");
        std::fs::write(&new, text)?;
        Ok(std::fs::rename(new, file)?)
    }

    /// Gives this XML to a POST of a path below `upnp/`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn put_call(&self, path: &str, xml: &str) -> Result<()> {
        self.put(path, &format!("printf 'Content-Type: text/xml\\n\\n'\ncat <<'END'\n{xml}\nEND\n"))
    }

    /// Answers a POST of a path below `upnp/` with a fault of UPnP.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn put_fault(&self, path: &str, code: u16, words: &str) -> Result<()> {
        let xml = format!(
            "<s:Envelope><s:Body><s:Fault><detail><UPnPError><errorCode>{code}</errorCode>\
             <errorDescription>{words}</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>"
        );
        let head = "printf 'Status: 500\\nContent-Type: text/xml\\n\\n'";
        self.put(path, &format!("{head}\ncat <<'END'\n{xml}\nEND\n"))
    }

    /// What it was asked before it was last changed: the request lines, each with its status and its `Authorization`.
    ///
    /// # Errors
    /// When there is no log.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.join("access.log"))?)
    }
}

fn serve(dir: &Path, port: u16, door: Door, password: &str) -> Result<Process> {
    let at = dir.display();
    let mut settings = format!(
        "server.modules = (\"mod_auth\", \"mod_authn_file\", \"mod_accesslog\", \"mod_cgi\")\n\
         server.document-root = \"{at}/www\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\nserver.stat-cache-engine = \"disable\"\n\
         server.errorlog = \"{at}/error.log\"\naccesslog.filename = \"{at}/access.log\"\n\
         accesslog.format = \"%r %s %{{Authorization}}i\"\n\
         $HTTP[\"url\"] =~ \"^/upnp/\" {{ cgi.assign = (\"\" => \"/bin/sh\") }}\n"
    );
    let (method, algorithm, users) = match door {
        Door::Digest(algorithm) => {
            let hash = if algorithm == "MD5" { "md5sum" } else { "sha256sum" };
            let said = process::run(&mut Command::new(hash), &format!("{USER}:{REALM}:{password}"))?.success()?;
            let hash = said.split_whitespace().next().context("a hash")?;
            let users = format!("{USER}:{REALM}:{hash}\n");
            writeln!(settings, "auth.backend = \"htdigest\"\nauth.backend.htdigest.userfile = \"{at}/users\"")?;
            ("digest", format!("\"algorithm\" => \"{algorithm}\", "), users)
        }
        Door::Basic => {
            writeln!(settings, "auth.backend = \"plain\"\nauth.backend.plain.userfile = \"{at}/users\"")?;
            ("basic", String::new(), format!("{USER}:{password}\n"))
        }
    };
    writeln!(
        settings,
        "auth.require = (\"/\" => (\"method\" => \"{method}\", {algorithm}\"realm\" => \"{REALM}\", \
         \"require\" => \"valid-user\"))"
    )?;
    std::fs::write(dir.join("users"), users)?;
    std::fs::write(dir.join("lighttpd.conf"), settings)?;
    let mut command = Command::new(Peer::Lighttpd.path().context("lighttpd")?);
    command.arg("-D").arg("-f").arg(dir.join("lighttpd.conf"));
    let mut process = Process::start("lighttpd", &mut command, &dir.join("lighttpd.log"))?;
    wait::until_true("lighttpd's port", SOON, || {
        process.check_running()?;
        Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
    })?;
    Ok(process)
}
