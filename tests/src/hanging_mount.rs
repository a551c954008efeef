//! A mount that never answers, as that of a file server that is away: a file system of FUSE whose program does nothing.
//!
//! Needs root and `/dev/fuse`. Whatever asks it hangs until its owner lets it go.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::Process;
use crate::{mount, wait};

const SOON: Duration = Duration::from_secs(30);

/// Whether this machine lets one be made.
#[must_use]
pub fn works() -> bool {
    let Ok(dir) = tempfile::tempdir() else { return false };
    HangingMount::new(dir.path()).is_ok()
}

/// The mount.
#[derive(Debug)]
pub struct HangingMount {
    /// Where.
    pub point: PathBuf,
    holder: Process,
}

impl HangingMount {
    /// Mounts it below `dir`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(dir: &Path) -> Result<Self> {
        let point = dir.join("nas");
        std::fs::create_dir(&point)?;
        // The device is the connection: who holds it open and never reads it leaves every question without an answer.
        let script = "exec 3<>/dev/fuse && \
            mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0,allow_other satellite \"$0\" && exec sleep 3600";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&point);
        let mut holder = Process::start("a mount", &mut command, &dir.join("mount.log"))?;
        wait::until_true("the mount", SOON, || {
            holder.check_running()?;
            mount::is_there(&point, "fuse")
        })?;
        Ok(Self { point, holder })
    }

    /// Whoever waits for it is told that it is gone; what is mounted there stays, broken.
    ///
    /// # Errors
    /// When its program does not end.
    pub fn abort(&mut self) -> Result<()> {
        self.holder.kill()
    }
}

impl Drop for HangingMount {
    fn drop(&mut self) {
        drop(self.holder.kill());
        mount::detach(&self.point);
    }
}
