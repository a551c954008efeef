//! What one satellite may say to the relay in a session: the real machine, intake, encoder and reader behind it.
//!
//! An input is a row of pieces: a byte that says what happens, two with a length, and so many bytes.

use std::sync::Arc;

use bytes::Bytes;
use satellite_relay::ingest::intake::{Bounds, Intake};
use satellite_relay::ingest::watermark::Watermark;
use satellite_relay::ingest::{Block, Outcome};
use satellite_relay::session::Limits;
use satellite_relay::session::machine::{Admission, Closing, Effect, Event, Greeting, Machine};
use satellite_relay::sink::archive::encode;
use satellite_relay::sink::archive::layout::BatchId;
use satellite_relay::sink::archive::reader::{Query, decode_gaps, decode_samples};
use satellite_shared::clock::Now;
use satellite_shared::id::{LeaseId, SatelliteId};
use satellite_shared::limits;
use satellite_shared::secret::{Token, TokenKind};
use satellite_shared::wire::ToRelay;
use satellite_shared::wire::block::Decoder;
use satellite_shared::wire::to_relay::Authenticate;
use tokio::sync::mpsc;

use super::{NOW_MS, mended, text};

const TEXT: u8 = 0;
const FRAME: u8 = 1;
/// A frame whose length and checksum are made right.
const MENDED: u8 = 2;
/// So many milliseconds pass.
const TIME: u8 = 3;
/// What was taken is stored.
const COMMIT: u8 = 4;
const KINDS: u8 = 5;

/// A relay with one session.
struct Relay {
    machine: Machine,
    decoder: Decoder,
    intake: Intake,
    batches: u8,
    mono_ms: u64,
    reply: mpsc::UnboundedSender<Outcome>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    /// Blocks that were taken and not answered.
    waiting: usize,
    closed: Option<Closing>,
}

pub(super) fn session(bytes: &[u8]) {
    let mut relay = Relay::new();
    relay.happens(Event::Opened(Ok(Greeting { relay: "relay-1".into() })));
    relay.happens(Event::Text(serde_json::to_string(&authenticate()).expect("an event is written")));
    let mut rest = bytes;
    while let Some((kind, length, more)) = head(rest) {
        let (piece, after) = more.split_at(length.min(more.len()));
        rest = after;
        match kind % KINDS {
            TEXT => {
                let Some(text) = text(piece) else { continue };
                relay.happens(Event::Text(text.to_owned()));
            }
            FRAME => relay.happens(Event::Frame(Bytes::copy_from_slice(piece))),
            MENDED => {
                let Some(frame) = mended(piece) else { continue };
                relay.happens(Event::Frame(frame.into()));
            }
            TIME => {
                relay.mono_ms += length as u64;
                rest = more;
                relay.happens(Event::Tick);
            }
            _ => {
                rest = more;
                relay.commit();
            }
        }
        if relay.closed.is_some() {
            break;
        }
    }
    relay.commit();
    assert_eq!(relay.waiting, 0, "blocks without an answer");
}

fn head(bytes: &[u8]) -> Option<(u8, usize, &[u8])> {
    let (head, rest) = bytes.split_at_checked(3)?;
    Some((head[0], usize::from(u16::from_le_bytes([head[1], head[2]])), rest))
}

fn piece(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a piece is short").to_le_bytes();
    [&[kind], &length[..], bytes].concat()
}

fn authenticate() -> ToRelay {
    ToRelay::Authenticate(Authenticate {
        protocol: 1,
        lease: LeaseId::from_bits([3; 10]),
        token: Token::from_bits(TokenKind::Satellite, [5; 32]),
        agent_version: "1".into(),
        hostname: "attic".into(),
        instance: "i".into(),
        clock_ms: NOW_MS,
        config_version: 0,
        generation: 1,
        streams: vec![],
    })
}

/// Each of these frames alone, then all of them with commits between.
pub(super) fn sessions() -> Vec<Vec<u8>> {
    let frames = super::frames();
    let alone = frames.iter().map(|frame| piece(MENDED, frame));
    let together = frames.iter().flat_map(|frame| [piece(FRAME, frame), piece(COMMIT, b"")]).flatten().collect();
    let beat = br#"{"event":"HEARTBEAT","data":{"clock_ms":5,"epoch":"0123456789abcdef0123456789abcdef","last_seq":4,"due":4,"waiting":0}}"#;
    let talk = [piece(TEXT, beat), piece(TIME, b""), piece(TEXT, b"{\"event\":\"RENEW\",\"data\":{\"csr\":\"x\"}}")];
    alone.chain([together, talk.concat()]).collect()
}

impl Relay {
    fn new() -> Self {
        let (reply, outcomes) = mpsc::unbounded_channel();
        let mono_ms = 1_000;
        let now = Now { wall_ms: NOW_MS, mono_ms };
        Self {
            machine: Machine::new(Arc::new(Limits::default()), now),
            decoder: Decoder::default(),
            intake: Intake::new(BatchId::new(NOW_MS, [0; 10])),
            batches: 0,
            mono_ms,
            reply,
            outcomes,
            waiting: 0,
            closed: None,
        }
    }

    fn now(&self) -> Now {
        Now { wall_ms: NOW_MS + i64::try_from(self.mono_ms).unwrap_or(0), mono_ms: self.mono_ms }
    }

    fn happens(&mut self, event: Event) {
        let effects = self.machine.handle(self.now(), event, &mut self.decoder);
        assert!(self.closed.is_none() || effects.is_empty(), "after its end a session does {effects:?}");
        assert!(self.machine.outstanding_bytes() <= 2 * Limits::default().credit_bytes_max);
        for effect in effects {
            assert!(self.closed.is_none(), "after its end a session does {effect:?}");
            match effect {
                Effect::Admit(_) => {
                    let admission = Admission {
                        satellite: satellite(),
                        session: "s".into(),
                        stored: vec![],
                        config_version: 0,
                        config: None,
                        renew_after_ms: i64::MAX,
                    };
                    self.happens(Event::Admitted(Ok(Box::new(admission))));
                }
                Effect::Submit(submission) => {
                    let (header, body, frame) = (submission.header, submission.body, submission.frame);
                    self.take(Block { satellite: satellite(), header, body, frame, reply: self.reply.clone() });
                }
                Effect::Send(event) => {
                    let said = serde_json::to_string(&event).expect("an event is written");
                    assert!(said.len() <= satellite_shared::wire::to_satellite::event_bytes_max());
                }
                Effect::Close(closing) => self.closed = Some(closing),
                Effect::FetchConfig => self.happens(Event::Config(None)),
                Effect::Renew(_) => self.happens(Event::Issued(Err("no".into()))),
                Effect::Complained(complaint) => assert!(complaint.message.len() <= 4 * limits::DETAIL_BYTES_MAX),
                Effect::Ping | Effect::ConfigStatus(_) | Effect::Seen(_) => {}
            }
        }
    }

    fn take(&mut self, block: Block) {
        let now = self.now();
        if self.intake.is_too_wide_with(&block, now.wall_ms) {
            self.commit();
        }
        for stream in self.intake.unknown(&block) {
            self.intake.learn(stream, Watermark::default());
        }
        self.waiting += 1;
        self.intake.take(block, now.wall_ms, now.mono_ms);
        if self.intake.is_full(&bounds()) {
            self.commit();
        }
    }

    /// All that was taken is written, and read again: each record is there once.
    fn commit(&mut self) {
        self.batches = self.batches.wrapping_add(1);
        let sealed = self.intake.seal(BatchId::new(NOW_MS, [self.batches; 10]));
        let all = Query { satellite: None, metric: None, since_ms: i64::MIN, limit: usize::MAX };
        let objects = encode(&sealed.batch, None).expect("what was taken can be written");
        let rows = |bytes: &Bytes, key: &str| match key.starts_with("samples") {
            true => decode_samples(bytes.clone(), &all).map(|rows| rows.len()),
            false => decode_gaps(bytes.clone(), &all).map(|rows| rows.len()),
        };
        let read: usize = objects.iter().map(|one| rows(&one.bytes, &one.key).expect("what was written is read")).sum();
        assert_eq!(read, sealed.batch.rows);
        self.intake.committed(sealed);
        let mut outcomes = Vec::new();
        while let Ok(outcome) = self.outcomes.try_recv() {
            outcomes.push(outcome);
        }
        assert!(outcomes.len() <= self.waiting, "a block was answered twice");
        self.waiting -= outcomes.len();
        if self.closed.is_none() {
            self.happens(Event::Outcomes(outcomes));
        }
    }
}

fn bounds() -> Bounds {
    Bounds { rows_max: 100_000, bytes_max: 1 << 20, age_ms_max: 10_000, idle_rows: 1_000, idle_ms: 250 }
}

fn satellite() -> SatelliteId {
    SatelliteId::from_bits([1; 10])
}
