//! What a registry that was closed in order looked like, so that damage done to it at rest is noticed.
//!
//! SQLite keeps no checksums of its pages: a flipped bit in a row reads as another row. So whoever closes the registry
//! last writes down its length, its time of change and its SHA-256 beside it, and whoever opens it next compares them.
//! The seal is broken, durably, before anything may change the file. A file with another time of change was replaced
//! or edited by somebody, such as from a backup: the seal says nothing about it. Deliberately absent: a seal over a
//! registry that is in use or whose relay was killed; there SQLite's own check of its structure must do.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{hex, sha256_hex};
use crate::data_dir::{DataDir, DataDirError};

const NAME: &str = "registry.seal";
const PIECE_BYTES: usize = 64 << 10;

/// What the file looked like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    bytes: u64,
    modified: (i64, i64),
    sha256: String,
}

/// Writes down what the registry looks like, if nobody has it open: then there is no `-wal` beside it.
pub(super) fn write(data_dir: &DataDir, registry: &Path) -> Result<(), DataDirError> {
    if registry.with_extension("db-wal").exists() {
        return Ok(());
    }
    let denied = |source| DataDirError::Denied { path: registry.to_owned(), source };
    let seal = Seal::of(registry).map_err(denied)?;
    let json = serde_json::json!(seal).to_string();
    data_dir.replace(NAME, &format!("{} {json}\n", sha256_hex(json.as_bytes())))
}

/// Compares the registry with its seal, and breaks the seal. Why the registry is damaged, if it is; then the seal stays.
pub(super) fn breach(data_dir: &DataDir, registry: &Path) -> Result<Option<String>, DataDirError> {
    let path = data_dir.path().join(NAME);
    let denied = |source| DataDirError::Denied { path: path.clone(), source };
    let Some(seal) = read(&path).map_err(denied)? else { return Ok(None) };
    let found = Seal::of(registry);
    match found {
        Err(source) if source.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(DataDirError::Denied { path: registry.to_owned(), source }),
        Ok(found) if found.modified != seal.modified => {
            tracing::info!(registry = %registry.display(), "it was changed or replaced since it was closed");
        }
        Ok(found) if found.bytes != seal.bytes => {
            return Ok(Some(format!("it has {} bytes and had {} when it was closed", found.bytes, seal.bytes)));
        }
        Ok(found) if found.sha256 != seal.sha256 => {
            return Ok(Some("its bytes are not those with which it was closed".into()));
        }
        Ok(_) => {}
    }
    std::fs::remove_file(&path).and_then(|()| File::open(data_dir.path())?.sync_all()).map_err(denied)?;
    Ok(None)
}

/// A seal that is damaged itself says nothing.
fn read(path: &Path) -> io::Result<Option<Seal>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let seal = Seal::parse(&bytes);
    if seal.is_none() {
        tracing::warn!(path = %path.display(), "the registry's seal is damaged: whether the registry is, it can't tell");
        std::fs::remove_file(path)?;
    }
    Ok(seal)
}

impl Seal {
    /// Reads a seal's file; `None` where it is damaged.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (sha256, json) = text.trim_end().split_once(' ')?;
        let whole = sha256 == sha256_hex(json.as_bytes());
        whole.then(|| serde_json::from_str(json).ok()).flatten()
    }

    fn of(registry: &Path) -> io::Result<Self> {
        let mut file = File::open(registry)?;
        file.sync_all()?;
        let metadata = file.metadata()?;
        let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece)? {
                0 => break,
                read => digest.update(&piece[..read]),
            }
        }
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Ok(Self { bytes: metadata.len(), modified, sha256: hex(digest.finish().as_ref()) })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;

    use super::*;

    /// A folder with a file that was sealed.
    fn sealed() -> (tempfile::TempDir, DataDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(dir.path()).unwrap();
        let registry = dir.path().join("registry.db");
        std::fs::write(&registry, b"all that must not be forgotten").unwrap();
        write(&data_dir, &registry).unwrap();
        (dir, data_dir, registry)
    }

    /// Changes bytes as a disk does: without a word.
    fn rot(path: &Path, content: &[u8]) {
        let modified = std::fs::metadata(path).unwrap().modified().unwrap();
        std::fs::write(path, content).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.set_times(FileTimes::new().set_modified(modified)).unwrap();
    }

    #[test]
    fn a_file_as_it_was_closed_is_whole_and_its_seal_is_broken() {
        let (_dir, data_dir, registry) = sealed();
        assert_eq!(breach(&data_dir, &registry).unwrap(), None);
        assert!(!data_dir.path().join(NAME).exists());
        assert_eq!(breach(&data_dir, &registry).unwrap(), None, "without a seal nothing is said");
    }

    #[test]
    fn a_flipped_bit_and_a_missing_end_are_noticed_again_and_again() {
        for content in [&b"all that must not be forgottem"[..], b"all that"] {
            let (_dir, data_dir, registry) = sealed();
            rot(&registry, content);
            for _ in 0..2 {
                assert!(breach(&data_dir, &registry).unwrap().is_some(), "{content:?}");
            }
        }
    }

    #[test]
    fn a_file_that_somebody_put_in_its_place_is_not_judged() {
        let (_dir, data_dir, registry) = sealed();
        std::fs::remove_file(&registry).unwrap();
        std::fs::write(&registry, b"from a backup").unwrap();
        assert_eq!(breach(&data_dir, &registry).unwrap(), None);
    }

    #[test]
    fn a_damaged_seal_accuses_nobody() {
        let (_dir, data_dir, registry) = sealed();
        let seal = data_dir.path().join(NAME);
        let whole = std::fs::read(&seal).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&seal, flipped).unwrap();
            assert_eq!(breach(&data_dir, &registry).unwrap(), None, "bit {bit}");
        }
    }

    #[test]
    fn a_registry_that_is_open_elsewhere_is_not_sealed() {
        let (_dir, data_dir, registry) = sealed();
        std::fs::remove_file(data_dir.path().join(NAME)).unwrap();
        std::fs::write(registry.with_extension("db-wal"), b"").unwrap();
        write(&data_dir, &registry).unwrap();
        assert!(!data_dir.path().join(NAME).exists());
    }
}
