//! A small disk of a program's own: a file system on a loop device, that is filled, made read-only, or loses its power.
//!
//! A power cut is a copy of the device as it stands while its users stand still: what the kernel had not yet written is
//! gone. The kernel is told to write late, so that only what somebody made durable is there. Kinder than a disk that
//! loses its write cache, and enough to show a flush that is none. Needs root and loop devices.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// A journal that is written by its own clock is written when somebody asks for it, else hardly ever.
const OPTIONS: &str = "loop,commit=600,errors=remount-ro";
/// How long what was just killed may still hold the file system.
const UNMOUNT_WITHIN: Duration = Duration::from_secs(60);
const STILL_WITHIN: Duration = Duration::from_secs(60);
/// What fills the disk.
const FILLER: &str = "filler";

/// The disk, mounted.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    point: PathBuf,
    mounted: bool,
}

impl Disk {
    /// A new one: an image of so many MiB, its file system mounted at `point`.
    ///
    /// # Errors
    /// With what the tools say: without root, without loop devices.
    pub fn new(image: &Path, point: &Path, mib: u64) -> Result<Self> {
        File::create(image)?.set_len(mib << 20)?;
        // Without blocks reserved for root, who runs this: full is full.
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), "-m".as_ref(), "0".as_ref(), image.as_os_str()])?;
        Self::mount(image, point)
    }

    /// One whose image is there, such as a copy: its journal is replayed as after any cut.
    ///
    /// # Errors
    /// With what the tools say.
    pub fn mount(image: &Path, point: &Path) -> Result<Self> {
        std::fs::create_dir_all(point)?;
        let mut disk = Self { image: image.to_owned(), point: point.to_owned(), mounted: false };
        disk.mount_again()?;
        Ok(disk)
    }

    fn mount_again(&mut self) -> Result<()> {
        run("mount", &["-o".as_ref(), OPTIONS.as_ref(), self.image.as_os_str(), self.point.as_os_str()])?;
        self.mounted = true;
        Ok(())
    }

    /// Where its files are.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Makes this process stand still and copies the device as it stands: a reflink where there are any.
    ///
    /// # Errors
    /// When the process has gone or the copy can't be written.
    pub fn copy_under(&self, process: u32, copy: &Path) -> Result<()> {
        stand_still(process)?;
        let (sparse, reflink) = ("--sparse=always".as_ref(), "--reflink=auto".as_ref());
        run("cp", &[sparse, reflink, self.image.as_os_str(), copy.as_os_str()])
    }

    /// The power is back: this copy takes the disk's place. Nobody may use the disk any more.
    ///
    /// # Errors
    /// When somebody does, or the copy can't be mounted.
    pub fn go_on_with(&mut self, copy: &Path) -> Result<()> {
        self.unmount()?;
        std::fs::rename(copy, &self.image)?;
        self.mount_again()
    }

    fn unmount(&mut self) -> Result<()> {
        wait::until_true("nobody uses the disk", UNMOUNT_WITHIN, || {
            run("umount", &[self.point.as_os_str()]).map(|()| true)
        })?;
        self.mounted = false;
        Ok(())
    }

    /// Takes all room that is left.
    ///
    /// # Errors
    /// When anything but the room ends it.
    pub fn fill(&self) -> Result<()> {
        let mut filler = File::options().create(true).append(true).open(self.point.join(FILLER))?;
        for piece in [1 << 20, 4 << 10, 1] {
            let zeros = vec![0u8; piece];
            loop {
                match filler.write_all(&zeros) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("filling the disk"),
                }
            }
        }
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When it was not filled.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.point.join(FILLER))?)
    }

    /// How many bytes have reached the device since it was made: files, journal and all.
    ///
    /// # Errors
    /// When the kernel doesn't say.
    pub fn bytes_written(&self) -> Result<u64> {
        let file = format!("/sys/block/{}/stat", self.device()?);
        let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        let sectors: u64 = text.split_whitespace().nth(6).with_context(|| file.clone())?.parse()?;
        Ok(sectors * 512)
    }

    fn device(&self) -> Result<String> {
        let device = said("findmnt", &["-n".as_ref(), "-o".as_ref(), "SOURCE".as_ref(), self.point.as_os_str()])?;
        Ok(device.trim().trim_start_matches("/dev/").to_owned())
    }

    /// Makes it read-only under its users, as the kernel does when a file system finds an error on its disk.
    ///
    /// # Errors
    /// When the kernel can't be asked for it.
    pub fn make_read_only(&self) -> Result<()> {
        let device = self.device()?;
        std::fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a disk that fails\n")?;
        let tried = File::create(self.point.join("tried"));
        ensure!(tried.is_err_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem), "it is still writable");
        Ok(())
    }

    /// Freezes it under its users: whoever writes to it waits in the kernel until it thaws.
    ///
    /// # Errors
    /// With what the tools say.
    pub fn freeze(&self) -> Result<Frozen> {
        run("fsfreeze", &["--freeze".as_ref(), self.point.as_os_str()])?;
        Ok(Frozen { point: self.point.clone() })
    }

    /// Repairs it and mounts it again, as a restart of the machine does. Nobody may use the disk any more.
    ///
    /// # Errors
    /// When somebody does, or it can't be repaired.
    pub fn repair(&mut self) -> Result<()> {
        self.unmount()?;
        // It says 1 when it has repaired something.
        let checked = command("e2fsck").args(["-f", "-y"]).arg(&self.image).output().context("e2fsck")?;
        ensure!(matches!(checked.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&checked.stdout));
        self.mount_again()
    }
}

/// A disk that nobody can write to; it thaws when this is dropped.
#[derive(Debug)]
pub struct Frozen {
    point: PathBuf,
}

impl Frozen {
    /// Lets those who wait go on.
    ///
    /// # Errors
    /// With what the tools say.
    pub fn thaw(self) -> Result<()> {
        run("fsfreeze", &["--unfreeze".as_ref(), self.point.as_os_str()])
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Nobody could be killed who waits for it. Where it has thawed before, it says so.
        drop(run("fsfreeze", &["--unfreeze".as_ref(), self.point.as_os_str()]));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // What can't be unmounted now is, lazily, when its last user has gone.
            drop(run("umount", &["--lazy".as_ref(), self.point.as_os_str()]));
        }
    }
}

/// Whether disks can be made here: tried once, small.
#[must_use]
pub fn works() -> bool {
    let tried = tempfile::tempdir().map_err(anyhow::Error::from);
    tried.and_then(|dir| Disk::new(&dir.path().join("image"), &dir.path().join("disk"), 2)).is_ok()
}

/// Stops a process with all its threads, in the middle of whatever it does.
///
/// # Errors
/// When it has gone.
pub fn stand_still(process: u32) -> Result<()> {
    let id = i32::try_from(process).ok().and_then(Pid::from_raw).context("a process id fits")?;
    kill_process(id, Signal::STOP)?;
    wait::until_true("the process stands still", STILL_WITHIN, || {
        let threads = std::fs::read_dir(format!("/proc/{process}/task"))?;
        let mut states = threads.map(|thread| std::fs::read_to_string(thread?.path().join("stat")));
        Ok(states.all(|stat| stat.is_ok_and(|stat| stat.contains(") T ") || stat.contains(") t "))))
    })
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn run(program: &str, arguments: &[&OsStr]) -> Result<()> {
    said(program, arguments).map(drop)
}

fn said(program: &str, arguments: &[&OsStr]) -> Result<String> {
    let output = command(program).args(arguments).output().with_context(|| program.to_owned())?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
