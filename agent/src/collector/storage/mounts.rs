//! One visit of a mount at a time, whichever device asks: a mount that hangs holds one thread, and not one for each device
//! that looks at it.
//!
//! Who has the turn takes it along to the thread that may hang; it ends when that comes back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// The turn at a mount, until dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

/// All mounts that are being looked at.
#[derive(Debug, Default)]
pub struct Mounts(Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>);

impl Mounts {
    /// Waits until nobody else looks at this mount.
    pub(super) async fn turn(&self, mount: &Path) -> Turn {
        self.at(mount).lock_owned().await
    }

    fn at(&self, mount: &Path) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = known.get(mount).and_then(Weak::upgrade) {
            return turns;
        }
        known.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(tokio::sync::Mutex::new(()));
        known.insert(mount.to_owned(), Arc::downgrade(&turns));
        turns
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_mount_is_visited_by_one_at_a_time_and_forgotten_when_nobody_is_there() {
        let mounts = Mounts::default();
        let held = mounts.turn(Path::new("/mnt/nas")).await;
        let waiting = || tokio::time::timeout(Duration::from_secs(1), mounts.turn(Path::new("/mnt/nas")));
        assert!(waiting().await.is_err(), "another is there");
        drop(mounts.turn(Path::new("/mnt/usb")).await);
        drop(held);
        assert!(waiting().await.is_ok());
        drop(mounts.turn(Path::new("/srv")).await);
        assert_eq!(mounts.0.lock().unwrap().len(), 1, "only the last that was asked for");
    }
}
