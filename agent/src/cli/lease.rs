//! `satellite lease set | show | remove`: the join code in, the identity kept.
//!
//! A token is never taken from the arguments: they stand in the shell's history and in every user's `ps`. It is read from
//! the prompt, without echo, or from stdin.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use satellite_shared::clock::{Clock, SystemClock};
use satellite_shared::enrolment::JoinCode;
use satellite_shared::secret::{Token, TokenKind};
use secrecy::ExposeSecret as _;

use crate::cli::prompt::{self, say};
use crate::credential::enrolment::{self, EnrolmentError};
use crate::credential::keystore::{Identity, Keystore};
use crate::credential::verification_time::VerificationTime;
use crate::uplink::hostname;
use crate::uplink::proxy::ProxySettings;

const INPUT_BYTES_MAX: usize = 4 << 10;
const USAGE: u8 = 2;
const FAILED: u8 = 1;
/// How long a relay that asks for patience is waited for: many satellites behind one address share its limit.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to do with the lease.
#[derive(Debug, clap::Subcommand)]
pub enum LeaseCommand {
    /// Enrols this machine: asks for the join code (or reads it from stdin) and keeps the identity.
    #[command(after_help = "Examples:\n  satellite lease set\n  satellite lease set < join-code\n  \
                            satellite lease set --relay https://relay.example.org:8443 --id ls_… --ca-pin … < token")]
    Set(Set),
    /// Shows who this machine is; no secrets.
    Show {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Forgets who this machine is. Buffered records stay and go to the next relay it enrols with.
    Remove {
        /// Doesn't ask.
        #[arg(long)]
        yes: bool,
    },
}

/// How to enrol.
#[derive(Debug, clap::Args)]
pub struct Set {
    /// The relay's address, where there is no join code: https://HOST:PORT.
    #[arg(long, requires = "id", requires = "ca_pin")]
    relay: Option<String>,
    /// The lease's id, where there is no join code.
    #[arg(long, requires = "relay")]
    id: Option<String>,
    /// SHA-256 of the public key of the relay's authority, where there is no join code.
    #[arg(long, requires = "relay")]
    ca_pin: Option<String>,
    /// Replaces the identity that is there.
    #[arg(long)]
    replace: bool,
    /// Refused: a secret in the arguments can be read by every user of this machine.
    #[arg(long, hide = true)]
    token: Option<Option<String>>,
    /// Refused, as `--token` is.
    #[arg(hide = true)]
    rest: Vec<String>,
}

/// Runs one of the commands.
///
/// # Errors
/// Where the terminal or the disk fails; what the user can mend is printed and becomes the exit code.
pub async fn run(command: LeaseCommand, state_dir: &Path, proxy: &ProxySettings) -> anyhow::Result<ExitCode> {
    let keystore = Keystore::new(state_dir);
    match command {
        LeaseCommand::Set(how) => set(how, &keystore, proxy).await,
        LeaseCommand::Show { json } => show(&keystore, json),
        LeaseCommand::Remove { yes } => remove(&keystore, yes),
    }
}

async fn set(how: Set, keystore: &Keystore, proxy: &ProxySettings) -> anyhow::Result<ExitCode> {
    if let Some(refusal) = refuse_arguments(&how) {
        return complain(USAGE, &refusal);
    }
    let stored = match keystore.load() {
        Ok(stored) => stored,
        Err(error) => return complain(FAILED, &error.to_string()),
    };
    if let (Some(identity), false) = (&stored.identity, how.replace) {
        return complain(
            FAILED,
            &format!(
                "this machine is already satellite {} ({}) of {}: to enrol it again, add --replace",
                identity.satellite, identity.name, identity.relay
            ),
        );
    }
    let code = match read_code(&how)? {
        Ok(code) => code,
        Err(why) => return complain(USAGE, &why),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let time = VerificationTime::load(clock, keystore.dir());
    let mut patience = PATIENCE;
    loop {
        let error = match enrolment::enrol(keystore, &code, &hostname(), proxy, &time).await {
            Ok(identity) => return print(&enrolled(&identity)),
            Err(error) => error,
        };
        let Some((pause, left)) = error.retry_after().and_then(|pause| Some((pause, patience.checked_sub(pause)?)))
        else {
            return complain(FAILED, &refused(&error));
        };
        patience = left;
        say(&format!("satellite: {error}: asking again in {} s\n", pause.as_secs()))?;
        tokio::time::sleep(pause).await;
    }
}

fn show(keystore: &Keystore, json: bool) -> anyhow::Result<ExitCode> {
    let identity = match keystore.load() {
        Ok(stored) => stored.identity,
        Err(error) => return complain(FAILED, &error.to_string()),
    };
    if json {
        return print(&serde_json::to_string_pretty(&identity.as_ref().map(as_json))?);
    }
    let Some(identity) = identity else {
        return complain(
            FAILED,
            "this machine has no lease: get a join code with `satellite-relay lease create --name NAME` on the relay, \
             then run `satellite lease set`",
        );
    };
    print(&described(&identity))
}

fn remove(keystore: &Keystore, yes: bool) -> anyhow::Result<ExitCode> {
    // A file that can't be used can still be removed.
    let identity = keystore.load().ok().and_then(|stored| stored.identity);
    if identity.is_none() && keystore.version().is_none() {
        return print("this machine has no lease");
    }
    if !yes {
        if !io::stdin().is_terminal() {
            return complain(USAGE, "nobody to ask: add --yes to forget this machine's identity");
        }
        let who = identity.as_ref().map_or_else(|| "its unreadable identity".to_owned(), |it| it.satellite.to_string());
        say(&format!("Forget that this machine is {who}? It then needs a new lease. [y/N] "))?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).context("no answer could be read")?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return complain(FAILED, "nothing was removed");
        }
    }
    match keystore.remove() {
        Ok(()) => print("removed; on the relay, `satellite-relay satellite revoke ID` makes the certificate worthless"),
        Err(error) => complain(FAILED, &error.to_string()),
    }
}

fn refuse_arguments(how: &Set) -> Option<String> {
    let words = [&how.relay, &how.id, &how.ca_pin].into_iter().flatten().chain(&how.rest);
    let given = how.token.iter().flatten();
    let secret = words.chain(given).any(|word| ["satl_", "sats_", "satj"].iter().any(|form| word.contains(form)));
    if secret {
        return Some(
            "a token or join code stands in the arguments. Other users can read it there and the shell keeps it, so \
             take it for leaked: revoke that lease on the relay (`satellite-relay lease revoke ID`), create a new one, \
             and give its join code to the prompt of `satellite lease set` or to its stdin"
                .to_owned(),
        );
    }
    let stray = how.token.is_some() || !how.rest.is_empty();
    stray.then(|| {
        "the token is never an argument: run `satellite lease set` and give it to the prompt, or to stdin".to_owned()
    })
}

/// The outer error is the terminal's, the inner one the user's.
fn read_code(how: &Set) -> anyhow::Result<Result<JoinCode, String>> {
    let (Some(relay), Some(id), Some(ca_pin)) = (&how.relay, &how.id, &how.ca_pin) else {
        let line = prompt::secret("Join code (not shown): ", INPUT_BYTES_MAX)?;
        return Ok(JoinCode::parse(line.expose_secret()).map_err(|error| error.to_string()));
    };
    let lease = match id.parse() {
        Ok(lease) => lease,
        Err(error) => return Ok(Err(format!("--id: {error}"))),
    };
    let line = prompt::secret("Token (not shown): ", INPUT_BYTES_MAX)?;
    let token = match Token::parse(TokenKind::Lease, line.expose_secret().trim()) {
        Ok(token) => token,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let code = JoinCode { relay: relay.clone(), lease, token, ca_pin: ca_pin.to_ascii_lowercase() };
    Ok(code.checked().map_err(|error| error.to_string()))
}

fn enrolled(identity: &Identity) -> String {
    format!(
        "This machine is now {}\nWhat happens next: a running daemon begins to stream within seconds; if none runs, \
         start it with `systemctl enable --now satellite` or `satellite run`. `satellite status` shows the link; on the \
         relay, `satellite-relay config set {} FILE` says what to poll.",
        described(identity).trim_start_matches("This machine is "),
        identity.satellite
    )
}

fn described(identity: &Identity) -> String {
    format!(
        "This machine is satellite {} ({})\n  relay        {}\n  streams to   {}\n  lease        {}\n  \
         certificate  number {}, until {}, renewed by itself after {}",
        identity.satellite,
        identity.name,
        identity.relay,
        identity.session_url,
        identity.lease,
        identity.generation,
        date(identity.not_after_ms),
        date(identity.renew_after_ms)
    )
}

fn as_json(identity: &Identity) -> serde_json::Value {
    serde_json::json!({
        "satellite": identity.satellite,
        "name": identity.name,
        "relay": identity.relay,
        "session_url": identity.session_url,
        "lease": identity.lease,
        "ca_pin": identity.ca_pin,
        "generation": identity.generation,
        "not_after_ms": identity.not_after_ms,
        "renew_after_ms": identity.renew_after_ms,
    })
}

fn date(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(|| "?".to_owned(), |at| at.format("%F %R UTC").to_string())
}

fn refused(error: &EnrolmentError) -> String {
    let fix = match error {
        EnrolmentError::Refused(problem) => match problem.code.as_str() {
            "lease_used" | "lease_expired" | "lease_unknown" | "lease_revoked" => {
                "\nOn the relay: `satellite-relay lease create --name NAME` prints a new join code."
            }
            _ => "",
        },
        EnrolmentError::Code(_)
        | EnrolmentError::Proxy(_)
        | EnrolmentError::Unreachable { .. }
        | EnrolmentError::Answer { .. }
        | EnrolmentError::Certificate(_)
        | EnrolmentError::Key(_)
        | EnrolmentError::Keystore(_) => "",
    };
    match error.retry_after() {
        Some(after) => format!("{error} (again after {} s){fix}", after.as_secs()),
        None => format!("{error}{fix}"),
    }
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    writeln!(io::stdout().lock(), "{text}").context("stdout can't be written")?;
    Ok(ExitCode::SUCCESS)
}

fn complain(code: u8, text: &str) -> anyhow::Result<ExitCode> {
    say(&format!("satellite: {text}\n"))?;
    Ok(ExitCode::from(code))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use satellite_shared::enrolment::Problem;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(subcommand)]
        command: LeaseCommand,
    }

    fn parse(words: &[&str]) -> Result<LeaseCommand, clap::Error> {
        Words::try_parse_from(std::iter::once(&"lease").chain(words)).map(|it| it.command)
    }

    fn how(words: &[&str]) -> Set {
        match parse(words) {
            Ok(LeaseCommand::Set(how)) => how,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_secret_among_the_arguments_is_refused_and_not_repeated() {
        let token = format!("satl_{}", "a".repeat(51));
        for words in [
            vec!["set", &token],
            vec!["set", "--token", &token],
            vec!["set", "satj1_abc"],
            vec!["set", "--relay", "https://r", "--id", &token, "--ca-pin", "p"],
        ] {
            let refusal = refuse_arguments(&how(&words)).unwrap();
            assert!(refusal.contains("leaked") && refusal.contains("revoke"), "{refusal}");
            assert!(!refusal.contains(&token), "{refusal}");
        }
    }

    #[test]
    fn other_arguments_are_refused_with_the_way_to_do_it() {
        for words in [vec!["set", "hello"], vec!["set", "--token"], vec!["set", "--token", "x"]] {
            assert!(refuse_arguments(&how(&words)).unwrap().contains("prompt"));
        }
        assert_eq!(refuse_arguments(&how(&["set", "--replace"])), None);
        assert!(parse(&["set", "--relay", "https://r"]).is_err(), "the parts go together");
        assert!(parse(&["set", "--ca-pin", "p"]).is_err());
    }

    #[test]
    fn a_used_lease_is_told_with_the_fix() {
        let problem = Problem { code: "lease_used".into(), message: "used".into(), retry_after_s: 0 };
        assert!(refused(&EnrolmentError::Refused(problem)).contains("lease create"));
        let busy = Problem { code: "rate_limited".into(), message: "slower".into(), retry_after_s: 4 };
        assert!(refused(&EnrolmentError::Refused(busy)).contains("after 4 s"));
    }

    #[test]
    fn what_is_shown_holds_no_secret() {
        let authority = crate::uplink::stand_in::Authority::new("relay");
        let identity = authority.identity(([127, 0, 0, 1], 1).into(), crate::uplink::stand_in::GOOD);
        let shown = format!("{} {} {}", described(&identity), enrolled(&identity), as_json(&identity));
        assert!(shown.contains(identity.satellite.as_str()) && shown.contains("attic"));
        assert!(!shown.contains("sats_") && !shown.contains("PRIVATE"));
    }
}
