//! The judge: an independent reader of the stored files, compared with what the devices saw and what the relay claims.
//!
//! The reading itself is `checker/check.py`, with pyarrow, so that no code of ours vouches for itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::device::Device;
use crate::peers::Peer;
use crate::process;
use crate::relay::Account;

/// What the checker found.
#[derive(Debug, Clone, Deserialize)]
pub struct Verdict {
    /// Samples in storage.
    pub stored: u64,
    /// Due samples that gaps explain.
    pub explained: u64,
    /// Gap records.
    pub gaps: u64,
    /// Records that are there twice.
    pub duplicates: u64,
    /// Values that no device ever gave.
    pub unexpected: u64,
    /// Values that were torn from what they came with.
    pub altered: u64,
    /// Values that stand before one that was given earlier.
    pub out_of_order: u64,
    /// Numbers and answers that are neither stored nor explained.
    pub lost: u64,
    /// Explained samples by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Records in frames that were set aside.
    pub set_aside: u64,
    /// Epochs of which the relay's registry claims other records than there are.
    pub claims_differ: u64,
    /// The metric names that are stored.
    pub names: Vec<String>,
    /// Per satellite.
    pub satellites: BTreeMap<String, Totals>,
    /// The details, for the message of a failure.
    #[serde(flatten)]
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// What is there of one satellite.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Totals {
    /// How often its buffer was opened anew.
    pub epochs: u64,
    /// Its samples in storage.
    pub stored: u64,
    /// Its due samples that gaps explain.
    pub explained: u64,
}

impl Verdict {
    /// Whether nothing is explained but slots that a busy machine came too late for.
    #[must_use]
    pub fn polled_all_the_time(&self) -> bool {
        self.reasons.keys().all(|reason| reason == "late")
    }

    /// Reads a folder of records and compares it with what the devices saw.
    ///
    /// # Errors
    /// When there is no reader, or it can't read the files.
    pub fn of(records: &Path, devices: &[&Device]) -> Result<Self> {
        let logs = tempfile::NamedTempFile::new()?;
        Device::write_logs(devices, logs.path())?;
        Self::of_logged(records, logs.path())
    }

    /// The same with logs that were written before.
    ///
    /// # Errors
    /// When there is no reader, or it can't read the files.
    pub fn of_logged(records: &Path, logs: &Path) -> Result<Self> {
        let said = python("check.py", &[records.as_os_str(), logs.as_os_str()])?;
        serde_json::from_str(&said).context("the checker's answer")
    }

    /// Nothing lost, doubled, altered, made up or out of order, every due sample stored or explained, and the relay
    /// claims to have what it has.
    ///
    /// # Errors
    /// With all that was found.
    pub fn must_be_whole(&self) -> Result<()> {
        let faults = [
            ("lost", self.lost),
            ("duplicates", self.duplicates),
            ("unexpected", self.unexpected),
            ("altered", self.altered),
            ("out_of_order", self.out_of_order),
            ("claims_differ", self.claims_differ),
        ];
        let found: Vec<String> =
            faults.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{what}: {n}")).collect();
        if !found.is_empty() {
            bail!("{}\n{}", found.join(", "), self.told()?);
        }
        Ok(())
    }

    /// The relay's account of a satellite says the same as its files, and balances.
    ///
    /// # Errors
    /// With both.
    pub fn must_agree(&self, satellite: &str, account: &Account) -> Result<()> {
        let Some(totals) = self.satellites.get(satellite) else {
            bail!("nothing of {satellite} is stored; the account says {account:?}");
        };
        let same = account.stored == totals.stored && account.explained == totals.explained;
        if !same || !account.balanced || account.due != totals.stored + totals.explained {
            bail!("the account says {account:?}, the files say {totals:?}\n{}", self.told()?);
        }
        Ok(())
    }

    fn told(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&serde_json::json!({
            "stored": self.stored, "explained": self.explained, "reasons": self.reasons, "details": self.details,
        }))?)
    }
}

/// Runs one of the checker's scripts; gives what it printed.
///
/// # Errors
/// With what it said, when it failed.
pub fn python(script: &str, arguments: &[&std::ffi::OsStr]) -> Result<String> {
    let python = Peer::Python.path().with_context(|| Peer::Python.missing())?;
    let script = scripts().join(script);
    let mut command = Command::new(python);
    command.arg(&script).args(arguments);
    process::run(&mut command, "")?.success().with_context(|| script.display().to_string())
}

/// Where the scripts are.
#[must_use]
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("checker")
}
