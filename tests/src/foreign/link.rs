//! What one relay may say to a satellite in a session: the real link, with a small buffer behind it.
//!
//! An input is a row of lines: an event as JSON, or `+` and how many milliseconds pass; at an empty line what may go goes.

use std::time::Duration;

use bytes::Bytes;
use satellite_agent::buffer::{Place, StoredBlock};
use satellite_agent::uplink::backoff::{Backoff, Ending};
use satellite_agent::uplink::link::{Closing, Effect, Link, Next, Read};
use satellite_shared::clock::Now;
use satellite_shared::config::Document;
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::ToSatellite;
use satellite_shared::wire::block::{self, Body, ClockQuality, Encoder, Group, Stamp};
use satellite_shared::wire::to_satellite::{Ack, Authenticated, Drain, Hello, Nack, NackCode, Stored};

use super::{NOW_MS, text};

/// Openings of the buffer, and blocks in each.
const OPENINGS: u32 = 2;
const BLOCKS: u64 = 6;
const RECORDS: u64 = 4;
/// Frames that go at once.
const TURN: usize = 40;
/// No word of a relay silences a satellite for longer.
const WAIT_MAX: Duration = Duration::from_secs(3 * 24 * 3600);

/// A satellite with a connection.
struct Satellite {
    link: Link,
    blocks: Vec<StoredBlock>,
    mono_ms: u64,
    sent: Vec<(Epoch, u64, u64)>,
    closed: bool,
}

pub(super) fn link(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let mut satellite = Satellite::new();
    for line in text.split('\n') {
        if line.is_empty() {
            satellite.send();
        } else if let Some(passes) = line.strip_prefix('+') {
            let ms: u16 = passes.trim().parse().unwrap_or(1_000);
            satellite.mono_ms += u64::from(ms);
            let effects = satellite.link.on_tick(satellite.now());
            satellite.follow(effects, false);
        } else {
            satellite.link.on_bytes(satellite.now());
            let says_what_it_has = line.contains("AUTHENTICATED");
            let effects = satellite.link.on_text(satellite.now(), line);
            satellite.follow(effects, says_what_it_has);
        }
        if satellite.closed {
            return;
        }
        assert!(satellite.link.next_tick_ms(satellite.now()) > 0);
    }
}

fn epoch(opening: u32) -> Epoch {
    Epoch(u128::from(opening))
}

fn blocks() -> Vec<StoredBlock> {
    let block = |opening: u32, n: u64| {
        let first_seq = 1 + n * RECORDS;
        let now = Now { wall_ms: NOW_MS, mono_ms: 5 };
        let stamp = Stamp {
            epoch: epoch(opening),
            first_seq,
            due_before: first_seq - 1,
            made: now,
            quality: ClockQuality::Synchronised,
        };
        let times_ms = (0..RECORDS).map(|n| NOW_MS + i64::try_from(n).unwrap_or(0)).collect();
        let group = Group { series: vec![0], times_ms, values: vec![1.5; usize::try_from(RECORDS).unwrap_or(0)] };
        let frame = Encoder::default().encode(stamp, &Body::Samples(vec![group]));
        StoredBlock { place: Place { opening, seq: first_seq }, frame: Bytes::from(frame) }
    };
    (1..=OPENINGS).flat_map(|opening| (0..BLOCKS).map(move |n| block(opening, n))).collect()
}

impl Satellite {
    fn new() -> Self {
        let blocks = blocks();
        let newest = blocks.last().map_or(Place::default(), |block| block.place);
        let now = Now { wall_ms: NOW_MS, mono_ms: 1_000 };
        Self { link: Link::new(now, newest, None), blocks, mono_ms: 1_000, sent: Vec::new(), closed: false }
    }

    fn now(&self) -> Now {
        Now { wall_ms: NOW_MS, mono_ms: self.mono_ms }
    }

    fn send(&mut self) {
        for _ in 0..TURN {
            match self.link.next(self.now()) {
                Next::Idle => return,
                Next::Frame(frame) => {
                    self.link.on_said(self.now());
                    let header = block::header(&frame).expect("only whole frames go");
                    self.sent.push((header.epoch, header.first_seq, header.last_seq()));
                }
                Next::Read(Read::Series { opening }) => self.link.on_series(opening, vec![], self.newest()),
                Next::Read(Read::Blocks { way, from, below, .. }) => {
                    let wanted = |block: &&StoredBlock| (from..below).contains(&block.place);
                    let found = self.blocks.iter().filter(wanted).cloned().collect();
                    self.link.on_blocks(way, below, found);
                }
            }
        }
    }

    fn newest(&self) -> Place {
        self.blocks.last().map_or(Place::default(), |block| block.place)
    }

    fn follow(&mut self, effects: Vec<Effect>, says_what_it_has: bool) {
        for effect in effects {
            match effect {
                Effect::Forget(epoch, ranges) if !says_what_it_has => self.forget(epoch, &ranges),
                Effect::Config(config) => drop(Document::parse(&config.document)),
                Effect::Close(Closing { ending, .. }) => {
                    let ending = ending.unwrap_or(Ending::Lost { authenticated: Duration::ZERO });
                    assert!(Backoff::default().after(ending, 1.0) <= WAIT_MAX);
                    self.closed = true;
                }
                Effect::Greeted(_)
                | Effect::Authenticate(_)
                | Effect::Heartbeat
                | Effect::Say(_)
                | Effect::Ping
                | Effect::Opened(_)
                | Effect::Forget(..)
                | Effect::Certificate(_)
                | Effect::Complained(_)
                | Effect::Stuck(_) => {}
            }
        }
    }

    /// An acknowledgement deletes nothing that did not go.
    fn forget(&mut self, epoch: Epoch, ranges: &Ranges) {
        let sent = self.sent.iter().filter(|(of, ..)| *of == epoch).map(|(_, first, last)| (*first, *last));
        let sent: Ranges = sent.collect();
        for (first, last) in ranges.as_slice() {
            let went = sent.overlap(*first, *last) == satellite_shared::ranges::Overlap::Whole;
            assert!(went, "{epoch}/{first}..={last} is deleted and never went");
        }
        // What is deleted is not read again.
        self.blocks.retain(|block| {
            let header = block::header(&block.frame).expect("a whole frame");
            header.epoch != epoch
                || ranges.overlap(header.first_seq, header.last_seq()) == satellite_shared::ranges::Overlap::None
        });
    }
}

pub(super) fn links() -> Vec<Vec<u8>> {
    let line = |event: ToSatellite| serde_json::to_string(&event).expect("an event is written") + "\n";
    let ranges = |first, last| -> Ranges { [(first, last)].into_iter().collect() };
    let hello = line(ToSatellite::Hello(Hello {
        protocol_min: 1,
        protocol_max: 1,
        relay: "relay-1".into(),
        relay_version: "1".into(),
        clock_ms: NOW_MS,
        heartbeat_s: 20,
    }));
    let welcome = line(ToSatellite::Authenticated(Authenticated {
        satellite: SatelliteId::from_bits([1; 10]),
        session: "s".into(),
        stored: vec![Stored { epoch: epoch(1), ranges: ranges(1, 8) }],
        credit_bytes: 100_000,
        config_version: 0,
        renew_after_ms: NOW_MS,
    }));
    let ack = |opening, first, last| {
        let stored = vec![Stored { epoch: epoch(opening), ranges: ranges(first, last) }];
        line(ToSatellite::Ack(Ack { stored, credit_bytes: 100_000 }))
    };
    let nack = |code| {
        let (epoch, message) = (epoch(2), "no".to_owned());
        line(ToSatellite::Nack(Nack { epoch, first_seq: 5, code, message, retry_after_s: 1 }))
    };
    let drain = Drain { reason: "rest".into(), reconnect_after_ms: 1, spread_ms: u64::MAX };
    let (open, acks) = (format!("{hello}{welcome}\n"), [ack(1, 9, 12), ack(2, 1, 24)].concat());
    let nacks = [NackCode::Retry, NackCode::UnknownSeries, NackCode::Conflict].map(nack);
    let again = format!("+2000\n\n{}\n+2000\n\n", nacks.concat());
    let drained = format!("{open}{}{}", line(ToSatellite::Drain(drain)), ack(2, 1, 24));
    [format!("{open}{acks}\n"), format!("{open}{}{again}{acks}", nacks[0]), drained, format!("{hello}+15000\n")]
        .map(String::into_bytes)
        .to_vec()
}
