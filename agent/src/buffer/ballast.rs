//! Room on the disk: how much there is, and a file that gives some back in need.
//!
//! sled can't even be opened on a full disk, since opening writes. The ballast is deleted then, so that the backlog
//! can be read and drained, and made again once there is room.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// Enough for sled to open and to write a snapshot.
const BALLAST_BYTES: u64 = 32 << 20;

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Bytes that a program without privileges may still use.
    pub(super) free: u64,
    /// Bytes in all.
    pub(super) total: u64,
}

impl Room {
    /// What there is where this path lies.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    }

    /// What must stay free: bytes or percent, whichever is more.
    pub(super) fn floor(&self, bytes: u64, percent: u8) -> u64 {
        bytes.max(self.total / 100 * u64::from(percent.min(100)))
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// The ballast of a buffer's directory.
    pub(super) fn of(dir: &Path) -> Self {
        Self { path: dir.join("ballast") }
    }

    /// Makes the file unless it is there, where `floor` stays free beside it.
    pub(super) fn make(&self, room: Room, floor: u64) {
        if self.path.exists() || room.free < floor.saturating_add(2 * BALLAST_BYTES) {
            return;
        }
        if let Err(error) = self.allocate() {
            tracing::debug!(%error, "no ballast could be made");
            self.drop_it();
        }
    }

    /// Deletes the file; whether there was one.
    pub(super) fn drop_it(&self) -> bool {
        std::fs::remove_file(&self.path).is_ok()
    }

    fn allocate(&self) -> io::Result<()> {
        let file: File = OpenOptions::new().write(true).create_new(true).open(&self.path)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_larger_of_bytes_and_percent() {
        let room = Room { free: 0, total: 10_000 };
        assert_eq!(room.floor(100, 5), 500);
        assert_eq!(room.floor(700, 5), 700);
        assert_eq!(room.floor(0, 255), 10_000);
    }

    #[test]
    fn ballast_is_made_only_where_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::of(dir.path());
        ballast.make(Room { free: 64 << 20, total: 1 << 30 }, 1);
        assert!(!ballast.drop_it());
        ballast.make(Room { free: 65 << 20, total: 1 << 30 }, 1);
        assert!(ballast.drop_it());
        assert!(!ballast.drop_it());
    }
}
