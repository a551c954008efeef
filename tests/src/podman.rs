//! A real Podman behind its socket, which speaks Docker's language, with containers that the test made of one static
//! program; everything it keeps is in the test's directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::peers::in_path;
use crate::process::{self, Process, Said};
use crate::wait;

/// The image of all containers.
pub const IMAGE: &str = "localhost/satellite-test:1";
/// The one program in it, which needs no library.
const BUSYBOX: &str = "/bin/busybox";
const SOON: Duration = Duration::from_secs(60);

/// Podman, where it may run containers.
#[must_use]
pub fn find() -> Option<PathBuf> {
    in_path("podman").filter(|_| Path::new(BUSYBOX).is_file() && rustix::process::geteuid().is_root())
}

/// The service, running.
#[derive(Debug)]
pub struct Podman {
    /// Where it listens.
    pub socket: PathBuf,
    dir: PathBuf,
    _service: Process,
}

impl Podman {
    /// A Podman with an image and no container.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir(dir)?;
        let tree = dir.join("tree");
        std::fs::create_dir_all(tree.join("bin"))?;
        std::fs::copy(BUSYBOX, tree.join("bin/busybox"))?;
        let archive = dir.join("tree.tar");
        process::run(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&archive).arg("."), "")?.success()?;
        process::run(podman(dir).arg("import").arg(&archive).arg(IMAGE), "")?.success()?;
        let socket = dir.join("sock");
        let mut command = podman(dir);
        command.args(["system", "service", "--time", "0"]).arg(format!("unix://{}", socket.display()));
        let mut service = Process::start("podman", &mut command, &dir.join("service.log"))?;
        wait::until_true("podman's socket", SOON, || {
            service.check_running()?;
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok())
        })?;
        Ok(Self { socket, dir: dir.to_owned(), _service: service })
    }

    /// Makes a container that sleeps; `action` is `create`, or `run` where it shall be started.
    ///
    /// # Errors
    /// With what Podman said: not every machine in a container lets containers run.
    pub fn container(&self, action: &str, name: &str, options: &[&str]) -> Result<String> {
        let mut command = podman(&self.dir);
        command.arg(action).args(["--name", name, "--network=none", "--security-opt", "seccomp=unconfined"]);
        // Below what this process has itself: to raise them needs more than a container's root.
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]);
        command.args(if action == "run" { &["--detach"][..] } else { &[] }).args(options);
        command.args([IMAGE, "/bin/busybox", "sleep", "3600"]);
        Ok(process::run(&mut command, "")?.success()?.trim().to_owned())
    }

    /// Removes a container, running or not.
    ///
    /// # Errors
    /// With what Podman said.
    pub fn remove(&self, name: &str) -> Result<()> {
        process::run(podman(&self.dir).args(["rm", "--force", "--time", "0", name]), "")?.success().map(drop)
    }

    /// What it calls itself: `podman version 4.3.1`.
    ///
    /// # Errors
    /// When it can't be run.
    pub fn version(&self) -> Result<String> {
        let Said { stdout, .. } = process::run(podman(&self.dir).arg("--version"), "")?;
        stdout.lines().next().map(str::to_owned).context("a version")
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        drop(process::run(podman(&self.dir).args(["rm", "--force", "--all", "--time", "0"]), ""));
    }
}

/// Podman with everything in a directory. Of the runtimes, crun can't do with every mix of cgroups; runc can.
fn podman(dir: &Path) -> Command {
    let mut command = Command::new("podman");
    command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(dir.join("run"));
    command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
    if let Some(runc) = in_path("runc") {
        command.arg("--runtime").arg(runc);
    }
    command
}
