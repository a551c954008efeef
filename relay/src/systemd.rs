//! What the service manager is told and gives: ready, how things stand, stopping; the watchdog's food; the two sockets.
//!
//! The food is given only while every task takes its turns ([`satellite_shared::heartbeat`]) and the registry can be
//! changed. Sockets that the service manager holds (`FileDescriptorName=web` and `satellites`) go on taking connections
//! while the relay is started anew. Without a service manager nothing is said to nobody, and the relay binds by itself.
//! Deliberately absent: what the unit may do, which stands in the unit.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};
use satellite_shared::clock::Clock;
use satellite_shared::heartbeat::{Beat, Heartbeats};
use sd_notify::NotifyState;

use crate::listener::Sockets;
use crate::session::Roster;

/// What starting may take: a large registry is read through, an archive that was copied back is compared.
const STARTING: Duration = Duration::from_secs(300);
/// What a stop takes beside its grace period: closing and sealing the registry.
const CLOSING: Duration = Duration::from_secs(30);
/// How often the tasks and the figures are looked at where no watchdog asks for more.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is asked whether all have begun.
const BEGIN: Duration = Duration::from_millis(20);

/// Why the sockets of the service manager can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// What the environment says of them makes no sense.
    #[error("the service manager's sockets: {0}")]
    Environment(#[source] io::Error),
    /// It has another name, or one that another has.
    #[error(
        "the service manager gave a socket named `{0}`: it must give one with FileDescriptorName=web and one with \
         FileDescriptorName=satellites, or none"
    )]
    Name(String),
    /// One is missing.
    #[error("the service manager gave no socket with FileDescriptorName={0}; it must give both, or none")]
    Missing(&'static str),
    /// It is no TCP socket that listens.
    #[error(
        "the service manager's socket `{name}` is not a TCP socket that listens ({why}): use ListenStream=PORT and Accept=no"
    )]
    Kind {
        /// Which.
        name: String,
        /// What it is instead.
        why: String,
    },
}

/// The sockets of both doors, where the service manager gives them. To be asked once, before anything else is opened.
///
/// # Errors
/// When it gives others than two TCP sockets that listen, one for each door.
pub fn sockets() -> Result<Option<Sockets>, ActivationError> {
    let given = sd_notify::listen_fds_with_names().map_err(ActivationError::Environment)?;
    #[expect(unsafe_code, reason = "only the number of an inherited socket is known, and nobody else owns it")]
    let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
    let given: Vec<(OwnedFd, String)> = given.map(|(number, name)| (own(number), name)).collect();
    if given.is_empty() {
        return Ok(None);
    }
    let (mut web, mut satellites) = (None, None);
    for (socket, name) in given {
        let door = match name.as_str() {
            "web" => &mut web,
            "satellites" => &mut satellites,
            _ => return Err(ActivationError::Name(name)),
        };
        if door.is_some() {
            return Err(ActivationError::Name(name));
        }
        *door = Some(listening(socket, &name)?);
    }
    let web = web.ok_or(ActivationError::Missing("web"))?;
    Ok(Some(Sockets { web, satellites: satellites.ok_or(ActivationError::Missing("satellites"))? }))
}

fn listening(socket: OwnedFd, name: &str) -> Result<TcpListener, ActivationError> {
    let kind = |why: String| ActivationError::Kind { name: name.to_owned(), why };
    let failed = |error: rustix::io::Errno| kind(error.to_string());
    let domain = sockopt::socket_domain(&socket).map_err(failed)?;
    if domain != AddressFamily::INET && domain != AddressFamily::INET6 {
        return Err(kind("it is of another family".into()));
    }
    if sockopt::socket_type(&socket).map_err(failed)? != SocketType::STREAM {
        return Err(kind("it is no stream".into()));
    }
    if !sockopt::socket_acceptconn(&socket).map_err(failed)? {
        return Err(kind("it does not listen".into()));
    }
    let socket = TcpListener::from(socket);
    socket.set_nonblocking(true).map_err(|error| kind(error.to_string()))?;
    Ok(socket)
}

/// The service manager, if there is one.
#[derive(Debug, Clone, Copy)]
pub struct ServiceManager {
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// As the environment says it (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).
    #[must_use]
    pub fn of_environment() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled() }
    }

    /// What a relay's tasks are watched with.
    #[must_use]
    pub fn heartbeats(self) -> Heartbeats {
        Heartbeats::new(self.watchdog)
    }

    /// Registry and archive are about to be opened: nobody is let in until they are.
    pub fn starting(self) {
        tell(&[NotifyState::ExtendTimeoutUsec(micros(STARTING)), NotifyState::Status("opening registry and archive")]);
        if self.watchdog.is_some() {
            tell(&[NotifyState::WatchdogUsec(micros(STARTING)), NotifyState::Watchdog]);
        }
    }

    /// The settings are about to be read anew, and the relay to begin again with them.
    pub fn reloading(self, grace: Duration) {
        let mut states = vec![NotifyState::Reloading, NotifyState::Status("reading the settings anew")];
        // systemd asks for the time, so that no word of readiness from before is taken for this one.
        states.extend(NotifyState::monotonic_usec_now().ok());
        states.push(NotifyState::ExtendTimeoutUsec(micros(grace + CLOSING)));
        tell(&states);
    }

    /// The relay is about to stop.
    pub fn stopping(self, grace: Duration) {
        let status = NotifyState::Status("stopping: committing what was received");
        tell(&[NotifyState::Stopping, status, NotifyState::ExtendTimeoutUsec(micros(grace + CLOSING))]);
    }

    /// It is running, with the settings that count.
    pub fn ready(self) {
        if let Some(watchdog) = self.watchdog {
            tell(&[NotifyState::WatchdogUsec(micros(watchdog))]);
        }
        tell(&[NotifyState::Ready]);
    }
}

/// Feeds the watchdog and says how things stand, for as long as a relay lives.
pub struct Supervisor {
    manager: ServiceManager,
    heartbeats: Heartbeats,
    clock: Arc<dyn Clock>,
    roster: Roster,
    said: String,
    stuck: Vec<&'static str>,
}

impl Supervisor {
    /// Of a relay's tasks, all of which `heartbeats` knows.
    #[must_use]
    pub fn new(manager: ServiceManager, heartbeats: Heartbeats, clock: Arc<dyn Clock>, roster: Roster) -> Self {
        Self { manager, heartbeats, clock, roster, said: String::new(), stuck: Vec::new() }
    }

    /// Goes on until it is dropped.
    pub async fn run(mut self) -> Infallible {
        while !self.heartbeats.have_begun() {
            tokio::time::sleep(BEGIN).await;
        }
        self.manager.ready();
        let every = self.manager.watchdog.map_or(LOOK, |watchdog| LOOK.min(watchdog / 4));
        loop {
            self.look();
            tokio::time::sleep(every).await;
        }
    }

    fn look(&mut self) {
        let stuck = self.heartbeats.stuck(self.clock.now().mono_ms);
        if stuck != self.stuck {
            match stuck.as_slice() {
                [] => tracing::warn!("every task goes on again"),
                tasks => tracing::error!(tasks = tasks.join(", "), "stuck: the watchdog is not fed until they go on"),
            }
            self.stuck = stuck;
        }
        if self.stuck.is_empty() && self.manager.watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        let text = match self.stuck.as_slice() {
            [] => format!("serving; satellites connected: {}", self.roster.connected().len()),
            tasks => format!("stuck: {}", tasks.join(", ")),
        };
        if text != self.said {
            tell(&[NotifyState::Status(&text)]);
            self.said = text;
        }
    }
}

/// Waits for the registry or the archive, which may be away for as long as they like: whether those are stuck is not
/// the waiting task's to say.
pub(crate) async fn waiting<T>(beat: &Beat, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        beat.beat();
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(beat.every()) => {}
        }
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_is_no_listening_tcp_socket_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for (socket, said) in [
            (OwnedFd::from(unix), "another family"),
            (OwnedFd::from(udp), "no stream"),
            (OwnedFd::from(connected), "does not listen"),
        ] {
            let error = listening(socket, "web").unwrap_err().to_string();
            assert!(error.contains("`web`") && error.contains(said), "{error}");
        }
        assert!(listening(OwnedFd::from(listener), "web").is_ok());
    }
}
