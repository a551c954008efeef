//! Getting the store, and getting it back: from a full disk, after an error, out of a damaged directory.
//!
//! A new start begins an opening; a store that was lost while the program ran is made to say what was last
//! acknowledged, so that the epoch goes on.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use super::super::ballast::{Ballast, Room};
use super::super::block_store::{self, BlockStore, Changes, StoreError};
use super::super::directory::{self, Directory, DirectoryError};
use super::super::mark::Mark;
use super::super::stock::{Found, Stock, Values as _};
use super::super::{Health, OpenError, ReadError, salvage};
use super::{COPIED_PER_BATCH, EMPTY_FILE_BYTES_MAX, Keeper, RETRY_MS, Refusal};

impl Keeper {
    /// The store is there, or was asked for again if it was time.
    pub(super) fn ensure(&mut self) -> Result<(), String> {
        if self.store.is_some() {
            return Ok(());
        }
        let why = match &self.health {
            Health::Degraded { why, .. } => why.clone(),
            Health::Healthy => "the store is not open".into(),
        };
        if self.clock.now().mono_ms.saturating_sub(self.tried_mono_ms) < RETRY_MS {
            return Err(why);
        }
        self.try_again()
    }

    fn try_again(&mut self) -> Result<(), String> {
        self.tried_mono_ms = self.clock.now().mono_ms;
        let why = match self.establish() {
            Ok(()) => {
                tracing::info!(dir = %self.settings.dir.display(), "the buffer's store is open again");
                self.publish();
                self.write_mark();
                return Ok(());
            }
            Err(Refusal::Final(error)) => error.to_string(),
            Err(Refusal::Later(why)) => why,
        };
        self.degrade(why.clone());
        self.publish();
        Err(why)
    }

    pub(super) fn read_failed(&mut self, error: StoreError) -> ReadError {
        let why = error.to_string();
        self.fail(error);
        ReadError::Degraded { why }
    }

    /// After an error nothing that sled holds in memory counts: the store is opened anew.
    pub(super) fn fail(&mut self, error: StoreError) {
        tracing::error!(%error, "the buffer's store failed: opening it again");
        self.suspect |= matches!(error, StoreError::Unflushed(_));
        self.degrade(error.to_string());
        if let Some(store) = self.store.take() {
            store.discard();
        }
        if let Err(why) = self.try_again() {
            tracing::warn!(why, "the buffer's store can't be opened now; tried again every 30 s");
        }
    }

    pub(super) fn establish(&mut self) -> Result<(), Refusal> {
        if self.directory.is_none() {
            let claimed = Directory::claim(&self.settings.dir).map_err(|error| self.refusal(error))?;
            self.directory = Some(claimed);
        }
        let mark = self.mark.clone().or_else(|| Mark::read(&self.settings.dir)).unwrap_or_default();
        let (mut store, mut found) = self.obtain(&mark).map_err(|error| self.refusal(error.into()))?;
        if self.suspect {
            (store, found) = self.write_anew(store).map_err(|error| Refusal::Later(error.to_string()))?;
            self.suspect = false;
        }
        if let Err(error) = self.stock.settle(&mut store, found, mark.opening) {
            store.discard();
            return Err(Refusal::Later(error.to_string()));
        }
        self.store = Some(store);
        self.opened += 1;
        if let Ok(room) = Room::at(&self.settings.dir) {
            let floor = room.floor(self.settings.free_min_bytes, self.settings.free_min_percent);
            Ballast::of(&self.settings.dir).make(room, floor);
        }
        Ok(())
    }

    fn refusal(&self, error: DirectoryError) -> Refusal {
        let dir = self.settings.dir.clone();
        match error {
            DirectoryError::Newer(found) => Refusal::Final(OpenError::Newer { dir, found, known: directory::FORMAT }),
            DirectoryError::Locked | DirectoryError::Store(StoreError::Locked) => {
                Refusal::Final(OpenError::Locked { dir })
            }
            DirectoryError::Store(StoreError::Io(source))
                if matches!(
                    source.kind(),
                    ErrorKind::PermissionDenied | ErrorKind::NotADirectory | ErrorKind::AlreadyExists
                ) =>
            {
                Refusal::Final(OpenError::Unusable { dir, source })
            }
            DirectoryError::Store(error) => Refusal::Later(error.to_string()),
        }
    }

    /// The store, read once; on a full disk with the ballast's help, after damage what could be salvaged.
    fn obtain(&self, mark: &Mark) -> Result<(BlockStore, Found), StoreError> {
        let dir = &self.settings.dir;
        let image = salvage::image(&dir.join("db")).unwrap_or_default();
        let mut opened = open_and_load(dir);
        if matches!(opened, Err(StoreError::Full(_))) && Ballast::of(dir).drop_it() {
            tracing::warn!(dir = %dir.display(), "the disk is full: the ballast was thrown off to open the buffer");
            opened = open_and_load(dir);
        }
        let why = match opened {
            Ok((store, found)) => {
                if !found.is_behind(mark) {
                    return Ok((store, found));
                }
                store.discard();
                "it ends before what it had committed".into()
            }
            Err(StoreError::Damaged(why)) => why,
            Err(error) => return Err(error),
        };
        tracing::error!(dir = %dir.display(), why, "the buffer is damaged: what is whole in it is salvaged");
        let mut salvaged = self.salvage(mark, image.as_ref());
        if matches!(salvaged, Err(StoreError::Full(_))) && Ballast::of(dir).drop_it() {
            salvaged = self.salvage(mark, image.as_ref());
        }
        if salvaged.is_err()
            && let Some(directory) = &self.directory
        {
            directory.unstage();
        }
        salvaged
    }

    fn salvage(&self, mark: &Mark, image: Option<&File>) -> Result<(BlockStore, Found), StoreError> {
        let directory = self.directory.as_ref().expect("claimed before anything is opened");
        let opened = match image {
            Some(image) => image.try_clone(),
            None => File::open(directory.path().join("db")),
        };
        let file = match opened {
            Err(error) if error.kind() == ErrorKind::NotFound => File::open("/dev/null")?,
            opened => opened?,
        };
        let finds = salvage::scan(&file)?;
        let mut rescue = salvage::plan(&finds, mark, self.stock.book.head.loss_next, self.clock.now().wall_ms);
        let staged = BlockStore::open(&directory.stage()?)?;
        let written = salvage::write(&mut rescue, &file, &staged);
        staged.discard();
        written?;
        Ballast::of(directory.path()).drop_it();
        let aside = directory.set_aside(self.clock.now().wall_ms)?;
        tracing::warn!(
            blocks = rescue.blocks(),
            losses = rescue.losses(),
            aside = %aside.display(),
            "the damaged buffer was set aside; its whole blocks will be sent, the rest is explained"
        );
        self.limit(&aside);
        open_and_load(directory.path())
    }

    /// A directory set aside must not cost the room that the buffer needs.
    fn limit(&self, aside: &Path) {
        let bytes = std::fs::metadata(aside.join("db")).map_or(0, |meta| meta.len());
        let short = Room::at(aside)
            .is_ok_and(|room| room.free < room.floor(self.settings.free_min_bytes, self.settings.free_min_percent));
        if short || bytes > self.settings.bytes_max.saturating_mul(2).max(EMPTY_FILE_BYTES_MAX) {
            tracing::warn!(aside = %aside.display(), "removed, since the disk is short of room");
            if let Err(error) = directory::remove_dir_if_there(aside) {
                tracing::warn!(%error, "the damaged buffer could not be removed");
            }
        }
    }

    /// The same store in new files. After a flush that failed the kernel shows what it could not write as if it were on the
    /// disk, and never writes it again: what is flushed after it would end at a hole after a power cut.
    fn write_anew(&self, store: BlockStore) -> Result<(BlockStore, Found), StoreError> {
        let Some(directory) = &self.directory else { return Err(StoreError::Locked) };
        let written = directory.stage().map_err(StoreError::from).and_then(|stage| {
            let new = BlockStore::open(&stage)?;
            let copied = copy_all(&store, &new);
            new.discard();
            copied
        });
        store.discard();
        let replaced = written.and_then(|()| Ok(directory.replace()?));
        if replaced.is_err() {
            directory.unstage();
        }
        replaced?;
        tracing::warn!(dir = %self.settings.dir.display(), "the buffer was written anew, since a flush of it had failed");
        open_and_load(directory.path())
    }

    /// Begins a new directory in place of a long and empty one.
    pub(super) fn recreate(&mut self) {
        let before = self.store.as_ref().map_or(0, BlockStore::file_bytes);
        match self.build_replacement() {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "the empty buffer's file could not be replaced by a shorter one");
                self.may_recreate = false;
                if let Some(directory) = &self.directory {
                    directory.unstage();
                }
                return;
            }
        }
        if let Some(store) = self.store.take() {
            store.discard();
        }
        let replaced = self.directory.as_ref().map_or(Ok(()), Directory::replace);
        match replaced.map_err(StoreError::from).and_then(|()| BlockStore::open(&self.settings.dir)) {
            Ok(store) => {
                tracing::info!(file_bytes = before, "the empty buffer's file was replaced by a shorter one");
                self.store = Some(store);
                self.stock.unflushed = 0;
                self.publish();
                self.write_mark();
            }
            Err(error) => self.fail(error),
        }
    }

    fn build_replacement(&self) -> Result<(), StoreError> {
        let (Some(directory), Some(store)) = (&self.directory, &self.store) else { return Ok(()) };
        let new = BlockStore::open(&directory.stage()?)?;
        let filled = self.fill(store, &new);
        new.discard();
        filled
    }

    fn fill(&self, store: &BlockStore, new: &BlockStore) -> Result<(), StoreError> {
        let mut changes = Changes::default();
        for item in store.scan(b"s".to_vec(), b"t".to_vec()) {
            let (key, frame) = item?;
            changes.put(key.to_vec(), frame.to_vec());
            if changes.count() >= COPIED_PER_BATCH {
                new.apply(std::mem::take(&mut changes))?;
            }
        }
        self.stock.book.clone().put_all_small(&mut changes);
        block_store::put_spacers(new, &mut changes)?;
        new.apply(changes)?;
        new.flush()
    }
}

fn copy_all(store: &BlockStore, new: &BlockStore) -> Result<(), StoreError> {
    let mut changes = Changes::default();
    for item in store.all() {
        let (key, value) = item?;
        changes.put(key.to_vec(), value.to_vec());
        if changes.count() >= COPIED_PER_BATCH {
            new.apply(std::mem::take(&mut changes))?;
            new.flush()?;
        }
    }
    new.apply(changes)?;
    new.flush()
}

fn open_and_load(dir: &Path) -> Result<(BlockStore, Found), StoreError> {
    let store = BlockStore::open(dir)?;
    match Stock::find(&store) {
        Ok(found) => Ok((store, found)),
        Err(error) => {
            store.discard();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use satellite_shared::gap::Reason;
    use satellite_shared::ranges::Ranges;
    use satellite_shared::wire::block;

    use super::super::super::tests::{Writer, clock, settings};
    use super::super::super::{Commit, CommitError, Place, StoredBlock};
    use super::*;

    fn open(root: &Path, bytes_max: u64) -> (Keeper, Writer) {
        let clock = clock();
        let (keeper, opened, _) = Keeper::open(settings(root, bytes_max), clock.clone()).unwrap();
        (keeper, Writer::new(opened.epoch, clock))
    }

    fn blocks(blocks: Vec<Vec<u8>>) -> Commit {
        Commit { blocks, ..Commit::default() }
    }

    fn all(keeper: &mut Keeper) -> Vec<StoredBlock> {
        keeper.on_read(Place::default(), Place { opening: u32::MAX, seq: 0 }, usize::MAX).unwrap()
    }

    fn fail(keeper: &mut Keeper) {
        keeper.fail(StoreError::Io(std::io::Error::other("the disk said no")));
    }

    #[test]
    fn a_store_that_failed_is_opened_again_and_the_epoch_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let (mut keeper, mut writer) = open(root.path(), 1 << 20);
        let frames = [writer.samples(5), writer.samples(6)];
        keeper.on_commit(&Commit { notes: b"first".to_vec(), ..blocks(frames.to_vec()) }).unwrap();
        fail(&mut keeper);
        let health = keeper.state.borrow().health.clone();
        assert!(matches!(health, Health::Degraded { .. }), "until a commit went well");
        assert_eq!(all(&mut keeper).len(), 2);
        keeper.on_commit(&blocks(vec![writer.samples(7)])).unwrap();
        assert_eq!(keeper.state.borrow().health, Health::Healthy);
        assert_eq!(keeper.state.borrow().last_seq, 18);
        assert_eq!(keeper.stock.book.notes().unwrap(), b"first");
        keeper.finish();
        let (mut keeper, _) = open(root.path(), 1 << 20);
        assert_eq!(all(&mut keeper).len(), 3);
        assert!(keeper.stock.book.losses.is_empty());
    }

    #[test]
    fn a_store_that_could_not_be_flushed_is_written_anew() {
        use std::os::unix::fs::MetadataExt as _;

        let root = tempfile::tempdir().unwrap();
        let (mut keeper, mut writer) = open(root.path(), 1 << 20);
        let series = vec![writer.descriptors(3)];
        let commit = Commit { series, notes: b"first".to_vec(), ..blocks(vec![writer.samples(5), writer.samples(6)]) };
        keeper.on_commit(&commit).unwrap();
        let db = root.path().join("buffer/db");
        let before = db.metadata().unwrap().ino();
        fail(&mut keeper);
        assert_eq!(db.metadata().unwrap().ino(), before, "another failure says nothing about the file");

        // Held open, so that its number is not given to the new one.
        let held = File::open(&db).unwrap();
        keeper.fail(StoreError::Unflushed("the disk said no".into()));
        assert_ne!(db.metadata().unwrap().ino(), held.metadata().unwrap().ino());
        assert!(!keeper.suspect);
        assert_eq!(all(&mut keeper).len(), 2);
        assert_eq!(keeper.on_series(1).unwrap().len(), 1);
        assert_eq!(keeper.stock.book.notes().unwrap(), b"first");
        keeper.on_commit(&blocks(vec![writer.samples(7)])).unwrap();
        keeper.finish();
        let (mut keeper, _) = open(root.path(), 1 << 20);
        assert_eq!(all(&mut keeper).len(), 3);
        assert!(keeper.stock.book.losses.is_empty());
    }

    #[test]
    fn a_commit_that_failed_never_happened_though_it_reached_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let (mut keeper, mut writer) = open(root.path(), 3_000);
        let series = vec![writer.descriptors(3)];
        let first = Commit { series, notes: b"first".to_vec(), ..blocks(vec![writer.samples(200)]) };
        keeper.on_commit(&first).unwrap();
        let acked = keeper.stock.book.clone();
        let (seq, due) = (writer.seq, writer.due);
        // It evicts the first block, and adds a block and a series.
        let series = vec![writer.descriptors(2)];
        let second = Commit { series, notes: b"second".to_vec(), ..blocks(vec![writer.samples(210)]) };
        let losses = keeper.on_commit(&second).unwrap().losses;
        assert_eq!(losses.len(), 1);
        // As if its flush had failed after all.
        keeper.stock.book = acked;
        fail(&mut keeper);

        assert!(all(&mut keeper).is_empty(), "the first was evicted, the second never happened");
        assert_eq!(keeper.stock.book.head.last_seq, seq);
        assert_eq!(keeper.stock.book.notes().unwrap(), b"first");
        assert_eq!(keeper.on_series(1).unwrap().len(), 1);
        (writer.seq, writer.due, writer.series) = (seq, due, 3);
        let other = Commit { series: vec![writer.descriptors(4)], ..blocks(vec![writer.samples(50)]) };
        assert_eq!(keeper.on_commit(&other).unwrap().losses, losses, "what was evicted is still to be explained");
        assert_eq!(all(&mut keeper).len(), 1);
        let explained = Commit { losses_explained: 1, ..blocks(vec![writer.samples(1)]) };
        keeper.on_commit(&explained).unwrap();
        let acked = keeper.stock.book.clone();
        keeper.finish();
        let (keeper, _) = open(root.path(), 3_000);
        assert_eq!(keeper.stock.book.losses, acked.losses);
    }

    #[test]
    fn a_loss_that_a_failed_commit_explained_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let (mut keeper, mut writer) = open(root.path(), 3_000);
        keeper.on_commit(&blocks(vec![writer.samples(200)])).unwrap();
        let losses = keeper.on_commit(&blocks(vec![writer.samples(200)])).unwrap().losses;
        let acked = keeper.stock.book.clone();
        let (seq, due) = (writer.seq, writer.due);
        keeper.on_commit(&Commit { losses_explained: 1, ..blocks(vec![writer.samples(1)]) }).unwrap();
        keeper.stock.book = acked;
        fail(&mut keeper);
        (writer.seq, writer.due) = (seq, due);
        assert_eq!(keeper.on_commit(&blocks(vec![writer.samples(1)])).unwrap().losses, losses);
    }

    #[test]
    fn damage_while_it_runs_is_salvaged_and_the_epoch_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let (mut keeper, mut writer) = open(root.path(), 1 << 20);
        keeper.on_commit(&Commit { series: vec![writer.descriptors(9)], ..blocks(vec![writer.samples(9)]) }).unwrap();
        for _ in 0..30 {
            keeper.on_commit(&blocks(vec![writer.samples(100)])).unwrap();
        }
        let db = std::fs::OpenOptions::new().write(true).open(root.path().join("buffer/db")).unwrap();
        let len = db.metadata().unwrap().len();
        db.write_all_at(&[0; 4096], (len / 2) & !4095).unwrap();
        fail(&mut keeper);

        let mut covered = Ranges::default();
        for block in all(&mut keeper) {
            let header = block::header(&block.frame).unwrap();
            covered.insert(header.first_seq, header.last_seq());
        }
        for loss in keeper.stock.book.losses.values() {
            assert_eq!(loss.reason, Reason::Corrupt);
            covered.insert(loss.lost.first_seq, loss.lost.last_seq);
        }
        assert_eq!(covered.as_slice(), [(1, writer.seq)]);
        assert_eq!(keeper.on_series(1).unwrap().len(), 1);
        keeper.on_commit(&blocks(vec![writer.samples(3)])).unwrap();
        assert_eq!(keeper.state.borrow().last_seq, writer.seq);
    }

    #[test]
    fn an_epoch_whose_series_are_gone_asks_for_a_new_start() {
        let root = tempfile::tempdir().unwrap();
        let (mut keeper, mut writer) = open(root.path(), 1 << 20);
        let seq = 9;
        keeper.on_commit(&Commit { series: vec![writer.descriptors(9)], ..blocks(vec![writer.samples(9)]) }).unwrap();
        // At its end sled may write what it has put in order while it was read.
        keeper.store.take().unwrap().discard();
        let db = std::fs::OpenOptions::new().write(true).open(root.path().join("buffer/db")).unwrap();
        db.write_all_at(&vec![0; usize::try_from(db.metadata().unwrap().len()).unwrap()], 0).unwrap();
        fail(&mut keeper);
        assert!(matches!(keeper.on_commit(&blocks(vec![writer.samples(1)])), Err(CommitError::Damaged { .. })));
        keeper.finish();
        let (mut keeper, mut writer) = open(root.path(), 1 << 20);
        let lost: Vec<_> =
            keeper.stock.book.losses.values().map(|loss| (loss.lost.first_seq, loss.lost.last_seq)).collect();
        assert_eq!(lost, [(1, seq)]);
        keeper.on_commit(&blocks(vec![writer.samples(1)])).unwrap();
    }

    #[test]
    fn a_store_that_can_not_be_had_is_asked_for_every_30_seconds() {
        let root = tempfile::tempdir().unwrap();
        let clock = clock();
        let (mut keeper, opened, _) = Keeper::open(settings(root.path(), 1 << 20), clock.clone()).unwrap();
        let mut writer = Writer::new(opened.epoch, clock.clone());
        keeper.on_commit(&blocks(vec![writer.samples(2)])).unwrap();
        // Somebody else takes the store, sled's own lock, for a while.
        let store = keeper.store.take().unwrap();
        keeper.degrade("the disk said no".into());
        keeper.tried_mono_ms = keeper.clock.now().mono_ms;
        let frame = writer.samples(2);
        clock.advance(RETRY_MS - 1);
        assert!(matches!(keeper.on_commit(&blocks(vec![frame.clone()])), Err(CommitError::Degraded { .. })));
        store.discard();
        clock.advance(1);
        keeper.on_commit(&blocks(vec![frame])).unwrap();
        assert_eq!(all(&mut keeper).len(), 2);
    }
}
