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

use crate::collector::Failure;
use crate::collector::probe::Stopwatch;

/// Entries of one directory.
const ENTRIES_MAX: u32 = 20_000;
const PATTERN_BYTES_MAX: usize = 256;

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
        let pattern = self.0.as_slice();
        if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
            return false;
        }
        let (mut at, mut read) = (0, 0);
        // Where the last star stands, and how much of the name it has taken so far.
        let mut star: Option<(usize, usize)> = None;
        while read < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, read));
                    at += 1;
                }
                Some(letter) if *letter == b'?' || *letter == name[read] => {
                    at += 1;
                    read += 1;
                }
                _ => {
                    let Some((place, taken)) = star else { return false };
                    star = Some((place, taken + 1));
                    at = place + 1;
                    read = taken + 1;
                }
            }
        }
        pattern[at..].iter().all(|letter| *letter == b'*')
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

    /// Looks, and waits for as long as that takes. A directory is read for so long at most.
    pub(super) fn look(&self, what: &What, limit: Duration) -> Result<Found, Failure> {
        match what {
            What::Mount => {
                let watch = Stopwatch::start();
                let root = self.open(OFlags::PATH)?;
                rustix::fs::fstatfs(&root).map_err(|errno| self.failed(errno))?;
                Ok(Found::Mount { seconds: watch.seconds() })
            }
            What::File => {
                let stat = rustix::fs::fstat(self.open(OFlags::PATH)?).map_err(|errno| self.failed(errno))?;
                let file = File::of(&stat).ok_or_else(|| {
                    let why = format!("{} is no file: `newest_in` looks into directories", self.path().display());
                    Failure::new(Reason::BadAnswer, why)
                })?;
                Ok(Found::File(file))
            }
            What::Newest(pattern) => self.newest(pattern, limit),
        }
    }

    fn newest(&self, pattern: &Pattern, limit: Duration) -> Result<Found, Failure> {
        let watch = Stopwatch::start();
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
            if watch.seconds() > limit.as_secs_f64() {
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
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.directory, path, Mode::empty()).map_err(|errno| self.failed(errno))?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(directory, &self.rest, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
            .map_err(|errno| self.failed(errno))
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
    fn a_pattern_of_many_stars_takes_no_time() {
        let pattern = Pattern::parse(&"*a".repeat(128)).unwrap();
        assert!(!pattern.fits("a".repeat(127).as_bytes()));
        assert!(!pattern.fits(format!("{}b", "a".repeat(255)).as_bytes()));
    }
}
