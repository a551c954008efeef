//! The system's message bus, as far as systemd is asked over it; bounded, since any program of this host may send us
//! messages there.
//!
//! zbus speaks D-Bus, and the bytes pass through here: a message is refused by the length that its head announces, before
//! anything is allocated for it. The task that reads belongs to the connection and ends with it; no thread is started.
//! Deliberately absent: signals, and every method that changes something.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use satellite_shared::gap::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zbus::connection::Builder;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;
use zbus::proxy::CacheProperties;
use zbus::{Connection, Message, OwnedObjectPath, proxy};

use super::super::{Failure, probe};

/// Where the bus is on every Linux with one.
const SOCKET: &str = "/run/dbus/system_bus_socket";
/// What the bus may say until it has let us in.
const HANDSHAKE_BYTES_MAX: usize = 64 << 10;
/// The list of all units; a unit takes some 300 bytes.
const LIST_BYTES_MAX: usize = 4 << 20;
/// Any other message: a number or a word, and what others send that is dropped.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// A message's head, of which the first sixteen bytes say how long all of it is.
const HEAD_BYTES: usize = 16;

/// One unit as [`ManagerProxy::list_units`] tells it: name, description, whether it is loaded, state, finer state, whom it
/// follows, path, and the job that is queued for it.
pub(super) type Listed =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub(super) trait Manager {
    fn list_units(&self) -> zbus::Result<Vec<Listed>>;
    #[zbus(property)]
    fn system_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn version(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn virtualization(&self) -> zbus::Result<String>;
}

#[proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
pub(super) trait Unit {
    #[zbus(property)]
    fn active_enter_timestamp(&self) -> zbus::Result<u64>;
}

#[proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
pub(super) trait Service {
    #[zbus(property, name = "CPUUsageNSec")]
    fn cpu_usage_nsec(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn memory_current(&self) -> zbus::Result<u64>;
    #[zbus(property, name = "NRestarts")]
    fn restarts(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn tasks_current(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn tasks_max(&self) -> zbus::Result<u64>;
    #[zbus(property, name = "Type")]
    fn kind(&self) -> zbus::Result<String>;
}

#[proxy(interface = "org.freedesktop.systemd1.Timer", default_service = "org.freedesktop.systemd1")]
pub(super) trait Timer {
    #[zbus(property, name = "LastTriggerUSec")]
    fn last_trigger_usec(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
}

#[proxy(interface = "org.freedesktop.systemd1.Socket", default_service = "org.freedesktop.systemd1")]
pub(super) trait ListeningSocket {
    #[zbus(property, name = "NAccepted")]
    fn accepted(&self) -> zbus::Result<u32>;
    #[zbus(property, name = "NConnections")]
    fn connections(&self) -> zbus::Result<u32>;
    #[zbus(property, name = "NRefused")]
    fn refused(&self) -> zbus::Result<u32>;
}

#[proxy(interface = "org.freedesktop.systemd1.Mount", default_service = "org.freedesktop.systemd1")]
pub(super) trait Mount {
    #[zbus(property, name = "Type")]
    fn kind(&self) -> zbus::Result<String>;
}

/// Where the bus is: `DBUS_SYSTEM_BUS_ADDRESS` as D-Bus writes it, or the usual place.
pub(super) fn socket(address: Option<&str>) -> Result<PathBuf, String> {
    let Some(address) = address.filter(|address| !address.is_empty()) else { return Ok(SOCKET.into()) };
    let paths = address.split(';').filter_map(|one| {
        let path = one.strip_prefix("unix:")?.split(',').find_map(|pair| pair.strip_prefix("path="))?;
        // What D-Bus escapes is in nobody's path.
        (path.starts_with('/') && !path.contains('%')).then(|| PathBuf::from(path))
    });
    paths.into_iter().next().ok_or_else(|| {
        let shown: String = address.chars().take(60).collect();
        format!("DBUS_SYSTEM_BUS_ADDRESS is `{}`: only unix:path=/… is read", shown.escape_debug())
    })
}

/// A connection to the bus.
#[derive(Debug)]
pub(super) struct Bus {
    connection: Connection,
    room: Arc<AtomicUsize>,
}

impl Bus {
    pub(super) async fn connect(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).await.map_err(|error| failure_of_connect(socket, &error))?;
        let room = Arc::new(AtomicUsize::new(MESSAGE_BYTES_MAX));
        let socket = Bounded { stream, room: Arc::clone(&room) };
        let connection = Builder::socket(socket).build().await.map_err(|error| failure_of(&error))?;
        Ok(Self { connection, room })
    }

    /// Whether the bus has gone since.
    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// systemd itself.
    pub(super) async fn manager(&self) -> Result<ManagerProxy<'static>, Failure> {
        let proxy = ManagerProxy::builder(&self.connection).cache_properties(CacheProperties::No);
        proxy.build().await.map_err(|error| failure_of(&error))
    }

    /// All units: the one answer that may be long.
    pub(super) async fn units(&self, manager: &ManagerProxy<'_>) -> Result<Vec<Listed>, Failure> {
        self.room.store(LIST_BYTES_MAX, Ordering::Relaxed);
        let listed = manager.list_units().await;
        self.room.store(MESSAGE_BYTES_MAX, Ordering::Relaxed);
        listed.map_err(|error| failure_of(&error))
    }

    /// One of a unit's interfaces; nothing is sent for it. Its values are asked for one by one: all of them would be three
    /// hundred.
    pub(super) async fn at<'a, T>(&self, path: &'a OwnedObjectPath) -> Result<T, Failure>
    where
        T: From<zbus::Proxy<'a>> + zbus::proxy::Defaults,
    {
        let proxy = zbus::proxy::Builder::new(&self.connection).path(path).cache_properties(CacheProperties::No);
        proxy.build().await.map_err(|error| failure_of(&error))
    }
}

/// A stream that takes no message longer than there is room for.
#[derive(Debug)]
struct Bounded {
    stream: UnixStream,
    room: Arc<AtomicUsize>,
}

impl Socket for Bounded {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = self.stream.into_split();
        let bytes = Bytes { stream: read, left: HANDSHAKE_BYTES_MAX };
        Split::new(Reader { bytes, room: self.room }, Writer(write))
    }
}

#[derive(Debug)]
struct Reader {
    bytes: Bytes,
    room: Arc<AtomicUsize>,
}

#[async_trait]
impl ReadHalf for Reader {
    async fn receive_message(
        &mut self,
        seq: u64,
        already_received_bytes: &mut Vec<u8>,
        already_received_fds: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        self.bytes.left = usize::MAX;
        let mut head = [0; HEAD_BYTES];
        while already_received_bytes.len() < HEAD_BYTES {
            let missing = HEAD_BYTES - already_received_bytes.len();
            let (read, _) = self.bytes.recvmsg(&mut head[..missing]).await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            already_received_bytes.extend_from_slice(&head[..read]);
        }
        let room = self.room.load(Ordering::Relaxed);
        if announced(already_received_bytes).is_none_or(|bytes| bytes > room as u64) {
            let what = format!("a message of more than {room} bytes on the bus");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what).into());
        }
        self.bytes.receive_message(seq, already_received_bytes, already_received_fds).await
    }

    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.bytes.recvmsg(buffer).await
    }
}

/// How long the message is that begins like this: the head, its fields up to a multiple of eight, the body.
fn announced(head: &[u8]) -> Option<u64> {
    let number = |at: usize| {
        let bytes: [u8; 4] = head.get(at..at + 4)?.try_into().ok()?;
        Some(u64::from(if head.first() == Some(&b'B') { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }))
    };
    Some(HEAD_BYTES as u64 + number(12)?.next_multiple_of(8) + number(4)?)
}

/// What comes in.
#[derive(Debug)]
struct Bytes {
    stream: OwnedReadHalf,
    /// Until the handshake is too long.
    left: usize,
}

#[async_trait]
impl ReadHalf for Bytes {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let read = self.stream.read(buffer).await?;
        if self.left != usize::MAX {
            self.left = self.left.checked_sub(read).ok_or_else(|| {
                let what = format!("the bus greets with more than {HANDSHAKE_BYTES_MAX} bytes");
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
        }
        Ok((read, Vec::new()))
    }
}

#[derive(Debug)]
struct Writer(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

fn failure_of_connect(socket: &Path, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        let what = format!("no message bus at {}: apt install dbus", socket.display());
        return Failure::new(Reason::Unsupported, what);
    }
    probe::failure_of_io(error)
}

/// Why systemd could not be asked.
fn failure_of(error: &zbus::Error) -> Failure {
    if let zbus::Error::InputOutput(error) = error {
        return probe::failure_of_io(error);
    }
    if let zbus::Error::Handshake(said) = error {
        let shown: String = said.chars().take(80).collect();
        return Failure::new(Reason::Refused, format!("the bus does not let us in: {}", shown.escape_debug()));
    }
    let (name, said) = name_of(error);
    let shown: String = said.chars().take(80).collect();
    let shown = shown.escape_debug();
    match name.rsplit('.').next().unwrap_or_default() {
        // Where systemd is not there, the bus has a program for its name that fails on purpose.
        last if name.contains(".Error.Spawn.") || matches!(last, "ServiceUnknown" | "NameHasNoOwner") => {
            let what = "nobody on the bus is systemd: this machine was started by another program";
            Failure::new(Reason::Unsupported, what)
        }
        "AccessDenied" => Failure::new(Reason::Refused, format!("the bus forbids to ask systemd: {shown}")),
        "NoReply" | "Timeout" | "TimedOut" => Failure::new(Reason::Timeout, "systemd left the question unanswered"),
        "" => Failure::new(Reason::BadAnswer, format!("not what systemd answers: {shown}")),
        last => {
            let last: String = last.chars().take(60).collect();
            Failure::new(Reason::Refused, format!("systemd refuses, {last}: {shown}"))
        }
    }
}

/// The name of an error that came as an answer, and what it said; no name where it was none.
fn name_of(error: &zbus::Error) -> (String, String) {
    use zbus::DBusError as _;
    if let zbus::Error::MethodError(name, said, _) = error {
        return (name.to_string(), said.clone().unwrap_or_default());
    }
    if let zbus::Error::FDO(error) = error {
        return (error.name().to_string(), error.description().unwrap_or_default().to_owned());
    }
    (String::new(), error.to_string())
}

/// What one question gave: nothing where the unit has gone, is too old to know of it, or answers with something else.
/// Where the bus itself has failed, nothing that follows can succeed.
pub(super) fn answer<T>(said: zbus::Result<T>) -> Result<Option<T>, Failure> {
    match said {
        Ok(value) => Ok(Some(value)),
        Err(error @ zbus::Error::InputOutput(_)) => Err(failure_of(&error)),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_where_the_environment_says_or_where_it_always_is() {
        let path = |address: Option<&str>| socket(address).map(|path| path.display().to_string());
        assert_eq!(path(None).unwrap(), SOCKET);
        assert_eq!(path(Some("")).unwrap(), SOCKET);
        assert_eq!(path(Some("unix:path=/a/b,guid=00")).unwrap(), "/a/b");
        assert_eq!(path(Some("tcp:host=x;unix:guid=0,path=/c")).unwrap(), "/c");
        for wrong in ["tcp:host=x", "unix:abstract=/x", "unix:path=x", "unix:path=/a%20b", "/run/bus", ";", "unix:"] {
            assert!(socket(Some(wrong)).unwrap_err().contains("only unix:path="), "{wrong}");
        }
    }

    #[test]
    fn a_message_is_as_long_as_its_head_announces() {
        let head = [b'l', 1, 0, 1, 5, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0];
        assert_eq!(announced(&head), Some(16 + 16 + 5));
        let big = [b'B', 1, 0, 1, 0, 0, 0, 5, 0, 0, 0, 1, 255, 255, 255, 255];
        assert_eq!(announced(&big), Some(16 + (1 << 32) + 5));
        assert_eq!(announced(&head[..15]), None);
    }
}
