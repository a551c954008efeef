//! A program that runs beside the test, and one that runs and ends.
//!
//! A [`Process`] is killed when it is dropped, so that no test leaves one behind. Its output goes to a file, which the
//! journey prints when it fails and searches for secrets when it does not.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// How long a command that should end by itself may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(90);

static SHIELDED: AtomicBool = AtomicBool::new(false);

/// From now on, a Ctrl-C in the terminal reaches this program and not those that it starts: it ends them itself.
pub fn shield_from_terminal() {
    SHIELDED.store(true, Ordering::Relaxed);
}

/// A command for a program, run by another one where a test has named one (`strace -D …`), with its words.
#[must_use]
pub fn command_under(wrapper: &[String], program: &Path) -> Command {
    let Some((first, rest)) = wrapper.split_first() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(rest).arg(program);
    command
}

/// A program that runs until it is told to end.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; its output is appended to `log`.
    ///
    /// # Errors
    /// Names the program that can't be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log).with_context(|| format!("{}", log.display()))?;
        let err = out.try_clone()?;
        if SHIELDED.load(Ordering::Relaxed) {
            command.process_group(0);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("{name} could not be started: {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs; if not, with what it ended.
    ///
    /// # Errors
    /// With the end of its output, when it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself with {status}:\n{}", self.name, tail(&self.log, 20)),
        }
    }

    /// `kill -9`, at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process has gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id fits")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        if self.child.try_wait()?.is_none() {
            self.signal(Signal::TERM)?;
        }
        self.wait_for_end(within)
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub fn wait_for_end(&mut self, within: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until(&what, within, || Ok(self.child.try_wait()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a command that ended by itself said.
#[derive(Debug, Clone)]
pub struct Said {
    /// The exit code; -1 for a signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Said {
    /// Its output, when it succeeded.
    ///
    /// # Errors
    /// With all it said, when it did not.
    pub fn success(self) -> Result<String> {
        if self.code != 0 {
            bail!("exit code {}\n{}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }

    /// Everything it said.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it can't be started or does not end in time.
pub fn run(command: &mut Command, stdin: &str) -> Result<Said> {
    let name = command.get_program().display().to_string();
    let (out, err) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(out.reopen()?)
        .stderr(err.reopen()?)
        .spawn()
        .with_context(|| format!("{name} could not be started"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that ends before it has read everything says why by its exit code.
        drop(pipe.write_all(stdin.as_bytes()));
    }
    let ended = wait::until(&format!("the end of {command:?}"), COMMAND_WITHIN, || Ok(child.try_wait()?));
    if ended.is_err() {
        drop(child.kill());
        drop(child.wait());
    }
    let text = |file: &tempfile::NamedTempFile| -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(file.path())?).into_owned())
    };
    let (stdout, stderr) = (text(&out)?, text(&err)?);
    let status = ended.with_context(|| format!("{stdout}{stderr}"))?;
    Ok(Said { code: status.code().unwrap_or(-1), stdout, stderr })
}

/// The last lines of a file, or why there are none.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("{}: {error}", path.display()),
    }
}
