//! MQTT packets as they come in: read by the library where they are short, and a long message skipped.
//!
//! A topic may carry pictures or maps beside numbers, so that a message which is too long is no reason to hang up: its
//! bytes are thrown away and counted as they come, and its number is kept where the broker wants it acknowledged. Any other
//! packet that is too long ends the connection. Invariant: at most the longest packet, or a topic, is held in memory.

use bytes::{Buf as _, BytesMut};
use rumqttc::mqttbytes::{self, v4::Packet};
use tokio_util::codec::{Decoder, Encoder};

/// The head of a message: topic, number, and what the two are told by.
pub(super) const HEAD_BYTES_MAX: usize = 1 << 10;
/// Packets that we send: the longest is a subscription of as many topics as a profile may want.
const SENT_BYTES_MAX: usize = 512 << 10;
/// The packet type of a message, in the upper half of the first byte (MQTT 3.1.1, 2.2.1).
const PUBLISH: u8 = 3;

/// What came in.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    /// A packet.
    Packet(Packet),
    /// A message that is skipped, and its number where it wants to be acknowledged.
    Skipped(Option<u16>),
    /// So many bytes of it.
    Passed(usize),
}

/// The codec of one connection.
pub(super) struct Packets {
    /// The longest packet, behind its header.
    bytes_max: usize,
    /// What is left of the one that is skipped.
    skip: usize,
}

/// The head of a packet (2.2).
#[derive(Debug, PartialEq, Eq)]
struct Head {
    first: u8,
    /// Bytes of the head itself.
    len: usize,
    /// Bytes that follow it.
    rest: usize,
}

impl Packets {
    /// For packets of at most so many bytes behind their header.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, skip: 0 }
    }
}

impl Decoder for Packets {
    type Item = Incoming;
    type Error = mqttbytes::Error;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Incoming>, mqttbytes::Error> {
        let passed = self.skip.min(src.len());
        if passed > 0 {
            src.advance(passed);
            self.skip -= passed;
            return Ok(Some(Incoming::Passed(passed)));
        }
        if self.skip > 0 {
            return Ok(None);
        }
        let Some(head) = head(src)? else { return Ok(None) };
        if head.rest <= self.bytes_max {
            if src.len() < head.len + head.rest {
                src.reserve(head.len + head.rest - src.len());
                return Ok(None);
            }
            return Packet::read(src, self.bytes_max).map(|packet| Some(Incoming::Packet(packet)));
        }
        if head.first >> 4 != PUBLISH {
            return Err(mqttbytes::Error::PayloadSizeLimitExceeded(head.rest));
        }
        let Some(number) = number(&head, src)? else { return Ok(None) };
        self.skip = head.len + head.rest;
        Ok(Some(Incoming::Skipped(number)))
    }
}

impl Encoder<Packet> for Packets {
    type Error = mqttbytes::Error;

    fn encode(&mut self, packet: Packet, dst: &mut BytesMut) -> Result<(), mqttbytes::Error> {
        packet.write(dst, SENT_BYTES_MAX).map(drop)
    }
}

/// The head of the packet that begins here; `None` where it is not all there.
fn head(src: &BytesMut) -> Result<Option<Head>, mqttbytes::Error> {
    let Some((&first, lengths)) = src.split_first() else { return Ok(None) };
    let mut rest = 0;
    for (at, byte) in lengths.iter().take(4).enumerate() {
        rest |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some(Head { first, len: at + 2, rest }));
        }
    }
    if lengths.len() < 4 { Ok(None) } else { Err(mqttbytes::Error::MalformedRemainingLength) }
}

/// The number of the message that begins here, where it has one; the outer `None` where it is not there yet.
fn number(head: &Head, src: &BytesMut) -> Result<Option<Option<u16>>, mqttbytes::Error> {
    let is_numbered = head.first & 0b0110 != 0;
    if !is_numbered {
        return Ok(Some(None));
    }
    let two = |at: usize| src.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let Some(topic) = two(head.len) else { return Ok(None) };
    if usize::from(topic) > HEAD_BYTES_MAX {
        return Err(mqttbytes::Error::BoundaryCrossed(usize::from(topic)));
    }
    Ok(two(head.len + 2 + usize::from(topic)).map(Some))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rumqttc::mqttbytes::QoS;
    use rumqttc::mqttbytes::v4::Publish;

    use super::*;

    fn message(payload: usize, number: Option<u16>) -> Vec<u8> {
        let qos = if number.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let mut publish = Publish::new("a/b", qos, vec![b'x'; payload]);
        publish.pkid = number.unwrap_or(0);
        let mut bytes = BytesMut::new();
        Packet::Publish(publish).write(&mut bytes, usize::MAX).unwrap();
        bytes.to_vec()
    }

    /// All that is decoded where the bytes come in pieces of this size.
    fn decoded(bytes: &[u8], piece: usize) -> Result<Vec<Incoming>, mqttbytes::Error> {
        let (mut packets, mut src) = (Packets::new(100), BytesMut::new());
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            src.extend_from_slice(piece);
            while let Some(incoming) = packets.decode(&mut src)? {
                found.push(incoming);
            }
            assert!(src.len() < 200, "{} bytes are held", src.len());
        }
        Ok(found)
    }

    #[test]
    fn a_long_message_is_skipped_and_what_follows_is_read() {
        let bytes = [message(10, None), message(5_000, None), message(300_000, Some(7)), message(20, Some(8))].concat();
        for piece in [1, 7, 64] {
            let (passed, found): (Vec<Incoming>, Vec<Incoming>) = decoded(&bytes, piece)
                .unwrap()
                .into_iter()
                .partition(|incoming| matches!(incoming, Incoming::Passed(_)));
            assert_eq!(found.len(), 4);
            assert_eq!(found[1..3], [Incoming::Skipped(None), Incoming::Skipped(Some(7))]);
            assert!(matches!(&found[3], Incoming::Packet(Packet::Publish(publish)) if publish.payload.len() == 20));
            let bytes = |incoming: &Incoming| if let Incoming::Passed(bytes) = incoming { *bytes } else { 0 };
            assert_eq!(
                passed.iter().map(bytes).sum::<usize>(),
                message(5_000, None).len() + message(300_000, Some(7)).len()
            );
        }
    }

    #[test]
    fn a_packet_that_is_none_ends_the_connection() {
        for bytes in [
            // A list of refusals, a length, a topic, and a type that can not be.
            &[0x90, 0xff, 0xff, 0xff, 0x7f][..],
            &[0x30, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x32, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff],
            &[0xf0, 0x01, 0x00],
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        ] {
            let outcome = decoded(bytes, 3);
            assert!(outcome.is_err() || outcome.is_ok_and(|found| found.is_empty()), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hold_more_than_a_packet(
            bytes in prop::collection::vec(any::<u8>(), 0..2_000), piece in 1..50_usize
        ) {
            let (mut packets, mut src) = (Packets::new(100), BytesMut::new());
            'pieces: for piece in bytes.chunks(piece) {
                src.extend_from_slice(piece);
                loop {
                    match packets.decode(&mut src) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'pieces,
                    }
                }
                prop_assert!(src.len() <= HEAD_BYTES_MAX + 100);
            }
        }
    }
}
