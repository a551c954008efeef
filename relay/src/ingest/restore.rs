//! A registry that was copied back from a backup: noticed, and told what the archive knows better.
//!
//! Beside the records the archive keeps, per relay, the name of the batch that was begun last and who was revoked. A
//! registry that knows neither is older than the archive. Then:
//!
//! - batches that it does not know are taken back into its accounts, so that nothing of them is stored twice;
//! - what was put of a batch that is not whole is set aside: nobody was told that it is stored, so it comes again;
//! - revocations that it does not know are made again, and leases that nobody has used end, since they may have been
//!   used or revoked meanwhile.
//!
//! What was acknowledged and is in neither, because the archive went back too, only the satellites can tell: they
//! are asked by what [`Ingest::stored`](super::Ingest::stored) says of their epochs, and explain what is gone.
//! An archive, or a prefix of a bucket, belongs to one relay.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use satellite_shared::id::SatelliteId;
use serde::{Deserialize, Serialize};

use crate::ingest::Parts;
use crate::ingest::commit::persist;
use crate::ingest::recovery::forever;
use crate::ingest::watermark::Watermark;
use crate::registry::batches::{Content, Holding, ObjectSize};
use crate::registry::{Intent, Registry, RegistryError};
use crate::sink::archive::layout::{Table, batch_of};
use crate::sink::archive::manifest::{Manifest, Unreadable, footer_bytes};
use crate::sink::archive::store::Entry;
use crate::sink::archive::{Store, StoreError};

/// The folder in the archive for what is not records.
const FOLDER: &str = "relays";
/// Where objects go of batches that were never whole.
const ASIDE: &str = "set-aside";
/// Most footers are shorter; a longer one is fetched again.
const TAIL_BYTES: u64 = 64 << 10;

/// The batch that was begun last.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Latest {
    batch: String,
}

/// What was found of one batch.
#[derive(Debug, Default)]
struct Found {
    first: Option<Entry>,
    objects: Vec<Entry>,
}

fn latest_key(relay: &str) -> String {
    format!("{FOLDER}/{relay}/latest")
}

fn revoked_folder(relay: &str) -> String {
    format!("{FOLDER}/{relay}/revoked")
}

/// Tells the archive which batch is about to be put; returns when it knows.
pub(super) async fn announce(parts: &Parts, batch: &str) {
    let latest = serde_json::to_vec(&Latest { batch: batch.to_owned() }).expect("plain values always serialise");
    let latest = Bytes::from(latest);
    let put = || async { parts.store.put(&latest_key(&parts.relay), latest.clone()).await.map_err(passing) };
    forever("tell the archive of a batch", put).await;
}

/// Notes in the archive that a satellite was revoked, where a backup of the registry can't undo it.
///
/// # Errors
/// What the store said.
pub async fn note_revoked(store: &Store, relay: &str, satellite: &SatelliteId) -> Result<(), StoreError> {
    store.put(&format!("{}/{satellite}", revoked_folder(relay)), Bytes::from_static(b"revoked\n")).await
}

/// Brings a registry up to date that is older than the archive; does nothing where it is not. Takes as long as
/// storage and registry need.
pub(super) async fn resolve(parts: &Parts) {
    let Parts { relay, registry, .. } = parts;
    let known = asked("ask for the known batches", || registry.batches()).await;
    let latest = fetched(parts, &latest_key(relay)).await;
    let latest: Latest = latest.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let forgotten = forgotten_revocations(parts).await;
    let is_behind = !latest.batch.is_empty() && !known.contains(&latest.batch);
    if !is_behind && forgotten.is_empty() {
        return;
    }
    tracing::warn!(
        latest = latest.batch,
        revocations = forgotten.len(),
        "the registry is older than the archive, as after a backup was copied back: it is brought up to date"
    );
    for satellite in &forgotten {
        asked("revoke a satellite", || registry.revoke_satellite(satellite, parts.clock.now().wall_ms)).await;
        tracing::warn!(%satellite, "revoked again, as it was after the backup");
    }
    let leases = asked("end the leases", || registry.note_restored(parts.clock.now().wall_ms)).await;
    if is_behind {
        take_back(parts, &known).await;
        // Else the next start would find the same again.
        announce(parts, "").await;
    }
    tracing::warn!(
        leases,
        "the registry is up to date: unused leases have ended, so make new ones; satellites that enrolled after the \
         backup need one too. What else was changed since (names, configurations) must be done again"
    );
}

/// The satellites that the archive knows to be revoked and the registry does not.
async fn forgotten_revocations(parts: &Parts) -> Vec<SatelliteId> {
    let folder = revoked_folder(&parts.relay);
    let noted = forever("ask for revocations", || async { parts.store.list(&folder).await.map_err(passing) }).await;
    let revoked = asked("ask for revocations", || parts.registry.revoked()).await;
    let mut forgotten = Vec::new();
    for entry in noted {
        let Some(satellite) = entry.key.rsplit('/').next().and_then(|name| name.parse().ok()) else { continue };
        let row = asked("ask for a satellite", || parts.registry.satellite(&satellite)).await;
        // One that enrolled after the backup is unknown, which is as good as revoked.
        if !revoked.contains(&satellite) && row.is_some() {
            forgotten.push(satellite);
        }
    }
    forgotten
}

/// Takes the batches that the registry does not know into its accounts, in the order in which they were begun.
async fn take_back(parts: &Parts, known: &BTreeSet<String>) {
    // Older ones are done, and forgotten by the registry after a week.
    let floor = known.first().cloned().unwrap_or_default();
    let mut before = BTreeMap::new();
    let (mut batches, mut samples) = (0, 0);
    for (id, found) in unknown(parts, known, &floor).await {
        let manifest = match &found.first {
            Some(first) => manifest(parts, first).await,
            None => Err(Unreadable::Missing),
        };
        match manifest {
            Ok(manifest) if manifest.relay != parts.relay => {}
            Ok(manifest) => {
                let holds = manifest.holdings();
                if !are_counted(&parts.registry, &holds, &mut before).await {
                    batches += 1;
                    samples += holds.iter().map(|holding| holding.tally.stored).sum::<u64>();
                    count(parts, id, &found, holds).await;
                }
            }
            Err(why) => set_aside(parts, &id, &found, &why).await,
        }
    }
    tracing::warn!(batches, samples, "batches that were stored after the backup are in the accounts again");
}

/// The objects of batches that the registry does not know.
async fn unknown(parts: &Parts, known: &BTreeSet<String>, floor: &str) -> BTreeMap<String, Found> {
    let mut batches: BTreeMap<String, Found> = BTreeMap::new();
    for table in [Table::Samples, Table::Gaps] {
        let folders = || async { parts.store.folders(table.folder()).await.map_err(passing) };
        for day in forever("list the archive", folders).await {
            let entries = forever("list the archive", || async { parts.store.list(&day).await.map_err(passing) }).await;
            for entry in entries {
                let Some((batch, n)) = batch_of(&entry.key) else { continue };
                if batch < floor || known.contains(batch) {
                    continue;
                }
                let found = batches.entry(batch.to_owned()).or_default();
                if n == 0 {
                    found.first = Some(entry.clone());
                }
                found.objects.push(entry);
            }
        }
    }
    batches
}

async fn manifest(parts: &Parts, first: &Entry) -> Result<Manifest, Unreadable> {
    let fetch = |bytes_max| {
        forever(
            "read what a batch holds",
            move || async move { parts.store.tail(first, bytes_max).await.map_err(passing) },
        )
    };
    let tail = fetch(TAIL_BYTES).await;
    let footer = footer_bytes(&tail) as u64;
    if footer > tail.len() as u64 && footer <= first.bytes {
        return Manifest::read(&fetch(footer).await);
    }
    Manifest::read(&tail)
}

/// Whether the accounts had all of it before: it is older than what the registry remembers of batches.
async fn are_counted(
    registry: &Registry,
    holds: &[Holding],
    before: &mut BTreeMap<(SatelliteId, u128), Watermark>,
) -> bool {
    for Holding { satellite, epoch, tally } in holds {
        let key = (satellite.clone(), epoch.0);
        if !before.contains_key(&key) {
            let row = asked("ask for a stream", || registry.stream(satellite, *epoch)).await;
            before.insert(key.clone(), row.map(|row| row.tally.watermark).unwrap_or_default());
        }
        let watermark = &before[&key];
        let whole = |first, last| watermark.overlap(first, last) == satellite_shared::ranges::Overlap::Whole;
        if !tally.watermark.spans().iter().all(|span| whole(span.first, span.last)) {
            return false;
        }
    }
    true
}

async fn count(parts: &Parts, id: String, found: &Found, holds: Vec<Holding>) {
    let size = |entry: &Entry| ObjectSize { key: entry.key.clone(), bytes: entry.bytes };
    let intent = Intent { id, content: Content { objects: found.objects.iter().map(size).collect(), holds } };
    asked("write a batch down", || parts.registry.intend(&intent, parts.clock.now().wall_ms)).await;
    asked("end a batch", || parts.registry.finish(Some(&intent), &[], parts.clock.now().wall_ms)).await;
}

async fn set_aside(parts: &Parts, id: &str, found: &Found, why: &Unreadable) {
    for Entry { key, .. } in &found.objects {
        forever("set an object aside", || async {
            let bytes = parts.store.get(key).await.map_err(passing)?;
            parts.store.put(&format!("{ASIDE}/{key}"), bytes).await.map_err(passing)?;
            parts.store.delete(key).await.map_err(passing)
        })
        .await;
    }
    let objects = found.objects.len();
    tracing::warn!(batch = id, objects, %why, "a batch that is not whole was moved to `{ASIDE}`: its satellites still have it");
}

/// A small object, where it is there.
async fn fetched(parts: &Parts, key: &str) -> Option<Bytes> {
    forever("ask for the last batch", || async {
        match parts.store.get(key).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err((error, true)),
        }
    })
    .await
}

async fn asked<T, F>(what: &'static str, mut question: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let answer = persist(what, || {
        let answer = question();
        async move { answer.await.map_err(|error| (error, true)) }
    });
    answer.await.unwrap_or_else(|error: RegistryError| unreachable!("{what} is repeated until it succeeds: {error}"))
}

fn passing(error: StoreError) -> (StoreError, bool) {
    (error, true)
}
