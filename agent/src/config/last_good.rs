//! The configuration in force, on disk: what a start without the relay polls.
//!
//! With it stand the devices of the newest version that were refused: a policy that allows them now, or a newer program that
//! knows them, takes them up. Beside it stands how many samples each metric gave, so that a stop can be explained in samples.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use satellite_shared::id::DeviceName;
use satellite_shared::limits;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const DOCUMENT: &str = "last-good.json";
const EXPECTED: &str = "expected.json";

/// What is in force.
#[derive(Debug, Clone)]
pub struct LastGood {
    dir: PathBuf,
    kept: Kept,
    expected: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    version: u64,
    device: Vec<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    refused: Vec<Value>,
}

impl LastGood {
    /// Reads what there is; a file that can't be read counts as none, and is said.
    #[must_use]
    pub fn load(dir: &Path) -> Self {
        let kept = read(&dir.join(DOCUMENT)).unwrap_or_default();
        let expected = read(&dir.join(EXPECTED)).unwrap_or_default();
        Self { dir: dir.to_owned(), kept, expected }
    }

    /// Its version; 0 where there is none.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.kept.version
    }

    /// As a configuration document.
    #[must_use]
    pub fn document(&self) -> Value {
        json!({ "device": self.kept.device })
    }

    /// What would be in force if nothing of it had been refused.
    #[must_use]
    pub fn wanted(&self) -> Value {
        let name = |device: &Value| device.get("name").cloned();
        let is_refused = |device: &Value| self.kept.refused.iter().any(|refused| name(refused) == name(device));
        let taken = self.kept.device.iter().filter(|device| !is_refused(device));
        json!({ "device": taken.chain(&self.kept.refused).collect::<Vec<_>>() })
    }

    /// Takes a new one; says whether it differs.
    pub fn set(&mut self, version: u64, device: Vec<Value>, refused: Vec<Value>) -> bool {
        let before = std::mem::replace(&mut self.kept, Kept { version, device, refused });
        before != self.kept
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// What the system said.
    pub fn save(&self) -> std::io::Result<()> {
        write(&self.dir, DOCUMENT, &self.kept)
    }

    /// How many samples a metric gave when that was written down; 1 where it never was.
    #[must_use]
    pub fn expected(&self, device: &DeviceName, metric: &str) -> u64 {
        self.expected.get(&key(device, metric)).copied().unwrap_or(1)
    }

    /// Writes down how many samples the metrics give, where that differs by more than a tenth.
    ///
    /// # Errors
    /// What the system said.
    pub fn note_expected(&mut self, counts: Vec<(DeviceName, String, u64)>) -> std::io::Result<()> {
        let fresh: BTreeMap<String, u64> =
            counts.into_iter().map(|(device, metric, count)| (key(&device, &metric), count)).collect();
        let differs = fresh.len() != self.expected.len()
            || fresh
                .iter()
                .any(|(key, count)| self.expected.get(key).is_none_or(|before| before.abs_diff(*count) * 10 > *before));
        if !differs {
            return Ok(());
        }
        self.expected = fresh;
        write(&self.dir, EXPECTED, &self.expected)
    }
}

fn key(device: &DeviceName, metric: &str) -> String {
    format!("{device}/{metric}")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let length = std::fs::metadata(path).ok()?.len();
    if length > 4 * limits::CONFIG_BYTES_MAX as u64 {
        tracing::error!(path = %path.display(), length, "larger than it can be: ignored");
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let read = serde_json::from_str(&text);
    if let Err(error) = &read {
        tracing::error!(path = %path.display(), %error, "damaged: ignored");
    }
    read.ok()
}

fn write<T: Serialize>(dir: &Path, name: &str, value: &T) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let tmp = dir.join(format!("{name}.tmp"));
    let mut file = std::fs::File::create(&tmp)?;
    file.write_all(serde_json::to_string(value)?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&tmp, dir.join(name))?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_force_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = LastGood::load(dir.path());
        assert_eq!(kept.version(), 0);
        kept.set(4, vec![json!({"name": "nas"})], vec![]);
        kept.save().unwrap();
        kept.note_expected(vec![("nas".parse().unwrap(), "cpu".into(), 80)]).unwrap();
        let again = LastGood::load(dir.path());
        assert_eq!((again.version(), again.document()), (4, json!({"device": [{"name": "nas"}]})));
        assert_eq!(again.expected(&"nas".parse().unwrap(), "cpu"), 80);
        assert_eq!(again.expected(&"nas".parse().unwrap(), "other"), 1);
    }

    #[test]
    fn a_damaged_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(DOCUMENT), "{\"version\": 3, \"dev").unwrap();
        assert_eq!(LastGood::load(dir.path()).version(), 0);
    }
}
