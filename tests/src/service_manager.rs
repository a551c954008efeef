//! What a program tells its service manager, heard by a test that stands in its place (sd_notify(3)).
//!
//! Every state is kept in the order of its coming. Deliberately absent: anything that a service manager does about it;
//! a real one is asked in a machine of its own.

use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::wait;

/// The stand-in.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    path: PathBuf,
    said: Vec<String>,
}

impl ServiceManager {
    /// Listens at `dir/notify`.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn new(dir: &Path) -> Result<Self> {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path, said: Vec::new() })
    }

    /// What a program is started with that is to be watched.
    #[must_use]
    pub fn environment(&self, watchdog: Duration) -> [(&'static str, String); 2] {
        [("NOTIFY_SOCKET", self.path.display().to_string()), ("WATCHDOG_USEC", watchdog.as_micros().to_string())]
    }

    /// Everything said so far, one state each.
    ///
    /// # Errors
    /// When the socket can't be read.
    pub fn said(&mut self) -> Result<&[String]> {
        let mut message = [0; 8 << 10];
        loop {
            match self.socket.recv(&mut message) {
                Ok(length) => {
                    let text = String::from_utf8(message[..length].to_vec()).context("a state is text")?;
                    self.said.extend(text.lines().map(str::to_owned));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(&self.said),
                Err(error) => return Err(error).context("the notify socket"),
            }
        }
    }

    /// How often something was said that begins with this.
    ///
    /// # Errors
    /// When the socket can't be read.
    pub fn count(&mut self, beginning: &str) -> Result<usize> {
        Ok(self.said()?.iter().filter(|said| said.starts_with(beginning)).count())
    }

    /// Waits until something that begins with this is said, so often in all.
    ///
    /// # Errors
    /// At the deadline: with what was said instead.
    pub fn wait_for(&mut self, beginning: &str, times: usize, within: Duration) -> Result<()> {
        let waited = wait::until_true(beginning, within, || Ok(self.count(beginning)? >= times));
        waited.with_context(|| format!("it said {:?}", self.said))
    }
}

/// Lets programs that are started from now on have a socket by its number: one that a service manager holds for them.
///
/// # Errors
/// When the kernel refuses.
pub fn hand_down(socket: &std::net::TcpListener) -> Result<i32> {
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())?;
    Ok(socket.as_raw_fd())
}

/// What starts a program with these sockets as a service manager does: as descriptors 3 and on, under these names.
#[must_use]
pub fn activation(sockets: &[i32], names: &str) -> Vec<String> {
    let moved: String = sockets.iter().enumerate().map(|(at, socket)| format!("{}<&{socket} ", at + 3)).collect();
    let count = sockets.len();
    let script =
        format!("exec {moved}; export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}; exec \"$0\" \"$@\"");
    vec!["bash".to_owned(), "-c".to_owned(), script]
}
