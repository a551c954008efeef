//! One path in a permitted directory, looked at on a thread that may hang there.
//!
//! It is opened beneath the directory, by the kernel's own rule (`openat2` with `RESOLVE_BENEATH`): neither a link nor a
//! change at the same moment leads out. Opening is all that is done with a file; nothing of it is read.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use satellite_shared::gap::Reason;

use crate::collector::probe::Stopwatch;
use crate::collector::{Failure, pattern};

/// Entries of one directory.
const ENTRIES_MAX: u32 = 20_000;
const PATTERN_BYTES_MAX: usize = 256;
/// `AUTOFS_SUPER_MAGIC` of the kernel's `magic.h`: what stands at an automount for as long as nothing is mounted there.
const AUTOFS: u64 = 0x0187;

/// Until when a visit may go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    watch: Stopwatch,
    limit: Duration,
}

impl Deadline {
    /// So long from now.
    pub(super) fn after(limit: Duration) -> Self {
        Self { watch: Stopwatch::start(), limit }
    }

    fn is_over(&self) -> bool {
        self.watch.left(self.limit).is_zero()
    }
}

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// Whether a mount answers.
    Mount,
    /// Age and size of a file.
    File,
    /// Those of the newest file of a directory.
    Newest(Pattern),
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// How soon it answered.
    Mount {
        seconds: f64,
    },
    File(File),
    /// None, where no file has such a name.
    Newest {
        newest: Option<File>,
        files: u32,
    },
}

/// A file, from outside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct File {
    pub(super) mtime_seconds: f64,
    pub(super) bytes: f64,
}

impl File {
    fn of(stat: &Stat) -> Option<Self> {
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let mtime_seconds = stat.st_mtime as f64 + stat.st_mtime_nsec as f64 / 1e9;
        is_file.then_some(Self { mtime_seconds, bytes: stat.st_size as f64 })
    }
}

/// Names of files: `*` stands for any letters, `?` for one. A name that begins with a dot has to be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<u8>);

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if (1..=PATTERN_BYTES_MAX).contains(&text.len()) && !text.contains('/') {
            return Ok(Self(text.into()));
        }
        Err("a pattern is for names of files, such as \"*.tar.zst\": without `/`, at most 256 bytes".into())
    }

    fn fits(&self, name: &[u8]) -> bool {
        let is_hidden = name.first() == Some(&b'.') && self.0.first() != Some(&b'.');
        !is_hidden && pattern::matches(&self.0, name)
    }
}

/// A path in a permitted directory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    directory: PathBuf,
    rest: PathBuf,
}

impl Place {
    pub(super) fn new(directory: &Path, path: &Path) -> Self {
        let rest = path.strip_prefix(directory).ok().filter(|rest| !rest.as_os_str().is_empty());
        Self { directory: directory.to_owned(), rest: rest.unwrap_or(Path::new(".")).to_owned() }
    }

    /// Looks, and waits for as long as that takes. No name of a directory is read after the deadline.
    pub(super) fn look(&self, what: &What, deadline: &Deadline) -> Result<Found, Failure> {
        match what {
            What::Mount => self.mount(),
            What::File => {
                let stat = rustix::fs::fstat(self.open(OFlags::PATH)?).map_err(|errno| self.failed(errno))?;
                let file = File::of(&stat).ok_or_else(|| {
                    let why = format!("{} is no file: `newest_in` looks into directories", self.path().display());
                    Failure::new(Reason::BadAnswer, why)
                })?;
                Ok(Found::File(file))
            }
            What::Newest(pattern) => self.newest(pattern, deadline),
        }
    }

    fn mount(&self) -> Result<Found, Failure> {
        let watch = Stopwatch::start();
        // To open a directory is what an automount mounts for; a mere path is not.
        let root = match self.open_at(OFlags::PATH | OFlags::DIRECTORY) {
            // One file can be mounted over another.
            Err(Errno::NOTDIR) => self.open(OFlags::PATH)?,
            opened => opened.map_err(|errno| self.failed(errno))?,
        };
        let stat = rustix::fs::fstatfs(&root).map_err(|errno| self.failed(errno))?;
        self.check_kind(u64::try_from(stat.f_type).unwrap_or(0))?;
        Ok(Found::Mount { seconds: watch.seconds() })
    }

    fn check_kind(&self, kind: u64) -> Result<(), Failure> {
        if kind == AUTOFS {
            let why = format!("{}: only the automount is there: what it mounts is away", self.path().display());
            return Err(Failure::new(Reason::Unreachable, why));
        }
        Ok(())
    }

    fn newest(&self, pattern: &Pattern, deadline: &Deadline) -> Result<Found, Failure> {
        let folder = self.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        let (mut newest, mut files, mut entries): (Option<File>, u32, u32) = (None, 0, 0);
        for entry in Dir::read_from(&folder).map_err(|errno| self.failed(errno))? {
            let entry = entry.map_err(|errno| self.failed(errno))?;
            entries += 1;
            if entries > ENTRIES_MAX {
                let why =
                    format!("{}: more than {ENTRIES_MAX} names: choose a smaller directory", self.path().display());
                return Err(Failure::new(Reason::BadAnswer, why));
            }
            if deadline.is_over() {
                let why = format!("{}: not all names were read in time", self.path().display());
                return Err(Failure::new(Reason::Timeout, why));
            }
            if !pattern.fits(entry.file_name().to_bytes()) {
                continue;
            }
            // A file may be gone since its name was read.
            let stat = rustix::fs::statat(&folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            let Some(file) = stat.ok().and_then(|stat| File::of(&stat)) else { continue };
            files += 1;
            if newest.is_none_or(|newest| newest.mtime_seconds <= file.mtime_seconds) {
                newest = Some(file);
            }
        }
        Ok(Found::Newest { newest, files })
    }

    fn open(&self, flags: OFlags) -> Result<OwnedFd, Failure> {
        self.open_at(flags).map_err(|errno| self.failed(errno))
    }

    fn open_at(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.directory, path, Mode::empty())?;
        // Neither RESOLVE_CACHED nor RESOLVE_NO_XDEV: what is asked for may have to be mounted first.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(directory, &self.rest, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn path(&self) -> PathBuf {
        if self.rest == Path::new(".") { self.directory.clone() } else { self.directory.join(&self.rest) }
    }

    fn failed(&self, errno: Errno) -> Failure {
        let (path, directory) = (self.path(), self.directory.display());
        let path = path.display();
        match errno {
            Errno::XDEV | Errno::LOOP => {
                Failure::new(Reason::Policy, format!("a link at {path} leads out of {directory}: name where it leads"))
            }
            Errno::NOENT | Errno::NOTDIR => Failure::new(Reason::Unreachable, format!("{path} is not there")),
            Errno::ACCESS | Errno::PERM => {
                let what = "the satellite's user may not look at it";
                Failure::new(
                    Reason::Unsupported,
                    format!("{path}: {what}: see its mode and those of the directories above"),
                )
            }
            Errno::NOSYS => Failure::new(Reason::Unsupported, "it needs Linux 5.6 or later".to_owned()),
            other => Failure::new(Reason::Unreachable, format!("{path}: {}", std::io::Error::from(other))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_as_a_shells_does() {
        for (pattern, name, fits) in [
            ("*", "a", true),
            ("*", ".a", false),
            (".*", ".a", true),
            ("*.tar.zst", "x.tar.zst", true),
            ("*.tar.zst", ".tar.zst", false),
            ("*.tar.zst", "x.tar.zst.part", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("db-????.sql", "db-2026.sql", true),
            ("db-????.sql", "db-26.sql", false),
            ("a", "", false),
            ("*?", "", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().fits(name.as_bytes()), fits, "{pattern} {name}");
        }
        assert!(Pattern::parse("a/b").is_err() && Pattern::parse("").is_err());
    }

    #[test]
    fn what_only_waits_to_be_mounted_is_away() {
        let place = Place::new(Path::new("/mnt"), Path::new("/mnt/nas"));
        let failure = place.check_kind(AUTOFS).unwrap_err();
        assert_eq!(failure.reason, Reason::Unreachable);
        assert!(failure.detail.starts_with("/mnt/nas: only the automount is there"), "{failure}");
        for other in [0x6969, 0xff53_4d42, 0x0102_1994] {
            assert_eq!(place.check_kind(other), Ok(()));
        }
    }

    #[test]
    fn a_directory_is_read_no_longer_than_there_is_time() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "").unwrap();
        let place = Place::new(folder.path(), folder.path());
        let look = |limit: Duration| place.look(&What::Newest(Pattern::parse("*").unwrap()), &Deadline::after(limit));
        let why = look(Duration::ZERO).unwrap_err();
        assert!(why.reason == Reason::Timeout && why.detail.contains("not all names were read"), "{why}");
        assert!(look(Duration::from_secs(60)).is_ok());
    }
}
