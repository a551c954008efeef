//! Files of `/proc` and `/sys`, read below a root that tests replace, into one buffer that is kept.
//!
//! Every read has a limit. A path is put together in a buffer too, so that a poll of hundreds of files allocates
//! nothing. Deliberately absent: any path from the configuration.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use satellite_shared::gap::Reason;

use crate::collector::Failure;

/// A file of several values. `/proc/stat` of a machine with 256 processors has some 100 KB.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// A sysfs attribute is at most a page.
const LINE_BYTES_MAX: usize = 4096;
/// Entries of one directory.
const NAMES_MAX: usize = 4096;

/// Why a part gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// This machine does not have it.
    #[error("{} is not there", .0.display())]
    Absent(PathBuf),
    /// The satellite's user may not read it.
    #[error("{}: permission denied", .0.display())]
    Denied(PathBuf),
    /// Reading it failed in another way.
    #[error("{}: {}", .0.display(), .1)]
    Unreadable(PathBuf, std::io::Error),
    /// It is larger than anything the kernel writes there.
    #[error("{}: more than {} bytes", .0.display(), .1)]
    TooLarge(PathBuf, usize),
    /// It does not look as the kernel writes it.
    #[error("{}: {}", .0.display(), .1)]
    Malformed(PathBuf, &'static str),
    /// What it is read through says no.
    #[error("{0}")]
    Library(String),
}

impl Trouble {
    fn of(path: &str, error: std::io::Error) -> Self {
        match error.kind() {
            // A device that went away while its files were read answers so, too.
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Absent(path.into()),
            ErrorKind::PermissionDenied => Self::Denied(path.into()),
            #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum: all else is told as it is")]
            _ if error.raw_os_error() == Some(libc::ENODEV) => Self::Absent(path.into()),
            #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum: all else is told as it is")]
            _ => Self::Unreadable(path.into(), error),
        }
    }

    /// Whether there is nothing to read, which is no failure.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }

    /// The trouble as a metric's failure.
    pub(super) fn failure(&self) -> Failure {
        let reason = match self {
            Self::Absent(_) => Reason::Unsupported,
            Self::Denied(_) => Reason::Refused,
            Self::Unreadable(..) | Self::TooLarge(..) | Self::Malformed(..) | Self::Library(_) => Reason::BadAnswer,
        };
        Failure::new(reason, self.to_string())
    }
}

/// The files, and the buffers they are read into.
pub(super) struct Files {
    root: String,
    path: String,
    bytes: Vec<u8>,
}

impl Files {
    /// Files below a root.
    pub(super) fn new(root: &Path) -> Self {
        let root = root.to_string_lossy().trim_end_matches('/').to_owned();
        Self { root, path: String::new(), bytes: Vec::with_capacity(4096) }
    }

    /// Where a file stands.
    pub(super) fn path(&self, relative: &str) -> PathBuf {
        PathBuf::from(format!("{}/{relative}", self.root))
    }

    /// A whole file.
    pub(super) fn text(&mut self, relative: &str) -> Result<&str, Trouble> {
        self.text_up_to(relative, TEXT_BYTES_MAX)
    }

    /// A whole file of at most so many bytes.
    pub(super) fn text_up_to(&mut self, relative: &str, max: usize) -> Result<&str, Trouble> {
        let file = self.open(relative)?;
        self.bytes.clear();
        let limit = u64::try_from(max).unwrap_or(u64::MAX);
        file.take(limit.saturating_add(1)).read_to_end(&mut self.bytes).map_err(|e| Trouble::of(&self.path, e))?;
        if self.bytes.len() > max {
            return Err(Trouble::TooLarge(self.path.as_str().into(), max));
        }
        self.utf8()
    }

    /// An attribute without the white space around it.
    pub(super) fn line(&mut self, relative: &str) -> Result<&str, Trouble> {
        let mut file = self.open(relative)?;
        self.bytes.resize(LINE_BYTES_MAX, 0);
        let len = loop {
            match file.read(&mut self.bytes) {
                Ok(len) => break len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Trouble::of(&self.path, error)),
            }
        };
        self.bytes.truncate(len);
        self.utf8().map(str::trim)
    }

    /// An attribute that holds a number.
    pub(super) fn number(&mut self, relative: &str) -> Result<f64, Trouble> {
        let line = self.line(relative)?;
        let read = number(line);
        read.ok_or_else(|| Trouble::Malformed(self.path.as_str().into(), "not a number"))
    }

    /// The attribute's number; `None` where there is none or the driver gives none.
    pub(super) fn number_if_any(&mut self, relative: &str) -> Option<f64> {
        self.number(relative).ok()
    }

    /// The attribute's text; `None` where there is none or the driver gives none.
    pub(super) fn line_if_any(&mut self, relative: &str) -> Option<String> {
        self.line(relative).ok().map(str::to_owned)
    }

    /// The names in a directory, sorted.
    pub(super) fn names(&mut self, relative: &str) -> Result<Vec<String>, Trouble> {
        self.set_path(relative);
        let entries = std::fs::read_dir(&self.path).map_err(|error| Trouble::of(&self.path, error))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Trouble::of(&self.path, error))?;
            // A name that is no UTF-8 could be no label either.
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
            if names.len() > NAMES_MAX {
                return Err(Trouble::TooLarge(self.path.as_str().into(), NAMES_MAX));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// For what is asked through a library, which knows no root.
    pub(super) fn must_be_real(&self) -> Result<(), Trouble> {
        if self.root.is_empty() { Ok(()) } else { Err(Trouble::Absent(self.path(""))) }
    }

    /// A trouble with the file that was read last.
    pub(super) fn malformed(&self, what: &'static str) -> Trouble {
        Trouble::Malformed(self.path.as_str().into(), what)
    }

    fn set_path(&mut self, relative: &str) {
        self.path.clear();
        self.path.push_str(&self.root);
        self.path.push('/');
        self.path.push_str(relative);
    }

    fn open(&mut self, relative: &str) -> Result<File, Trouble> {
        self.set_path(relative);
        File::open(&self.path).map_err(|error| Trouble::of(&self.path, error))
    }

    fn utf8(&mut self) -> Result<&str, Trouble> {
        if std::str::from_utf8(&self.bytes).is_err() {
            // A vendor's name in some other encoding: what can be read of it stays.
            self.bytes = String::from_utf8_lossy(&self.bytes).into_owned().into_bytes();
        }
        std::str::from_utf8(&self.bytes).map_err(|_| Trouble::Malformed(self.path.as_str().into(), "not UTF-8"))
    }
}

/// A number as the kernel writes it: whole ones are far more common, and faster to read.
pub(super) fn number(text: &str) -> Option<f64> {
    if let Ok(whole) = text.parse::<u64>() {
        return Some(whole as f64);
    }
    text.parse::<f64>().ok().filter(|read| read.is_finite())
}

/// Names of metrics that are made from a file's own words, made once: the lines keep their order from poll to poll.
#[derive(Default)]
pub(super) struct Names(Vec<Known>);

#[derive(Default)]
struct Known {
    scope: String,
    word: String,
    name: String,
}

impl Names {
    /// The name for a word of some scope at this place of the file; `make` makes it when either is new there.
    pub(super) fn at(&mut self, place: usize, scope: &str, word: &str, make: impl FnOnce() -> String) -> &str {
        if place >= self.0.len() {
            self.0.resize_with(place + 1, Default::default);
        }
        let known = &mut self.0[place];
        if known.word != word || known.scope != scope || known.name.is_empty() {
            word.clone_into(&mut known.word);
            scope.clone_into(&mut known.scope);
            known.name = make();
        }
        &known.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        (dir, files)
    }

    #[test]
    fn a_file_that_is_not_there_is_no_failure() {
        let (dir, mut files) = files();
        std::fs::write(dir.path().join("a"), "").unwrap();
        assert!(files.text("b").unwrap_err().is_absent());
        assert!(files.line("a/b").unwrap_err().is_absent());
        assert!(files.names("c").unwrap_err().is_absent());
    }

    #[test]
    fn a_file_without_end_is_refused_with_its_name() {
        let (dir, mut files) = files();
        std::fs::write(dir.path().join("big"), vec![b'1'; TEXT_BYTES_MAX + 1]).unwrap();
        let failure = files.text("big").unwrap_err().failure();
        assert_eq!(failure.reason, Reason::BadAnswer);
        assert!(failure.detail.ends_with("/big: more than 1048576 bytes"), "{failure}");
        assert_eq!(files.line("big").unwrap().len(), LINE_BYTES_MAX);
    }

    #[test]
    fn what_is_no_number_is_told_with_its_file() {
        let (dir, mut files) = files();
        std::fs::write(dir.path().join("n"), "twelve\n").unwrap();
        assert!(files.number("n").unwrap_err().failure().detail.ends_with("/n: not a number"));
        for text in ["nan", "inf", "", "1 2"] {
            assert_eq!(number(text), None, "{text}");
        }
        assert_eq!(
            [number("18446744073709551615"), number("-1"), number("0.5")],
            [Some(u64::MAX as f64), Some(-1.0), Some(0.5)]
        );
    }

    #[test]
    fn another_encoding_costs_the_letter_only() {
        let (dir, mut files) = files();
        std::fs::write(dir.path().join("vendor"), b"M\xfcller\n").unwrap();
        assert_eq!(files.line("vendor").unwrap(), "M\u{fffd}ller");
    }

    #[test]
    fn a_name_is_made_once_and_again_when_the_file_changes() {
        let mut names = Names::default();
        assert_eq!(names.at(1, "Tcp", "a", || "tcp_a".into()), "tcp_a");
        assert_eq!(names.at(1, "Tcp", "a", || "other".into()), "tcp_a");
        assert_eq!(names.at(1, "Tcp", "b", || "tcp_b".into()), "tcp_b");
        assert_eq!(names.at(1, "Udp", "b", || "udp_b".into()), "udp_b");
    }
}
