//! What a commit says about time, so that the next start knows what is accounted for.

use satellite_shared::gap::{Gap, Reason};
use satellite_shared::id::DeviceName;
use serde::{Deserialize, Serialize};

use crate::ledger::Missed;

/// The notes of one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Every slot up to this time was begun or missed by then.
    pub until_ms: i64,
    /// Polls that had begun and not ended.
    pub under_way: Vec<UnderWay>,
    /// Gaps that might still have grown.
    pub open: Vec<Gap>,
}

/// A poll that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderWay {
    /// Counts the polls of this run of the program.
    pub poll: u64,
    /// The device.
    pub device: DeviceName,
    /// The slot it is for.
    pub slot_ms: i64,
    /// How many samples it is expected to give.
    pub count: u64,
}

impl UnderWay {
    /// What it is if it never ends.
    #[must_use]
    pub fn stopped(self, detail: &str) -> Missed {
        Missed {
            device: self.device,
            metric: String::new(),
            from_ms: self.slot_ms,
            to_ms: self.slot_ms,
            count: self.count,
            reason: Reason::Stopped,
            detail: detail.into(),
        }
    }
}

impl Notes {
    /// As the buffer keeps them.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain values always serialise")
    }

    /// As the buffer kept them; `None` where they are damaged or of another version.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_and_damage_is_noticed() {
        let notes = Notes {
            until_ms: 1_790_000_000_000,
            under_way: vec![UnderWay { poll: 4, device: "ups".parse().unwrap(), slot_ms: 5, count: 9 }],
            open: vec![],
        };
        assert_eq!(Notes::read(&notes.write()), Some(notes.clone()));
        assert_eq!(Notes::read(&notes.write()[..5]), None);
    }
}
