//! A program of this machine that is asked by a command line: run without input, bounded in size and time.
//!
//! It inherits nothing of the environment but where programs are, and speaks English. Who drops it, ends it.

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

/// What a program complains of, as far as anyone reads it.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    /// On its output.
    pub(crate) text: Vec<u8>,
    /// On its error output, what fits.
    pub(crate) complaint: String,
    /// Whether it says that it succeeded.
    pub(crate) success: bool,
}

/// Why a program said nothing that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such program.
    #[error("{0} is not there")]
    Missing(String),
    /// It went on.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    /// It is not what it should be, or the system would not run it.
    #[error("{0}")]
    Broken(String),
}

/// Runs it to its end.
pub(crate) async fn run(name: &str, arguments: &[&str], bytes_max: usize, time: Duration) -> Result<Said, Error> {
    let broken = |error: std::io::Error| Error::Broken(format!("{name}: {error}"));
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.env_clear().env("LC_ALL", "C").envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    let mut child = command.spawn().map_err(|error| {
        if error.kind() == ErrorKind::NotFound { Error::Missing(name.to_owned()) } else { broken(error) }
    })?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (text, complaint) = tokio::join!(read(out, bytes_max as u64 + 1), read(err, COMPLAINT_BYTES_MAX));
        let text = text.map_err(broken)?;
        if text.len() > bytes_max {
            return Err(Error::Broken(format!("{name} printed more than {bytes_max} bytes")));
        }
        let success = child.wait().await.map_err(broken)?.success();
        let complaint = String::from_utf8_lossy(&complaint.map_err(broken)?).trim().to_owned();
        Ok(Said { text, complaint, success })
    };
    tokio::time::timeout(time, work).await.unwrap_or(Err(Error::Late(time)))
}

/// Reads so much. What is more closes the pipe, so that the program does not wait for a reader.
async fn read(stream: Option<impl AsyncRead + Unpin>, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(stream) = stream {
        stream.take(bytes_max).read_to_end(&mut text).await?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENOUGH: Duration = Duration::from_secs(20);

    async fn shell(script: &str, bytes_max: usize, time: Duration) -> Result<Said, Error> {
        run("sh", &["-c", script], bytes_max, time).await
    }

    #[tokio::test]
    async fn what_a_program_says_and_complains_of_is_told_apart() {
        let said = shell("echo yes; echo no >&2; exit 3", 100, ENOUGH).await.unwrap();
        assert_eq!((said.text.as_slice(), said.complaint.as_str(), said.success), (&b"yes\n"[..], "no", false));
        let environment = shell("env | cut -d= -f1 | sort | tr '\\n' ' '", 1000, ENOUGH).await.unwrap();
        let names = String::from_utf8(environment.text).unwrap();
        assert!(names.contains("PATH") && !names.contains("HOME") && !names.contains("CARGO"), "{names}");
        assert!(shell("cat", 10, ENOUGH).await.unwrap().success, "it has no input");
    }

    #[tokio::test]
    async fn a_program_that_says_too_much_or_goes_on_is_ended() {
        let error = shell("while :; do echo x; done", 1000, ENOUGH).await.unwrap_err();
        assert_eq!(error.to_string(), "sh printed more than 1000 bytes");
        let short = Duration::from_millis(50);
        assert_eq!(shell("sleep 600", 10, short).await.unwrap_err().to_string(), "no answer within 50ms");
        let flood = shell("i=0; while [ $i -lt 9000 ]; do echo x >&2 || exit 1; i=$((i+1)); done; echo ok", 10, ENOUGH);
        assert!(flood.await.is_ok(), "its complaints are not waited for");
        let missing = run("satellite-no-such-program", &[], 10, ENOUGH).await.unwrap_err();
        assert_eq!(missing, Error::Missing("satellite-no-such-program".into()));
    }
}
