//! The wire between a satellite and its relay: PROTOCOL.md in types.
//!
//! Control events are JSON text messages `{"event": …, "data": …}`; frames are binary messages, the buffer's own
//! bytes. Unknown fields are tolerated, so that a newer peer can say more; unknown events are answered with `ERROR`.
#![doc = include_str!("../PROTOCOL.md")]

pub mod version;

pub mod to_relay;

pub mod to_satellite;

pub mod block;

mod columns;

pub use to_relay::ToRelay;
pub use to_satellite::ToSatellite;

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::block::{Body, ClockQuality, Decoder, Encoder, Group, Stamp};
    use super::to_relay::{
        Authenticate, Complaint, ConfigItem, ConfigState, ConfigStatus, Progress, Renew, Stream, ToRelay,
    };
    use super::to_satellite::{
        Ack, Alive, Authenticated, Certificate, Config, Drain, Hello, Nack, NackCode, RefusalCode, Refused, Stored,
        ToSatellite,
    };
    use crate::clock::Now;
    use crate::gap::{Gap, Lost, Reason};
    use crate::id::{Epoch, LeaseId, SatelliteId};
    use crate::limits;
    use crate::metric::{Kind, Series};
    use crate::secret::{Token, TokenKind};

    const EPOCH: Epoch = Epoch(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    const WALL_MS: i64 = 1_790_000_000_000;

    fn authenticate() -> Authenticate {
        Authenticate {
            protocol: 1,
            lease: LeaseId::from_bits([1; 10]),
            token: Token::from_bits(TokenKind::Satellite, [2; 32]),
            agent_version: "0.1.0".into(),
            hostname: "nas".into(),
            instance: "6f1c".into(),
            clock_ms: WALL_MS,
            config_version: 3,
            generation: 2,
            streams: vec![Stream {
                epoch: EPOCH,
                boot_id: "5b8e7f0a-0000-4000-8000-000000000001".into(),
                opened_ms: WALL_MS,
                first_seq: 41,
                last_seq: 9_000,
            }],
        }
    }

    /// One of each. The match has no wildcard, so a new event does not compile until it is here.
    fn every_event_to_a_relay() -> Vec<ToRelay> {
        let next = |event: &ToRelay| match event {
            ToRelay::Authenticate(_) => Some(ToRelay::ConfigStatus(ConfigStatus {
                version: 3,
                state: ConfigState::Applied,
                items: vec![ConfigItem { path: "device.router.metric.power".into(), reason: "policy".into() }],
            })),
            ToRelay::ConfigStatus(_) => Some(ToRelay::Heartbeat(Progress {
                clock_ms: WALL_MS,
                epoch: EPOCH,
                last_seq: 9_000,
                due: 9_100,
                waiting: 200,
                buffer_bytes: 65_536,
                polls: 77,
            })),
            ToRelay::Heartbeat(_) => Some(ToRelay::Renew(Renew { csr: "-----BEGIN CERTIFICATE REQUEST-----".into() })),
            ToRelay::Renew(_) => {
                Some(ToRelay::Error(Complaint { code: "unsupported".into(), message: "no event FOO".into() }))
            }
            ToRelay::Error(_) => None,
        };
        std::iter::successors(Some(ToRelay::Authenticate(authenticate())), next).collect()
    }

    fn stored() -> Vec<Stored> {
        vec![Stored { epoch: EPOCH, ranges: [(1, 40), (100, 200)].into_iter().collect() }]
    }

    fn certificate() -> Certificate {
        Certificate {
            chain: "-----BEGIN CERTIFICATE-----".into(),
            ca_bundle: "-----BEGIN CERTIFICATE-----".into(),
            generation: 3,
            not_after_ms: WALL_MS + 604_800_000,
            renew_after_ms: WALL_MS + 302_400_000,
        }
    }

    fn hello() -> Hello {
        Hello {
            protocol_min: 1,
            protocol_max: 1,
            relay: "relay.example.org".into(),
            relay_version: "0.1.0".into(),
            clock_ms: WALL_MS,
            heartbeat_s: 30,
        }
    }

    fn refused() -> Refused {
        Refused { code: RefusalCode::Revoked, message: "revoked: enrol again".into(), retry_after_s: 3_600 }
    }

    fn every_event_to_a_satellite() -> Vec<ToSatellite> {
        let next = |event: &ToSatellite| match event {
            ToSatellite::Hello(_) => Some(ToSatellite::Authenticated(Authenticated {
                satellite: SatelliteId::from_bits([3; 10]),
                session: "se_1".into(),
                stored: stored(),
                credit_bytes: 4 << 20,
                config_version: 4,
                renew_after_ms: WALL_MS,
            })),
            ToSatellite::Authenticated(_) => Some(ToSatellite::Refused(refused())),
            ToSatellite::Refused(_) => {
                Some(ToSatellite::Config(Config { version: 4, document: serde_json::json!({ "device": {} }) }))
            }
            ToSatellite::Config(_) => Some(ToSatellite::Ack(Ack { stored: stored(), credit_bytes: 1 << 20 })),
            ToSatellite::Ack(_) => Some(ToSatellite::Nack(Nack {
                epoch: EPOCH,
                first_seq: 41,
                code: NackCode::UnknownSeries,
                message: "series 7 was not announced".into(),
                retry_after_s: 0,
            })),
            ToSatellite::Nack(_) => Some(ToSatellite::Certificate(certificate())),
            ToSatellite::Certificate(_) => Some(ToSatellite::Heartbeat(Alive { clock_ms: WALL_MS })),
            ToSatellite::Heartbeat(_) => Some(ToSatellite::Drain(Drain {
                reason: "the relay restarts".into(),
                reconnect_after_ms: 1_000,
                spread_ms: 30_000,
            })),
            ToSatellite::Drain(_) => {
                Some(ToSatellite::Error(Complaint { code: "unsupported".into(), message: "no event FOO".into() }))
            }
            ToSatellite::Error(_) => None,
        };
        std::iter::successors(Some(ToSatellite::Hello(hello())), next).collect()
    }

    fn bodies() -> [(&'static str, Body); 3] {
        let series = Series {
            device: "nas".parse().unwrap(),
            name: "node_load1".into(),
            kind: Kind::Gauge,
            unit: String::new(),
            labels: vec![("cpu".into(), "0".into())],
        };
        let gap = Gap {
            device: Some("router".parse().unwrap()),
            metric: Some("power".into()),
            from_ms: WALL_MS,
            to_ms: WALL_MS + 10_000,
            count: 2,
            reason: Reason::Timeout,
            detail: "no answer in 2 s".into(),
            lost: None,
        };
        let lost = Lost { epoch: EPOCH, first_seq: 1, last_seq: 40, due_through: 40 };
        let evicted = Gap { device: None, metric: None, reason: Reason::Evicted, lost: Some(lost), ..gap.clone() };
        let group = Group { series: vec![0, 1, 7], times_ms: vec![WALL_MS, WALL_MS + 10_000], values: vec![0.5; 6] };
        [
            ("series", Body::Series(vec![series])),
            ("samples", Body::Samples(vec![group])),
            ("gaps", Body::Gaps(vec![gap, evicted])),
        ]
    }

    fn stamp() -> Stamp {
        Stamp {
            epoch: EPOCH,
            first_seq: 41,
            due_before: 40,
            made: Now { wall_ms: WALL_MS, mono_ms: 123_456 },
            quality: ClockQuality::Synchronised,
        }
    }

    fn check(name: &str, lines: &str) {
        insta::with_settings!({
            snapshot_path => "wire/snapshots",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!(name, lines) });
    }

    #[test]
    fn every_event_to_a_relay_is_written_as_it_always_was_and_read_back() {
        let mut lines = String::new();
        for event in every_event_to_a_relay() {
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<ToRelay>(&text).unwrap(), event);
            writeln!(lines, "{text}").unwrap();
        }
        check("to_relay", &lines);
    }

    #[test]
    fn every_event_to_a_satellite_is_written_as_it_always_was_and_read_back() {
        let mut lines = String::new();
        for event in every_event_to_a_satellite() {
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<ToSatellite>(&text).unwrap(), event);
            writeln!(lines, "{text}").unwrap();
        }
        check("to_satellite", &lines);
    }

    #[test]
    fn every_code_has_the_word_it_always_had() {
        let refusals = [
            RefusalCode::Version,
            RefusalCode::Protocol,
            RefusalCode::Credentials,
            RefusalCode::StaleCertificate,
            RefusalCode::Revoked,
            RefusalCode::Conflict,
            RefusalCode::Superseded,
            RefusalCode::Overloaded,
            RefusalCode::Unavailable,
        ];
        let nacks = [NackCode::Retry, NackCode::UnknownSeries, NackCode::Conflict];
        let states = [ConfigState::Applied, ConfigState::Rejected];
        let words = [
            serde_json::to_string(&refusals).unwrap(),
            serde_json::to_string(&nacks).unwrap(),
            serde_json::to_string(&states).unwrap(),
        ];
        check("codes", &words.join("\n"));
    }

    #[test]
    fn every_kind_of_frame_has_the_bytes_it_always_had_and_is_read_back() {
        let mut lines = String::new();
        for (name, body) in bodies() {
            let frame = Encoder::default().encode(stamp(), &body);
            assert_eq!(Decoder::default().decode(&frame).unwrap().1, body);
            writeln!(lines, "{name}").unwrap();
            for row in frame.chunks(40) {
                writeln!(lines, "  {}", data_encoding::HEXLOWER.encode(row)).unwrap();
            }
        }
        check("frames", &lines);
    }

    #[test]
    fn a_newer_peer_may_say_more_in_an_event() {
        let text = r#"{"event":"HEARTBEAT","data":{"clock_ms":5,"mood":"good"},"id":7}"#;
        assert_eq!(serde_json::from_str::<ToSatellite>(text).unwrap(), ToSatellite::Heartbeat(Alive { clock_ms: 5 }));
    }

    #[test]
    fn the_largest_authenticate_that_may_be_said_fits_its_limit() {
        let mut largest = authenticate();
        let stream = Stream { first_seq: u64::MAX, last_seq: u64::MAX, ..largest.streams[0].clone() };
        largest.streams = vec![stream; limits::EPOCHS_MAX];
        let text = serde_json::to_string(&ToRelay::Authenticate(largest)).unwrap();
        assert!(text.len() <= limits::EVENT_BYTES_MAX, "{} bytes", text.len());
    }
}
