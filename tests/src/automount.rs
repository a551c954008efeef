//! An automount whose file server can be away: the kernel's autofs, with a daemon of the test's own in systemd's place.
//!
//! What looks at it waits until the daemon has mounted something there, or has said that it can't. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::Process;
use crate::{mount, wait};

/// Mounts a tmpfs at `argv[1]` for who asks, as long as there is a file `argv[2]`. The kernel's `auto_fs.h` has the numbers.
const DAEMON: &str = r#"
import ctypes, fcntl, os, struct, sys
READY, FAIL = 0x9360, 0x9361
PACKET = struct.Struct("=iiIIQIIIII256s4x")
point, switch = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def mount(kind, options):
    if libc.mount(b"satellite", point.encode(), kind, 0, options.encode()) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.setpgid(0, 0)
read, write = os.pipe()
mount(b"autofs", f"fd={write},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct")
os.close(write)
root = os.open(point, os.O_RDONLY)
while packet := os.read(read, PACKET.size):
    token, is_there = PACKET.unpack(packet)[2], os.path.exists(switch)
    if is_there:
        mount(b"tmpfs", "size=64k")
    fcntl.ioctl(root, READY if is_there else FAIL, token)
"#;
const SOON: Duration = Duration::from_secs(30);

/// Whether this machine lets one be made.
#[must_use]
pub fn works() -> bool {
    let Ok(dir) = tempfile::tempdir() else { return false };
    Automount::new(dir.path()).is_ok()
}

/// The automount.
#[derive(Debug)]
pub struct Automount {
    /// Where.
    pub point: PathBuf,
    server: PathBuf,
    daemon: Process,
}

impl Automount {
    /// Sets it up below `dir`, with its server away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(dir: &Path) -> Result<Self> {
        let (point, server) = (dir.join("automount"), dir.join("server"));
        std::fs::create_dir(&point)?;
        let mut command = Command::new("python3");
        command.args(["-c", DAEMON]).arg(&point).arg(&server);
        let mut daemon = Process::start("an automount", &mut command, &dir.join("automount.log"))?;
        wait::until_true("the automount", SOON, || {
            daemon.check_running()?;
            mount::is_there(&point, "autofs")
        })?;
        Ok(Self { point, server, daemon })
    }

    /// From now on there is something to mount.
    ///
    /// # Errors
    /// When the file that says so can't be written.
    pub fn bring_server_back(&self) -> Result<()> {
        Ok(std::fs::write(&self.server, "")?)
    }

    /// Whether something is mounted there.
    ///
    /// # Errors
    /// When the kernel's list of mounts can't be read.
    pub fn is_mounted(&self) -> Result<bool> {
        mount::is_there(&self.point, "tmpfs")
    }
}

impl Drop for Automount {
    fn drop(&mut self) {
        drop(self.daemon.kill());
        // What it mounted, and itself.
        for _ in 0..2 {
            mount::detach(&self.point);
        }
    }
}
