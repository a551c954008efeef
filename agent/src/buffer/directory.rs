//! The buffer's directory: who holds it, which format it has, and how one directory takes another's place.
//!
//! A replacement is built whole in `DIR.new` and then takes the name; what had it becomes `DIR.damaged-DATE`, or
//! `DIR.old` and is removed. A crash between the two renames is finished at the next start.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::block_store::StoreError;

/// The newest format that this version knows, and the one it writes.
pub(super) const FORMAT: u32 = 1;

const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why a directory can't be used now.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    /// A newer program wrote it.
    #[error("format {0} is newer than this program")]
    Newer(u32),
    /// Another program holds it.
    #[error("another program holds it")]
    Locked,
    /// The system refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<io::Error> for DirectoryError {
    fn from(source: io::Error) -> Self {
        Self::Store(source.into())
    }
}

/// A directory that this program holds.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the directory if it is not there and takes hold of it; touches nothing of a newer format.
    pub(super) fn claim(path: &Path) -> Result<Self, DirectoryError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(beside(path, "lock"))?;
        take(&lock)?;
        let directory = Self { path: path.to_owned(), _lock: lock };
        directory.finish_replacement()?;
        std::fs::create_dir_all(path)?;
        match read_format(path)? {
            Some(found) if found > FORMAT => return Err(DirectoryError::Newer(found)),
            Some(_) => {}
            None => write_format(path)?,
        }
        Ok(directory)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// An empty directory in which to build a replacement.
    pub(super) fn stage(&self) -> io::Result<PathBuf> {
        let new = beside(&self.path, "new");
        remove_dir_if_there(&new)?;
        std::fs::create_dir(&new)?;
        write_format(&new)?;
        Ok(new)
    }

    /// Gives up a replacement, unless there is nothing else: then the next claim finishes it.
    pub(super) fn unstage(&self) {
        if !self.path.exists() {
            return;
        }
        if let Err(error) = remove_dir_if_there(&beside(&self.path, "new")) {
            tracing::warn!(%error, "an unfinished buffer directory could not be removed");
        }
    }

    /// The replacement takes the place of the directory, which is removed.
    pub(super) fn replace(&self) -> io::Result<()> {
        let old = beside(&self.path, "old");
        remove_dir_if_there(&old)?;
        self.swap(&old)?;
        remove_dir_if_there(&old)
    }

    /// The replacement takes the place of the directory, which is kept as `DIR.damaged-DATE`; older ones are removed.
    pub(super) fn set_aside(&self, wall_ms: i64) -> io::Result<PathBuf> {
        for older in self.damaged()? {
            remove_dir_if_there(&older)?;
        }
        let date = chrono::DateTime::from_timestamp_millis(wall_ms).unwrap_or_default();
        let aside = beside(&self.path, &format!("damaged-{}", date.format("%Y%m%dT%H%M%SZ")));
        self.swap(&aside)?;
        Ok(aside)
    }

    fn swap(&self, away: &Path) -> io::Result<()> {
        let new = beside(&self.path, "new");
        sync_dir(&new)?;
        std::fs::rename(&self.path, away)?;
        if let Err(error) = std::fs::rename(new, &self.path) {
            // Whoever gives the replacement up must not give up both.
            std::fs::rename(away, &self.path)?;
            return Err(error);
        }
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }

    fn finish_replacement(&self) -> io::Result<()> {
        let (new, old) = (beside(&self.path, "new"), beside(&self.path, "old"));
        if !self.path.exists() && new.exists() {
            std::fs::rename(&new, &self.path)?;
        }
        remove_dir_if_there(&new)?;
        remove_dir_if_there(&old)
    }

    fn damaged(&self) -> io::Result<Vec<PathBuf>> {
        let parent = self.path.parent().unwrap_or(Path::new("."));
        let prefix = format!("{}.damaged-", name(&self.path));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(parent)? {
            let path = entry?.path();
            if name(&path).starts_with(&prefix) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

/// Takes a lock. A child that another thread is just starting holds a copy of it until its program begins.
fn take(lock: &File) -> Result<(), DirectoryError> {
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    Err(DirectoryError::Locked)
}

/// Removes a directory with all that is in it, if it is there.
pub(super) fn remove_dir_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    path.with_file_name(format!("{}.{suffix}", name(path)))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// `None` where no format is said, or nothing that could be one: such a directory is ours to judge by its store.
/// The number stands there twice, so that a flipped bit does not make a newer format of it.
fn read_format(path: &Path) -> io::Result<Option<u32>> {
    match std::fs::read(path.join("format")) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            let mut numbers = text.split_whitespace().map(str::parse::<u32>);
            let (first, second) = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
            Ok(first.filter(|first| second.is_none_or(|second| second == *first)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_format(path: &Path) -> io::Result<()> {
    let new = path.join("format.new");
    std::fs::write(&new, format!("{FORMAT}\n{FORMAT}\n"))?;
    File::open(&new)?.sync_all()?;
    std::fs::rename(&new, path.join("format"))?;
    sync_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_can_be_held_only_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("buffer");
        let held = Directory::claim(&path).unwrap();
        assert!(matches!(Directory::claim(&path), Err(DirectoryError::Locked)));
        drop(held);
        Directory::claim(&path).unwrap();
    }

    #[test]
    fn a_newer_format_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("buffer");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("format"), "2 whatever it means\n").unwrap();
        assert!(matches!(Directory::claim(&path), Err(DirectoryError::Newer(2))));
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn a_format_with_a_flipped_bit_is_not_taken_for_a_newer_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("buffer");
        drop(Directory::claim(&path).unwrap());
        let whole = std::fs::read(path.join("format")).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(path.join("format"), flipped).unwrap();
            Directory::claim(&path).unwrap();
            assert_eq!(read_format(&path).unwrap(), Some(FORMAT));
        }
    }

    #[test]
    fn a_replacement_that_was_interrupted_is_finished() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("buffer");
        let directory = Directory::claim(&path).unwrap();
        std::fs::write(path.join("which"), "first").unwrap();
        let new = directory.stage().unwrap();
        std::fs::write(new.join("which"), "second").unwrap();
        std::fs::rename(&path, beside(&path, "old")).unwrap();
        drop(directory);

        let directory = Directory::claim(&path).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("which")).unwrap(), "second");
        assert!(!beside(&path, "old").exists());

        let new = directory.stage().unwrap();
        std::fs::write(new.join("which"), "never finished").unwrap();
        drop(directory);
        Directory::claim(&path).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("which")).unwrap(), "second");
    }

    #[test]
    fn a_replacement_that_is_gone_leaves_what_has_the_name() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("buffer");
        let directory = Directory::claim(&path).unwrap();
        std::fs::write(path.join("which"), "first").unwrap();
        directory.stage().unwrap();
        std::fs::remove_dir_all(beside(&path, "new")).unwrap();
        assert!(directory.set_aside(0).is_err());
        directory.unstage();
        assert_eq!(std::fs::read_to_string(path.join("which")).unwrap(), "first");
    }

    #[test]
    fn one_damaged_directory_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("buffer");
        let directory = Directory::claim(&path).unwrap();
        for wall_ms in [1_790_000_000_000, 1_790_000_060_000] {
            directory.stage().unwrap();
            directory.set_aside(wall_ms).unwrap();
        }
        let damaged = directory.damaged().unwrap();
        assert_eq!(damaged, [root.path().join("buffer.damaged-20260921T141420Z")]);
    }
}
