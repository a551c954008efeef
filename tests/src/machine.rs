//! A small Debian with a real systemd in QEMU: what the packages are installed on, and whose power can be cut.
//!
//! The image is made once by `tests/machine/image` and kept in the user's cache under the hash of its recipe; the disk's
//! changes live in memory and end with the test. With KVM where that works, else emulated, which is some twenty times
//! slower: whatever waits here waits long. Deliberately absent: a network. Both programs run inside.

pub mod disk;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use data_encoding::HEXLOWER;

use self::disk::Disk;
use crate::process::{self, Process, Said};
use crate::wait;

/// A boot; emulated on a busy machine it is slow.
const BOOT_WITHIN: Duration = Duration::from_secs(600);
/// One script.
const SCRIPT_WITHIN: Duration = Duration::from_secs(900);
/// What the kernel takes to say its first word, where KVM works.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(10);
const MEMORY_MIB: &str = "1024";
/// What the second drive calls itself: an empty one that speaks NVMe, which smartctl can ask.
pub const SERIAL: &str = "SATELLITE-0001";
const DRIVE_BYTES: u64 = 64 << 20;
/// What a script may say.
const SAID_BYTES_MAX: usize = 256 << 20;

/// The machine.
#[derive(Debug)]
pub struct Machine {
    dir: PathBuf,
    image: PathBuf,
    disk: Disk,
    boots: u32,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    qemu: Process,
    port: BufReader<UnixStream>,
}

impl Machine {
    /// A machine that is off, in a directory of its own. `brought` are files and where they stand in it.
    ///
    /// # Errors
    /// When there is no image and none can be made.
    pub fn new(dir: &Path, brought: &[(&Path, &str)]) -> Result<Self> {
        let image = image()?;
        let stage = dir.join("brought");
        for (file, place) in brought {
            let place = stage.join(place.trim_start_matches('/'));
            std::fs::create_dir_all(place.parent().context("a file has a folder")?)?;
            std::fs::copy(file, &place).with_context(|| file.display().to_string())?;
        }
        let mut tar = Command::new("tar");
        tar.args(["--owner=0", "--group=0", "-cf"]).arg(dir.join("brought.tar")).arg("-C").arg(&stage).arg(".");
        process::run(&mut tar, "")?.success()?;
        std::fs::remove_dir_all(&stage)?;
        File::create(dir.join("drive"))?.set_len(DRIVE_BYTES)?;
        let disk = Disk::of(&image.join("disk.img"))?;
        Ok(Self { dir: dir.to_owned(), image, disk, boots: 0, running: None })
    }

    /// Switches it on and waits until it is up.
    ///
    /// # Errors
    /// With what its console said last.
    pub fn boot(&mut self) -> Result<()> {
        self.boots += 1;
        let place = |name: &str| self.dir.join(format!("{name}{}", self.boots));
        let (disk, port, console) = (place("disk"), place("port"), place("console-").with_extension("log"));
        self.disk.serve(&disk)?;
        let listener = UnixListener::bind(&port)?;
        let mut command = qemu(&self.image, accelerator(&self.image)?);
        command
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-drive")
            .arg(format!(
                "if=none,id=disk,format=raw,file.driver=nbd,file.server.type=unix,file.server.path={}",
                disk.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=disk,logical_block_size=4096,physical_block_size=4096"])
            .arg("-drive")
            .arg(format!("if=none,id=brought,format=raw,readonly=on,file={}", self.dir.join("brought.tar").display()))
            .args(["-device", "virtio-blk-pci,drive=brought", "-device", "virtio-serial-pci"])
            .arg("-drive")
            .arg(format!("if=none,id=drive,format=raw,file={}", self.dir.join("drive").display()))
            .args(["-device", &format!("nvme,drive=drive,serial={SERIAL}")])
            .arg("-chardev")
            .arg(format!("socket,id=test,path={}", port.display()))
            .args(["-device", "virtserialport,chardev=test,name=test"]);
        let mut qemu = Process::start("the machine", &mut command, &self.dir.join("qemu.log"))?;
        listener.set_nonblocking(true)?;
        let stream = wait::until("the machine's port", BOOT_WITHIN, || {
            qemu.check_running()?;
            Ok(listener.accept().ok())
        })?
        .0;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(BOOT_WITHIN))?;
        let mut running = Running { qemu, port: BufReader::new(stream) };
        let mut word = String::new();
        running.port.read_line(&mut word).with_context(|| format!("no boot:\n{}", process::tail(&console, 30)))?;
        if word != "ready\n" {
            bail!("no boot, but {word:?}:\n{}", process::tail(&console, 30));
        }
        running.port.get_ref().set_read_timeout(Some(SCRIPT_WITHIN))?;
        self.running = Some(running);
        Ok(())
    }

    /// Runs a script of bash as root, with `-eu`; what it says on both outputs is its `stdout`.
    ///
    /// # Errors
    /// When the machine is off, or does not answer.
    pub fn run(&mut self, script: &str) -> Result<Said> {
        let running = self.running.as_mut().context("the machine is off")?;
        running.qemu.check_running()?;
        let stream = running.port.get_mut();
        stream.write_all(format!("{}\n{script}", script.len()).as_bytes())?;
        let mut head = String::new();
        running.port.read_line(&mut head).with_context(|| format!("no answer to {script}"))?;
        let (code, length) = head.trim().split_once(' ').with_context(|| format!("{head:?} is no answer"))?;
        let (code, length): (i32, usize) = (code.parse()?, length.parse()?);
        if length > SAID_BYTES_MAX {
            bail!("an answer of {length} bytes to {script}");
        }
        let mut said = vec![0; length];
        running.port.read_exact(&mut said)?;
        Ok(Said { code, stdout: String::from_utf8_lossy(&said).into_owned(), stderr: String::new() })
    }

    /// Runs a script that must succeed.
    ///
    /// # Errors
    /// With all it said, when it did not.
    pub fn must(&mut self, script: &str) -> Result<String> {
        self.run(script)?.success().with_context(|| script.to_owned())
    }

    /// Cuts the power: memory is lost, and of the disk what was not flushed.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn cut_power(&mut self) -> Result<()> {
        self.running.take().context("the machine is off")?.qemu.kill()?;
        self.disk.cut()
    }
}

fn qemu(image: &Path, accelerator: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    // Emulated, code at another address is translated again, and so are the processor's own safeguards.
    let slow = if accelerator == "tcg" { " nokaslr norandmaps mitigations=off" } else { "" };
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", MEMORY_MIB, "-smp", "2"])
        .args(["-accel", accelerator, "-cpu", if accelerator == "kvm" { "host" } else { "max" }])
        .arg("-kernel")
        .arg(image.join("vmlinuz"))
        .arg("-initrd")
        .arg(image.join("initrd.img"))
        .arg("-append")
        // Nothing is plugged that the kernel has not found: to look for drivers for all of it takes half of the boot.
        .arg(format!("console=ttyS0 panic=-1 net.ifnames=0 systemd.mask=systemd-udev-trigger.service{slow}"))
        .args(["-device", "virtio-rng-pci"])
        .args(["-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile="]);
    command
}

/// `kvm` where the kernel says a word under it, else `tcg`: there may be a `/dev/kvm` that does not work.
fn accelerator(image: &Path) -> Result<&'static str> {
    static FOUND: OnceLock<&str> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let dir = tempfile::tempdir()?;
    let console = dir.path().join("console");
    let mut command = qemu(image, "kvm");
    command.arg("-serial").arg(format!("file:{}", console.display()));
    let mut found = "tcg";
    if Path::new("/dev/kvm").exists() {
        let mut qemu = Process::start("the machine", &mut command, &dir.path().join("qemu.log"))?;
        let spoke = wait::until_true("the kernel's first word", FIRST_WORD_WITHIN, || {
            qemu.check_running()?;
            Ok(std::fs::metadata(&console).is_ok_and(|console| console.len() > 0))
        });
        if spoke.is_ok() {
            found = "kvm";
        }
    }
    Ok(FOUND.get_or_init(|| found))
}

/// The folder of the image, which is made where it is missing.
fn image() -> Result<PathBuf> {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("machine");
    let mut hash = crc32fast::Hasher::new();
    for file in ["image", "guest"] {
        hash.update(&std::fs::read(recipe.join(file))?);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("satellite-tests");
    let image = cache.join(format!("machine-{}", HEXLOWER.encode(&hash.finalize().to_be_bytes())));
    if !image.is_dir() {
        std::fs::create_dir_all(&cache)?;
        let made = tempfile::Builder::new().prefix("making-").tempdir_in(&cache)?;
        let mut command = Command::new(recipe.join("image"));
        command.arg(made.path());
        let log = tempfile::NamedTempFile::new()?;
        let mut making = Process::start("tests/machine/image", &mut command, log.path())?;
        let ended = making.wait_for_end(BOOT_WITHIN)?;
        if !ended.success() {
            bail!("no image could be made ({ended}):\n{}", process::tail(log.path(), 40));
        }
        // Another test may have been faster: its image is as good.
        if let Err(error) = std::fs::rename(made.path(), &image)
            && !image.is_dir()
        {
            return Err(error).context("the new image");
        }
    }
    Ok(image)
}
