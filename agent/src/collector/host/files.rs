//! Files of `/proc` and `/sys`, read below a root that tests replace, into one buffer that is kept.
//!
//! Every read has a limit. A path is put together in a buffer too, so that a poll of hundreds of files allocates
//! nothing. The kernel's files stay open and are read again from their beginning, which is six times as fast as to open
//! them: one whose device went away says so, and is opened anew. Each read of such a file has the kernel make its text
//! anew, so none is read once more only to learn that it has ended. Deliberately absent: any path from the
//! configuration.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use satellite_shared::gap::Reason;

use crate::collector::Failure;

/// A file of several values. `/proc/stat` of a machine with 256 processors has some 100 KB.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// A sysfs attribute is at most a page.
const LINE_BYTES_MAX: usize = 4096;
/// More than any number has.
const NUMBER_BYTES_MAX: usize = 512;
/// The kernel gives whole lines, as many as its own buffer takes: a page, or more.
const KERNEL_BYTES_MIN: usize = 4096;
/// No line of `/proc` is longer, but for mounts.
const PROC_LINE_BYTES_MAX: usize = 2048;
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
        let kind = error.kind();
        // A device that went away while its files were read answers so, too.
        let absent = matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory);
        if absent || error.raw_os_error() == Some(libc::ENODEV) {
            Self::Absent(path.into())
        } else if kind == ErrorKind::PermissionDenied {
            Self::Denied(path.into())
        } else {
            Self::Unreadable(path.into(), error)
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

/// What tells a file from one that was written or put in its place since: what was made of it may be kept meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    place: (u64, u64),
    len: u64,
    changed: [(i64, i64); 2],
}

/// The files, and the buffers they are read into.
pub(super) struct Files {
    root: String,
    path: String,
    /// Never shrinks: what was read last are its first `len`.
    bytes: Vec<u8>,
    len: usize,
    open: HashMap<String, File>,
    open_max: usize,
}

impl Files {
    /// Files below a root, of which so many stay open.
    pub(super) fn new(root: &Path, open_max: usize) -> Self {
        let root = root.to_string_lossy().trim_end_matches('/').to_owned();
        Self { root, path: String::new(), bytes: vec![0; LINE_BYTES_MAX], len: 0, open: HashMap::new(), open_max }
    }

    /// Which file stands there now, where one does.
    pub(super) fn stamp(&mut self, relative: &str) -> Option<Stamp> {
        self.set_path(relative);
        let metadata = std::fs::metadata(&self.path).ok()?;
        Some(Stamp {
            place: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            changed: [(metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec())],
        })
    }

    /// Where a file stands.
    pub(super) fn path(&self, relative: &str) -> PathBuf {
        PathBuf::from(format!("{}/{relative}", self.root))
    }

    /// Whether something stands there.
    pub(super) fn must_stand(&mut self, relative: &str) -> Result<(), Trouble> {
        self.set_path(relative);
        std::fs::metadata(&self.path).map(|_| ()).map_err(|error| Trouble::of(&self.path, error))
    }

    /// A whole file.
    pub(super) fn text(&mut self, relative: &str) -> Result<&str, Trouble> {
        self.text_up_to(relative, TEXT_BYTES_MAX)
    }

    /// A whole file of at most so many bytes.
    pub(super) fn text_up_to(&mut self, relative: &str, max: usize) -> Result<&str, Trouble> {
        let line_max = if is_kernels(relative) { Some(PROC_LINE_BYTES_MAX) } else { None };
        self.load(relative, max, line_max)?;
        self.utf8()
    }

    /// A whole file of the kernel whose lines may be of any length, for [`loaded`](Self::loaded).
    pub(super) fn load_long_lines(&mut self, relative: &str) -> Result<(), Trouble> {
        self.load(relative, TEXT_BYTES_MAX, None)
    }

    /// What was loaded last.
    pub(super) fn loaded(&mut self) -> Result<&str, Trouble> {
        self.utf8()
    }

    fn load(&mut self, relative: &str, max: usize, line_max: Option<usize>) -> Result<(), Trouble> {
        self.read(relative, |file, bytes| read_whole(file, bytes, max, line_max))?;
        if self.len > max {
            return Err(Trouble::TooLarge(self.path.as_str().into(), max));
        }
        Ok(())
    }

    /// An attribute without the white space around it.
    pub(super) fn line(&mut self, relative: &str) -> Result<&str, Trouble> {
        self.line_up_to(relative, LINE_BYTES_MAX)
    }

    fn line_up_to(&mut self, relative: &str, max: usize) -> Result<&str, Trouble> {
        self.read(relative, |file, bytes| read_at(file, &mut bytes[..max], 0))?;
        self.utf8().map(str::trim)
    }

    /// An attribute that holds a number.
    pub(super) fn number(&mut self, relative: &str) -> Result<f64, Trouble> {
        // For `/proc/sys` the kernel allocates as much as is asked for.
        let line = self.line_up_to(relative, NUMBER_BYTES_MAX)?;
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

    /// Whether somebody who sees more opened a file of `/proc` for this program, as its standard input.
    pub(super) fn is_handed_over(&self) -> bool {
        let kind = rustix::fs::fstatfs(std::io::stdin()).map(|stat| stat.f_type);
        self.root.is_empty() && kind == Ok(rustix::fs::PROC_SUPER_MAGIC)
    }

    /// Loads that file.
    pub(super) fn load_handed_over(&mut self) -> Result<(), Trouble> {
        "/dev/stdin".clone_into(&mut self.path);
        let file = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
        let read = file.and_then(|file| read_whole(&file, &mut self.bytes, TEXT_BYTES_MAX, None));
        self.len = read.map_err(|error| Trouble::of(&self.path, error))?;
        Ok(())
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

    fn read(
        &mut self,
        relative: &str,
        read: impl Fn(&File, &mut Vec<u8>) -> std::io::Result<usize>,
    ) -> Result<(), Trouble> {
        self.set_path(relative);
        if let Some(file) = self.open.get(relative) {
            match read(file, &mut self.bytes) {
                Ok(len) => {
                    self.len = len;
                    return Ok(());
                }
                // Its device went away; perhaps another of the name has come.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => self.open.remove(relative),
                Err(error) => return Err(Trouble::of(&self.path, error)),
            };
        }
        let file = File::open(&self.path).map_err(|error| Trouble::of(&self.path, error))?;
        self.len = read(&file, &mut self.bytes).map_err(|error| Trouble::of(&self.path, error))?;
        // Other file systems' files are replaced by renaming: what is open would be the old one.
        if is_kernels(relative) && self.open.len() < self.open_max {
            self.open.insert(relative.to_owned(), file);
        }
        Ok(())
    }

    fn utf8(&mut self) -> Result<&str, Trouble> {
        if std::str::from_utf8(&self.bytes[..self.len]).is_err() {
            // A vendor's name in some other encoding: what can be read of it stays.
            let readable = String::from_utf8_lossy(&self.bytes[..self.len]).into_owned().into_bytes();
            self.len = readable.len();
            self.bytes.resize(self.bytes.len().max(self.len), 0);
            self.bytes[..self.len].copy_from_slice(&readable);
        }
        std::str::from_utf8(&self.bytes[..self.len])
            .map_err(|_| Trouble::Malformed(self.path.as_str().into(), "not UTF-8"))
    }
}

fn is_kernels(relative: &str) -> bool {
    relative.starts_with("proc/") || relative.starts_with("sys/")
}

/// Until the end, or a little beyond `max`. The end is where nothing comes any more, or, where lines have a limit, where
/// another line would have had room.
fn read_whole(file: &File, bytes: &mut Vec<u8>, max: usize, line_max: Option<usize>) -> std::io::Result<usize> {
    let mut len = 0;
    loop {
        if len == bytes.len() {
            bytes.resize(len * 2, 0);
        }
        let room = bytes.len() - len;
        let read = read_at(file, &mut bytes[len..], len)?;
        len += read;
        let had_room = line_max.is_some_and(|line| read < room && read + line <= KERNEL_BYTES_MIN);
        if read == 0 || len > max || had_room {
            return Ok(len);
        }
    }
}

fn read_at(file: &File, bytes: &mut [u8], at: usize) -> std::io::Result<usize> {
    loop {
        match file.read_at(bytes, at as u64) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
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
    use std::fs;

    use super::*;

    fn files() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), 2);
        (dir, files)
    }

    #[test]
    fn a_file_that_is_not_there_is_no_failure() {
        let (dir, mut files) = files();
        fs::write(dir.path().join("a"), "").unwrap();
        assert!(files.text("b").unwrap_err().is_absent());
        assert!(files.line("a/b").unwrap_err().is_absent());
        assert!(files.names("c").unwrap_err().is_absent());
    }

    #[test]
    fn a_file_without_end_is_refused_with_its_name() {
        let (dir, mut files) = files();
        fs::write(dir.path().join("big"), vec![b'1'; TEXT_BYTES_MAX + 1]).unwrap();
        let failure = files.text("big").unwrap_err().failure();
        assert_eq!(failure.reason, Reason::BadAnswer);
        assert!(failure.detail.ends_with("/big: more than 1048576 bytes"), "{failure}");
        assert_eq!(files.line("big").unwrap().len(), LINE_BYTES_MAX);
    }

    #[test]
    fn what_is_no_number_is_told_with_its_file() {
        let (dir, mut files) = files();
        fs::write(dir.path().join("n"), "twelve\n").unwrap();
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
        fs::write(dir.path().join("vendor"), b"M\xfcller\n").unwrap();
        assert_eq!(files.line("vendor").unwrap(), "M\u{fffd}ller");
    }

    #[test]
    fn a_file_that_stays_open_is_read_anew_each_time() {
        let (dir, mut files) = files();
        fs::create_dir(dir.path().join("proc")).unwrap();
        for count in 0..4 {
            for name in ["a", "b", "c"] {
                fs::write(dir.path().join("proc").join(name), format!("{name} {count}\n")).unwrap();
            }
            for name in ["a", "b", "c"] {
                assert_eq!(files.line(&format!("proc/{name}")).unwrap(), format!("{name} {count}"));
                assert_eq!(files.text(&format!("proc/{name}")).unwrap(), format!("{name} {count}\n"));
            }
        }
        assert_eq!(files.open.len(), 2, "no more than asked for");
    }

    #[test]
    fn a_file_that_was_written_or_replaced_has_another_stamp() {
        let (dir, mut files) = files();
        let path = dir.path().join("release");
        assert_eq!(files.stamp("release"), None);
        fs::write(&path, "a").unwrap();
        let first = files.stamp("release").unwrap();
        assert_eq!(files.stamp("release"), Some(first));
        fs::write(dir.path().join("new"), "b").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        let second = files.stamp("release").unwrap();
        fs::write(&path, "bc").unwrap();
        assert!(first != second && files.stamp("release") != Some(second));
    }

    #[test]
    fn a_long_file_is_read_whole() {
        let (dir, mut files) = files();
        for len in [0, 4095, 4096, 4097, 8192, 100_000, TEXT_BYTES_MAX] {
            fs::write(dir.path().join("long"), vec![b'x'; len]).unwrap();
            assert_eq!(files.text("long").unwrap().len(), len);
        }
    }

    #[test]
    fn a_file_of_the_kernel_is_read_whole_however_its_lines_fall() {
        let mut files = Files::new(Path::new("/"), 8);
        for file in ["proc/self/smaps", "proc/self/maps", "proc/filesystems", "proc/stat"] {
            // Those that a kernel hides are empty, and still end.
            let Ok(text) = files.text(file).map(str::to_owned) else { continue };
            let whole = fs::read_to_string(Path::new("/").join(file)).unwrap();
            // Other tests' threads come and go meanwhile.
            assert!(text.len() * 2 > whole.len(), "{file}: {} of {} bytes", text.len(), whole.len());
            assert!(text.is_empty() || text.ends_with('\n'), "{file}");
        }
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
