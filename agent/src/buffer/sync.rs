//! The system call that makes sled durable.
//!
//! sled 0.34 ends its log writes in `sync_file_range`, which flushes neither the file's metadata nor the disk's cache
//! (spacejam/sled #1452): of 40 simulated power cuts 13 lost acknowledged data. This definition is linked before
//! libc's, so that every log write ends in `fdatasync`. [`count`] lets the start-up check see that it is in place.
//!
//! sled writes a batch in two pieces or more and would have each made durable, where one flush at the end of all is
//! half the wear. [`join`] leaves that flush to whoever holds what it returns. Then only the piece with which a segment of
//! the log begins is made durable at once: by the segments that it finds begun, sled decides what it may overwrite.
//! Of the batch that is being written, sled takes nothing for durable before it has all of it, so that what such a piece
//! says is never ahead of the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The length of a segment of sled's log. Its default, which every store so far was made with.
pub(super) const SEGMENT_BYTES: usize = 512 << 10;

static SYNCS: AtomicU64 = AtomicU64::new(0);
/// How many files have their pieces joined: with none, as during an opening, nobody asks which.
static JOINED_COUNT: AtomicUsize = AtomicUsize::new(0);
static JOINED: Mutex<Vec<FileId>> = Mutex::new(Vec::new());

/// How often sled's log writes were made durable, or left to a flush at their end.
#[must_use]
pub fn count() -> u64 {
    SYNCS.load(Ordering::Relaxed)
}

/// Which file, whatever it is called and however often it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    /// The file's.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { dev: metadata.dev(), ino: metadata.ino() })
    }
}

/// While it lives, pieces of this file wait for a flush by its holder.
#[derive(Debug)]
pub(super) struct Joined(FileId);

/// From here on the caller makes durable what is written to this file, before it lets anybody rely on it.
pub(super) fn join(file: FileId) -> Joined {
    JOINED.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    JOINED_COUNT.fetch_add(1, Ordering::SeqCst);
    Joined(file)
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = joined.iter().position(|file| *file == self.0) {
            joined.swap_remove(at);
        }
        JOINED_COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a piece at this offset of a file waits.
fn waits(file: impl FnOnce() -> Option<FileId>, offset: i64) -> bool {
    let begins_segment = offset % SEGMENT_BYTES as i64 == 0;
    if begins_segment || JOINED_COUNT.load(Ordering::SeqCst) == 0 {
        return false;
    }
    let Some(file) = file() else { return false };
    JOINED.lock().unwrap_or_else(PoisonError::into_inner).contains(&file)
}

#[expect(unsafe_code, reason = "takes the place of libc's symbol; the descriptor is sled's own, open for the call")]
mod symbol {
    use std::os::fd::BorrowedFd;
    use std::os::raw::{c_int, c_uint};
    use std::sync::atomic::Ordering;

    #[unsafe(no_mangle)]
    extern "C" fn sync_file_range(fd: c_int, offset: i64, _bytes: i64, _flags: c_uint) -> c_int {
        super::SYNCS.fetch_add(1, Ordering::Relaxed);
        if fd >= 0 && super::waits(|| file_id(fd), offset) {
            return 0;
        }
        // SAFETY: fdatasync takes any integer and answers EBADF for one that is no open file.
        unsafe { libc::fdatasync(fd) }
    }

    fn file_id(fd: c_int) -> Option<super::FileId> {
        // SAFETY: the caller has the descriptor open until it has its answer.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let stat = rustix::fs::fstat(fd).ok()?;
        Some(super::FileId { dev: stat.st_dev, ino: stat.st_ino })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId { dev: 1, ino: 2 };

    #[test]
    fn pieces_wait_while_they_are_joined_but_for_those_that_begin_a_segment() {
        let other = || Some(FileId { dev: 1, ino: 3 });
        assert!(!waits(|| Some(FILE), 24));
        let joined = join(FILE);
        assert!(waits(|| Some(FILE), 24));
        assert!(waits(|| Some(FILE), SEGMENT_BYTES as i64 + 24));
        assert!(!waits(|| Some(FILE), 0));
        assert!(!waits(|| Some(FILE), 3 * SEGMENT_BYTES as i64));
        assert!(!waits(other, 24));
        assert!(!waits(|| None, 24));
        drop(joined);
        assert!(!waits(|| Some(FILE), 24));
    }
}
