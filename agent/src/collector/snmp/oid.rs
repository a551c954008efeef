//! Object identifiers, and what stands at one.
//!
//! Read from the wire with the limits of the standard (RFC 2578, 3.5): 128 arcs of 32 bits. What breaks them is no name.

use std::fmt;

use snmp2::Value;

const ARCS_MAX: usize = 128;
/// Of one text; a `DisplayString` has at most 255.
const TEXT_BYTES_MAX: usize = 255;

/// An object's name: `1.3.6.1.2.1.1.3.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Oid(Vec<u32>);

impl Oid {
    /// Reads what a configuration says.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let arcs = text.strip_prefix('.').unwrap_or(text).split('.');
        let read = |arc: &str| arc.bytes().all(|b| b.is_ascii_digit()).then(|| arc.parse().ok()).flatten();
        let arcs: Vec<u32> = arcs.take(ARCS_MAX + 1).map(read).collect::<Option<_>>()?;
        let is_name = (2..=ARCS_MAX).contains(&arcs.len()) && arcs[0] <= 2 && arcs[1] < 40;
        is_name.then_some(Self(arcs))
    }

    /// The name of what stands below a place.
    pub(super) fn below(place: &[u32], more: &[u32]) -> Self {
        Self([place, more].concat())
    }

    /// Reads the content of a name on the wire.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (&first, rest) = bytes.split_first()?;
        let mut arcs = vec![u32::from(first / 40).min(2)];
        arcs.push(u32::from(first) - 40 * arcs[0]);
        let mut arc: u32 = 0;
        for &byte in rest {
            if arc >> 25 != 0 {
                return None;
            }
            arc = arc << 7 | u32::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                arcs.push(arc);
                arc = 0;
            }
        }
        let is_whole = first & 0x80 == 0 && rest.last().is_none_or(|last| last & 0x80 == 0);
        (is_whole && arcs.len() <= ARCS_MAX).then_some(Self(arcs))
    }

    /// As the library takes it.
    pub(super) fn wire(&self) -> Option<snmp2::Oid<'static>> {
        let arcs: Vec<u64> = self.0.iter().copied().map(u64::from).collect();
        snmp2::Oid::from(&arcs).ok()
    }

    /// What follows a place in this name; `None` where it is not below it.
    pub(super) fn index_in(&self, place: &Self) -> Option<&[u32]> {
        self.0.strip_prefix(place.0.as_slice()).filter(|index| !index.is_empty())
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&dotted(&self.0))
    }
}

/// Arcs as people write them.
pub(super) fn dotted(arcs: &[u32]) -> String {
    arcs.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

/// What a device says of a name.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    /// A number of any kind.
    Number(f64),
    /// Octets: a text, an address, flags; cut to 255.
    Octets(Vec<u8>),
    /// Another name.
    Name(Oid),
    /// There is nothing.
    Absent,
    /// There is nothing from here on.
    End,
    /// Something that no metric is made of.
    Other,
}

impl Data {
    /// Reads one name and what stands there.
    pub(super) fn read(name: &snmp2::Oid<'_>, value: &Value<'_>) -> Option<(Oid, Self)> {
        Some((Oid::decode(name.as_bytes())?, Self::of(value)))
    }

    fn of(value: &Value<'_>) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the rest of ASN.1 is no value of SNMP")]
        match value {
            Value::Integer(number) => Self::Number(*number as f64),
            Value::Counter32(number) | Value::Unsigned32(number) | Value::Timeticks(number) => {
                Self::Number(f64::from(*number))
            }
            Value::Counter64(number) => Self::Number(*number as f64),
            Value::OctetString(bytes) => Self::Octets(bytes[..bytes.len().min(TEXT_BYTES_MAX)].to_vec()),
            Value::Opaque(bytes) => float(bytes).map_or(Self::Other, Self::Number),
            Value::ObjectIdentifier(name) => Oid::decode(name.as_bytes()).map_or(Self::Other, Self::Name),
            Value::NoSuchObject | Value::NoSuchInstance => Self::Absent,
            Value::EndOfMibView => Self::End,
            _ => Self::Other,
        }
    }

    /// The number it is, also where a device writes it as a text.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Octets(_) => self.text().trim().parse().ok(),
            Self::Name(_) | Self::Absent | Self::End | Self::Other => None,
        }
        .filter(|number| number.is_finite())
    }

    /// The text it is, without what no terminal should see.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Octets(bytes) => {
                let text = String::from_utf8_lossy(bytes);
                text.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned()
            }
            Self::Number(number) => number.to_string(),
            Self::Name(name) => name.to_string(),
            Self::Absent | Self::End | Self::Other => String::new(),
        }
    }

    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        let more = match self {
            Self::Octets(bytes) => bytes.len(),
            Self::Name(Oid(arcs)) => 4 * arcs.len(),
            Self::Number(_) | Self::Absent | Self::End | Self::Other => 0,
        };
        size_of::<Self>() + more
    }
}

/// A fraction, which SNMP has no type for, in the clothes that Net-SNMP gave it: tag, length, IEEE 754.
fn float(bytes: &[u8]) -> Option<f64> {
    match bytes {
        [0x9f, 0x78, 4, rest @ ..] => Some(f64::from(f32::from_be_bytes(rest.try_into().ok()?))),
        [0x9f, 0x79, 8, rest @ ..] => Some(f64::from_be_bytes(rest.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(text: &str) -> Vec<u8> {
        Oid::parse(text).unwrap().wire().unwrap().as_bytes().to_vec()
    }

    #[test]
    fn names_are_read_as_they_are_written_and_sent() {
        for text in ["1.3.6.1.2.1.1.3.0", "1.3.6.1.4.1.4294967295.128.127.16384", "0.0", "2.5.4.3"] {
            assert_eq!(Oid::decode(&wire(text)), Oid::parse(text), "{text}");
            assert_eq!(Oid::parse(&format!(".{text}")).unwrap().to_string(), text);
        }
        let long = format!("1.3{}", ".1".repeat(127));
        for text in ["", "1", "1.", "1..3", "1.3.x", "1.3.-1", "1.3.+1", "3.1", "1.40", "1.3.4294967296", &long] {
            assert_eq!(Oid::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_breaks_the_limits_on_the_wire_is_no_name() {
        let many = [vec![0x2b], vec![1; 200]].concat();
        let hostile: [&[u8]; 5] =
            [&[], &[0x2b, 0x86], &[0x2b, 0xff, 0xff, 0xff, 0xff, 0x7f], &[0xab, 1], many.as_slice()];
        for bytes in hostile {
            assert_eq!(Oid::decode(bytes), None, "{bytes:?}");
        }
        assert_eq!(Oid::decode(&[0x2b]).unwrap().to_string(), "1.3");
    }

    #[test]
    fn names_are_ordered_by_their_arcs() {
        let oid = |text: &str| Oid::parse(text).unwrap();
        assert!(oid("1.3.9") < oid("1.3.10") && oid("1.3") < oid("1.3.0"));
        assert_eq!(oid("1.3.6.1").index_in(&oid("1.3.6")), Some(&[1][..]));
        assert_eq!(oid("1.3.6").index_in(&oid("1.3.6")), None);
        assert_eq!(oid("1.3.61").index_in(&oid("1.3.6")), None);
    }

    #[test]
    fn values_are_numbers_and_texts_however_a_device_wrote_them() {
        assert_eq!(Data::of(&Value::Counter64(u64::MAX)).number(), Some(u64::MAX as f64));
        assert_eq!(Data::of(&Value::OctetString(b" 0.15\0")).number(), Some(0.15));
        assert_eq!(Data::of(&Value::OctetString(b"inf")).number(), None);
        assert_eq!(Data::of(&Value::Opaque(&[0x9f, 0x78, 4, 0x42, 0x48, 0, 0])).number(), Some(50.0));
        assert_eq!(Data::of(&Value::Opaque(&[0x9f, 0x79, 8, 0x40, 0x59, 0, 0, 0, 0, 0, 0])).number(), Some(100.0));
        assert_eq!(Data::of(&Value::Opaque(&[0x9f, 0x78, 4, 0x42])), Data::Other);
        assert_eq!(Data::of(&Value::OctetString(b"Bl\xe4ck\x1b[1m\0\n")).text(), "Bl\u{fffd}ck[1m");
        assert_eq!(Data::of(&Value::OctetString(&[b'x'; 9_000])).text().len(), 255);
    }
}
