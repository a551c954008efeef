//! Small values beside the blocks, each wrapped so that a raw scan of a damaged store finds it and knows the newest.
//!
//! A wrapped value says its own key, its checksum and the count of the commit that wrote it. Of several copies of a
//! key that a scan finds, the one with the highest count was the last to be true.

const MAGIC: [u8; 4] = *b"SATM";
const FIXED_BYTES: usize = 19;

/// A wrapped value, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta<'a> {
    /// Which commit of this disk wrote it.
    pub(super) counter: u64,
    /// Its key in the store.
    pub(super) key: &'a [u8],
    /// What it says.
    pub(super) payload: &'a [u8],
}

/// A value as it is stored.
pub(super) fn write(counter: u64, key: &[u8], payload: &[u8]) -> Vec<u8> {
    let payload_len = u16::try_from(payload.len()).expect("the callers' payloads are of a few kilobytes at most");
    let key_len = u8::try_from(key.len()).expect("keys have a few bytes");
    let mut value = Vec::with_capacity(FIXED_BYTES + key.len() + payload.len());
    value.extend_from_slice(&MAGIC);
    value.extend_from_slice(&[0; 4]);
    value.extend_from_slice(&payload_len.to_le_bytes());
    value.push(key_len);
    value.extend_from_slice(&counter.to_le_bytes());
    value.extend_from_slice(key);
    value.extend_from_slice(payload);
    let crc = crc32fast::hash(&value[8..]);
    value[4..8].copy_from_slice(&crc.to_le_bytes());
    value
}

/// A value that is whole, and nothing after it.
pub(super) fn read(value: &[u8]) -> Option<Meta<'_>> {
    read_first(value).filter(|(_, len)| *len == value.len()).map(|(meta, _)| meta)
}

/// The value that these bytes begin with, should they begin with one, and its length.
pub(super) fn read_first(bytes: &[u8]) -> Option<(Meta<'_>, usize)> {
    if bytes.len() < FIXED_BYTES || bytes[..4] != MAGIC {
        return None;
    }
    let payload_len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let key_end = FIXED_BYTES + usize::from(bytes[10]);
    let len = key_end + payload_len;
    let value = bytes.get(..len)?;
    let crc = u32::from_le_bytes(value[4..8].try_into().ok()?);
    if crc32fast::hash(&value[8..]) != crc {
        return None;
    }
    let counter = u64::from_le_bytes(value[11..19].try_into().ok()?);
    Some((Meta { counter, key: &value[FIXED_BYTES..key_end], payload: &value[key_end..] }, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_and_every_flipped_bit_is_noticed() {
        let value = write(7, b"key", b"payload");
        assert_eq!(read(&value), Some(Meta { counter: 7, key: b"key", payload: b"payload" }));
        for bit in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&bad), None, "bit {bit}");
        }
        for len in 0..value.len() {
            assert_eq!(read_first(&value[..len]), None, "cut at {len}");
        }
    }
}
