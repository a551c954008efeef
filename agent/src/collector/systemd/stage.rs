//! A bus of one, for tests: whoever connects is let in and answered as the test says.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use zbus::connection::Builder;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;
use zbus::message::Type;
use zbus::{Message, MessageStream, ObjectPath, Variant};

const GUID: &str = "0123456789abcdef0123456789abcdef";

/// A unit as the list has it.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) loaded: &'static str,
    pub(super) state: &'static str,
    pub(super) description: String,
}

pub(super) fn entry(name: &str, state: &'static str) -> Entry {
    Entry { name: name.into(), loaded: "loaded", state, description: "A unit".into() }
}

/// What a question is answered with.
pub(super) enum Answer {
    Units(Vec<Entry>),
    Value(Variant<'static>),
    Error(&'static str),
    Silence,
    Goodbye,
}

pub(super) fn number(value: u64) -> Answer {
    Answer::Value(Variant::U64(value))
}

pub(super) fn count(value: u32) -> Answer {
    Answer::Value(Variant::U32(value))
}

pub(super) fn text(value: &str) -> Answer {
    Answer::Value(Variant::Str(value.to_owned().into()))
}

/// The bus; it goes with the runtime of its test.
pub(super) struct Bus {
    pub(super) socket: PathBuf,
    pub(super) visits: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

/// A bus that answers the last word of a unit's path and the name of a property; `("", "ListUnits")` is the list.
pub(super) fn bus(answer: impl Fn(&str, &str) -> Answer + Send + Sync + 'static) -> Bus {
    let answer = Arc::new(answer);
    raw_bus(move |stream| {
        let answer = Arc::clone(&answer);
        async move {
            // Who hangs up before the end is of no interest.
            serve(stream, answer.as_ref()).await.ok();
        }
    })
}

/// A bus that does this with each visitor.
pub(super) fn raw_bus<F: Future<Output = ()> + Send>(serve: impl Fn(UnixStream) -> F + Send + Sync + 'static) -> Bus {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("bus");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let visits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&visits);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = UnixListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                serve(stream).await;
            }
        });
    });
    Bus { socket, visits, _folder: folder }
}

async fn serve(mut stream: UnixStream, answer: &(impl Fn(&str, &str) -> Answer + ?Sized)) -> zbus::Result<()> {
    let mut said = Vec::new();
    let begin = b"BEGIN\r\n";
    let end = loop {
        if let Some(at) = said.windows(begin.len()).position(|window| window == begin) {
            break at + begin.len();
        }
        if stream.read_buf(&mut said).await? == 0 {
            return Ok(());
        }
    };
    stream.write_all(format!("OK {GUID}\r\n").as_bytes()).await?;
    let wire = Wire { stream, first: said.split_off(end) };
    let connection = Builder::authenticated_socket(wire, GUID).build().await?;
    let mut calls = MessageStream::from(&connection);
    while let Some(call) = calls.next().await {
        let call = call?;
        if call.message_type() != Type::MethodCall {
            continue;
        }
        match answer_of(&call, answer) {
            Answer::Units(units) => connection.reply(&call.header(), &rows(&units)).await?,
            Answer::Value(Variant::Str(name)) if call.header().member().is_some_and(|m| m == "Hello") => {
                connection.reply(&call.header(), &name.as_str()).await?;
            }
            Answer::Value(value) => connection.reply(&call.header(), &value).await?,
            Answer::Error(name) => connection.reply_error(&call.header(), name, &"no").await?,
            Answer::Silence => {}
            Answer::Goodbye => return Ok(()),
        }
    }
    Ok(())
}

fn answer_of(call: &Message, answer: &(impl Fn(&str, &str) -> Answer + ?Sized)) -> Answer {
    let header = call.header();
    let path = header.path().map(ToString::to_string).unwrap_or_default();
    let last = path.strip_prefix("/org/freedesktop/systemd1/unit/").unwrap_or_default();
    match header.member().map(|member| member.as_str()) {
        Some("Hello") => text(":1.7"),
        Some("Get") => {
            let body = call.body();
            let (_, property): (&str, &str) = body.deserialize().unwrap();
            answer(last, property)
        }
        Some(other) => answer(last, other),
        None => Answer::Silence,
    }
}

type Row<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str, &'a str, ObjectPath<'a>, u32, &'a str, ObjectPath<'a>);

fn rows(units: &[Entry]) -> Vec<Row<'_>> {
    units.iter().map(row).collect()
}

fn row(unit: &Entry) -> Row<'_> {
    let Entry { name, loaded, state, description } = unit;
    let path = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let path = ObjectPath::try_from(format!("/org/freedesktop/systemd1/unit/{path}")).unwrap();
    let none = ObjectPath::try_from("/").unwrap();
    (name, description, loaded, state, "sub", "", path, 0, "", none)
}

/// A stream whose first bytes have been read.
#[derive(Debug)]
struct Wire {
    stream: UnixStream,
    first: Vec<u8>,
}

#[derive(Debug)]
struct Reader(OwnedReadHalf, Vec<u8>);

#[derive(Debug)]
struct Writer(OwnedWriteHalf);

impl Socket for Wire {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = self.stream.into_split();
        Split::new(Reader(read, self.first), Writer(write))
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> std::io::Result<(usize, Vec<OwnedFd>)> {
        if !self.1.is_empty() {
            let taken = self.1.len().min(buffer.len());
            buffer[..taken].copy_from_slice(&self.1[..taken]);
            self.1.drain(..taken);
            return Ok((taken, Vec::new()));
        }
        Ok((self.0.read(buffer).await?, Vec::new()))
    }
}

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _: &[BorrowedFd<'_>]) -> std::io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn close(&mut self) -> std::io::Result<()> {
        self.0.shutdown().await
    }
}
