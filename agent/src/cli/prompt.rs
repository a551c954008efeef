//! What is asked for at the terminal and not shown: join codes, tokens, passwords.
//!
//! Nothing of it is ever an argument: those stand in the shell's history and in every user's `ps`.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use anyhow::Context as _;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use secrecy::{ExposeSecret as _, SecretString};

/// What was typed or piped in, as it came; `prompt` is shown to a person.
///
/// # Errors
/// When the terminal fails, or the person gives up.
pub(crate) fn secret(prompt: &str, bytes_max: usize) -> anyhow::Result<SecretString> {
    let stdin = io::stdin();
    let mut text = String::new();
    let taken = bytes_max + 1;
    if stdin.is_terminal() {
        say(prompt)?;
        let hidden = Hidden::begin()?;
        let read = read_hidden(&mut stdin.lock(), &mut text, taken);
        drop(hidden);
        say("\n")?;
        read?;
    } else {
        stdin.lock().take(taken as u64).read_to_string(&mut text).context("stdin can't be read as text")?;
    }
    let text = SecretString::from(text);
    anyhow::ensure!(text.expose_secret().len() <= bytes_max, "more than {bytes_max} bytes: nothing was changed");
    Ok(text)
}

/// A line, byte by byte: the terminal neither shows nor edits it, and Ctrl-C arrives as a byte.
fn read_hidden(input: &mut impl io::Read, text: &mut String, bytes_max: usize) -> anyhow::Result<()> {
    let mut bytes = vec![];
    let mut byte = [0];
    while bytes.len() < bytes_max {
        if input.read(&mut byte).context("the terminal can't be read")? == 0 {
            break;
        }
        match byte[0] {
            b'\r' | b'\n' if bytes.is_empty() => {}
            b'\r' | b'\n' | 4 => break,
            3 => anyhow::bail!("given up: nothing was changed"),
            8 | 127 => {
                bytes.pop();
            }
            other => bytes.push(other),
        }
    }
    *text = String::from_utf8(bytes).context("what was typed is not text")?;
    Ok(())
}

/// The terminal without echo, until dropped.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> anyhow::Result<Self> {
        let before = tcgetattr(io::stdin()).context("the terminal's echo can't be switched off")?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        hidden.special_codes[SpecialCodeIndex::VMIN] = 1;
        hidden.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden).context("the terminal's echo can't be switched off")?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that does not take its modes back.
        tcsetattr(io::stdin(), OptionalActions::Flush, &self.0).ok();
    }
}

/// Says something on stderr, as it is: a question has no line break.
///
/// # Errors
/// When the terminal fails.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stderr().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("the terminal can't be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_line_can_be_mended_and_given_up() {
        let read = |bytes: &[u8]| {
            let mut text = String::new();
            read_hidden(&mut &*bytes, &mut text, 4_096).map(|()| text)
        };
        assert_eq!(read(b"abx\x7fc\rrest").unwrap(), "abc");
        assert_eq!(read(b"\n\nabc").unwrap(), "abc");
        assert!(read(b"ab\x03").is_err());
        assert!(read(b"\xff\n").is_err());
        assert_eq!(read(&[b'a'; 9_000]).unwrap().len(), 4_096);
    }
}
