//! `satellite-relay account`: what was due and what became of it, for one satellite.
//!
//! - `due`: samples due in each epoch, as far as any frame or the satellite's last heartbeat has said.
//! - `stored`: samples in the archive. `explained`: due samples that stored gaps explain. `set_aside`: due samples in
//!   frames that could not be read, which are kept as dead letters.
//! - `waiting`: due, and not yet any of these: still in the satellite's buffer, or on the way. So
//!   `due = stored + explained + set_aside + waiting` as of what the relay knows.
//! - `reported_waiting`: what the satellite last said waits in its buffer, of all epochs; it may be newer or older.
//! - `balanced`: whether the samples and gaps that are stored add up to what the frames themselves said was due with
//!   them. Where it is false, something was counted twice or not at all.

use std::io::{self, Write};

use satellite_shared::wire::to_relay::Progress;
use serde::Serialize;

use crate::cli::records::time_text;
use crate::data_dir::DataDir;
use crate::ingest::Tally;
use crate::registry::{Registry, SatelliteRow, StreamRow};

/// Due, stored, explained and waiting of one satellite.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  satellite-relay account attic
  satellite-relay account attic --json")]
pub struct AccountArgs {
    /// The satellite: its id or its name.
    #[arg(value_name = "ID|NAME")]
    satellite: String,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// The account of one satellite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Whose.
    pub satellite: String,
    /// What people call it.
    pub name: String,
    /// The sum of the epochs.
    #[serde(flatten)]
    pub total: Counts,
    /// What the satellite last said waits in its buffer.
    pub reported_waiting: Option<u64>,
    /// When it last said something.
    pub last_seen_ms: Option<i64>,
    /// Each opening of its buffer, the last to be added to last.
    pub epochs: Vec<EpochAccount>,
}

/// The account of one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EpochAccount {
    /// Which.
    pub epoch: String,
    /// Its counts.
    #[serde(flatten)]
    pub counts: Counts,
    /// The record numbers that are stored, explained or set aside.
    pub ranges: Vec<(u64, u64)>,
    /// When something was last added.
    pub updated_ms: Option<i64>,
}

/// What was due and what became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Samples that were due.
    pub due: u64,
    /// Samples in the archive.
    pub stored: u64,
    /// Due samples that gaps explain.
    pub explained: u64,
    /// Due samples in frames that were set aside.
    pub set_aside: u64,
    /// Due samples that are not here yet.
    pub waiting: u64,
    /// Whether both ways of counting agree.
    pub balanced: bool,
}

impl Account {
    /// The account as the registry holds it now.
    #[must_use]
    pub fn of(satellite: &SatelliteRow, streams: &[StreamRow]) -> Self {
        let progress = satellite.progress.as_ref();
        let mut epochs: Vec<EpochAccount> = streams.iter().map(|row| epoch_account(row, progress)).collect();
        if let Some(progress) = progress.filter(|progress| streams.iter().all(|row| row.epoch != progress.epoch)) {
            let counts = counts(&Tally::default(), progress.due);
            let epoch = progress.epoch.to_string();
            epochs.push(EpochAccount { epoch, counts, ranges: Vec::new(), updated_ms: None });
        }
        Self {
            satellite: satellite.id.to_string(),
            name: satellite.name.clone(),
            total: epochs
                .iter()
                .fold(Counts { balanced: true, ..Counts::default() }, |sum, epoch| sum.plus(&epoch.counts)),
            reported_waiting: progress.map(|progress| progress.waiting),
            last_seen_ms: satellite.last_seen_ms,
            epochs,
        }
    }
}

impl Counts {
    fn plus(self, more: &Self) -> Self {
        Self {
            due: self.due.saturating_add(more.due),
            stored: self.stored.saturating_add(more.stored),
            explained: self.explained.saturating_add(more.explained),
            set_aside: self.set_aside.saturating_add(more.set_aside),
            waiting: self.waiting.saturating_add(more.waiting),
            balanced: self.balanced && more.balanced,
        }
    }
}

fn epoch_account(row: &StreamRow, progress: Option<&Progress>) -> EpochAccount {
    let said = progress.filter(|progress| progress.epoch == row.epoch).map_or(0, |progress| progress.due);
    EpochAccount {
        epoch: row.epoch.to_string(),
        counts: counts(&row.tally, said),
        ranges: row.tally.watermark.ranges().as_slice().to_vec(),
        updated_ms: Some(row.updated_at_ms),
    }
}

fn counts(tally: &Tally, said_due: u64) -> Counts {
    Counts {
        due: tally.due.max(said_due),
        stored: tally.stored,
        explained: tally.explained,
        set_aside: tally.set_aside,
        waiting: tally.waiting(said_due),
        balanced: tally.is_balanced(),
    }
}

/// Reads and prints.
///
/// # Errors
/// When the registry does not answer, and when there is no such satellite.
pub async fn run(args: &AccountArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let registry = Registry::open(data_dir.path()).await?;
    let satellite = registry.satellite_by(&args.satellite).await?;
    let account = Account::of(&satellite, &registry.streams(&satellite.id).await?);
    let mut out = io::stdout().lock();
    let printed = if args.json {
        serde_json::to_writer_pretty(&mut out, &account).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        write_text(&mut out, &account)
    };
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}

fn write_text(out: &mut impl Write, account: &Account) -> io::Result<()> {
    let seen = account.last_seen_ms.map_or_else(|| "never".into(), time_text);
    writeln!(out, "{} ({}), last seen {seen}", account.name, account.satellite)?;
    let Counts { due, stored, explained, set_aside, waiting, balanced } = account.total;
    writeln!(out, "  due        {due:>14}  samples that were to be polled")?;
    writeln!(out, "  stored     {stored:>14}  in the archive")?;
    writeln!(out, "  explained  {explained:>14}  by gaps; `records --gaps` says why")?;
    writeln!(out, "  set aside  {set_aside:>14}  in frames that could not be read")?;
    writeln!(out, "  waiting    {waiting:>14}  not here yet")?;
    if let Some(reported) = account.reported_waiting {
        writeln!(out, "             {reported:>14}  of these in the satellite's buffer, as it last said")?;
    }
    if balanced {
        writeln!(out, "balanced: due = stored + explained + set aside + waiting")
    } else {
        writeln!(out, "NOT BALANCED: what is stored does not add up to what the frames said; see --json, by epoch")
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::id::{Epoch, LeaseId, SatelliteId};

    use super::*;
    use crate::ingest::watermark::Span;

    fn satellite(progress: Option<Progress>) -> SatelliteRow {
        SatelliteRow {
            id: SatelliteId::from_bits([1; 10]),
            name: "attic".into(),
            lease: LeaseId::from_bits([1; 10]),
            token_sha256: None,
            created_at_ms: 0,
            enrolled_at_ms: None,
            revoked_at_ms: None,
            config_version: 0,
            generation: 0,
            recoveries: 0,
            last_seen_ms: Some(5),
            hostname: None,
            agent_version: None,
            address: None,
            progress,
            config_status: None,
            config_status_at_ms: None,
        }
    }

    fn stream(epoch: u128, last: u64, stored: u64, explained: u64) -> StreamRow {
        let mut tally = Tally { stored, explained, ..Tally::default() };
        tally.cover(Span { first: 1, last, due_before: 0, due_through: last });
        StreamRow { epoch: Epoch(epoch), tally, updated_at_ms: 7 }
    }

    fn progress(epoch: u128, due: u64) -> Progress {
        let epoch = Epoch(epoch);
        Progress { clock_ms: 0, epoch, last_seq: due, due, waiting: 4, buffer_bytes: 0, polls: 0 }
    }

    #[test]
    fn due_is_stored_and_explained_and_set_aside_and_waiting() {
        let streams = [stream(1, 10, 8, 2), stream(2, 20, 20, 0)];
        let account = Account::of(&satellite(Some(progress(2, 25))), &streams);
        let Counts { due, stored, explained, set_aside, waiting, balanced } = account.total;
        assert_eq!((due, stored, explained, set_aside, waiting, balanced), (35, 28, 2, 0, 5, true));
        assert_eq!(account.reported_waiting, Some(4));
        let json = serde_json::to_value(&account).unwrap();
        for name in ["due", "stored", "explained", "set_aside", "waiting"] {
            assert!(json[name].is_u64() && json["epochs"][0][name].is_u64(), "{name}");
        }
    }

    #[test]
    fn an_epoch_of_which_nothing_has_come_is_waiting_too() {
        let account = Account::of(&satellite(Some(progress(9, 25))), &[]);
        assert_eq!((account.total.due, account.total.waiting, account.epochs.len()), (25, 25, 1));
        let nothing = Account::of(&satellite(None), &[]);
        assert_eq!(nothing.total, Counts { balanced: true, ..Counts::default() });
    }

    #[test]
    fn one_epoch_that_does_not_add_up_makes_the_account_unbalanced() {
        let account = Account::of(&satellite(None), &[stream(1, 10, 8, 1), stream(2, 20, 20, 0)]);
        assert!(!account.total.balanced);
        let mut text = Vec::new();
        write_text(&mut text, &account).unwrap();
        assert!(String::from_utf8(text).unwrap().contains("NOT BALANCED"));
    }
}
