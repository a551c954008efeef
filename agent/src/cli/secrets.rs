//! `satellite secrets set | list | remove`: passwords of devices, which stay in this house.
//!
//! A value is read from the prompt, without echo, or from stdin, and never from the arguments. It is never shown again.

use std::path::Path;
use std::process::ExitCode;

use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use crate::cli::{complain, prompt, say};
use crate::policy::{Protocol, WebPath};
use crate::secrets::{self, BoundHost, FILE_NAME, Secret, SecretName, VALUE_BYTES_MAX};

const USAGE: u8 = 2;

/// What to do with the secrets.
#[derive(Debug, clap::Subcommand)]
pub enum SecretsCommand {
    /// Keeps a secret, or changes it: asks for its value (or reads it from stdin).
    #[command(after_help = "Examples:\n  \
        sudo satellite secrets set pihole --host pi.hole --protocol http\n  \
        sudo satellite secrets set ups --host 192.168.1.20:3493 --protocol nut < password\n  \
        sudo satellite secrets set pihole --keep --path /api/stats\n\n\
        A configuration names it, `auth = { secret = \"pihole\" }`; it is sent to these hosts and to nobody else.\n\
        Over HTTP it goes with the requests of profiles and for /metrics, and with others only where --path lists them:\n\
        many a device does what a GET says.\n\
        Of a secret that is there, what is left out stays.")]
    Set {
        /// Its name in configurations: lower-case letters, digits, `-` and `_`.
        #[arg(value_parser = |text: &str| SecretName::try_from(text.to_owned()))]
        name: SecretName,
        /// Whom it may be sent to: a name, an address or a network, with or without a port. May be repeated.
        #[arg(long = "host", value_name = "HOST[:PORT]", value_parser = |text: &str| BoundHost::try_from(text.to_owned()))]
        hosts: Vec<BoundHost>,
        /// By which protocol. May be repeated.
        #[arg(long = "protocol", value_name = "PROTOCOL", value_parser = protocol)]
        protocols: Vec<Protocol>,
        /// For which path of a web server beside what profiles ask: `/api` with all below it, `/probe?` with any query,
        /// `*` for everything. May be repeated.
        #[arg(long = "path", value_name = "PATH", value_parser = |text: &str| WebPath::try_from(text.to_owned()))]
        paths: Vec<WebPath>,
        /// Changes what it is for, and asks for no value: that stays.
        #[arg(long)]
        keep: bool,
        /// Refused: what stands in the arguments can be read by every user of this machine.
        #[arg(hide = true)]
        rest: Vec<String>,
    },
    /// Names, hosts and protocols; no values.
    List {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Forgets a secret. Devices that need it have gaps from then on.
    Remove {
        /// Its name.
        #[arg(value_parser = |text: &str| SecretName::try_from(text.to_owned()))]
        name: SecretName,
    },
}

fn protocol(word: &str) -> Result<Protocol, String> {
    Protocol::ALL.into_iter().find(|protocol| protocol.as_str() == word).ok_or_else(|| {
        let words: Vec<&str> = Protocol::ALL.into_iter().map(Protocol::as_str).collect();
        format!("one of {}", words.join(", "))
    })
}

/// Runs one of the commands.
///
/// # Errors
/// Where the terminal or the disk fails; what the user can mend is printed and becomes the exit code.
pub fn run(command: SecretsCommand, state_dir: &Path) -> anyhow::Result<ExitCode> {
    let path = state_dir.join(FILE_NAME);
    let mut kept = secrets::read(&path)?;
    match command {
        SecretsCommand::Set { name, hosts, protocols, paths, keep, rest } => {
            if !rest.is_empty() {
                complain(
                    "a secret is never an argument: give it to the prompt of `satellite secrets set`, or to its stdin",
                );
                return Ok(ExitCode::from(USAGE));
            }
            return set(&path, name, Purpose { hosts, protocols, paths }, keep);
        }
        SecretsCommand::List { json: true } => {
            let listed = kept.iter().map(|(name, secret)| {
                serde_json::json!({
                    "name": name, "hosts": secret.hosts, "protocols": secret.protocols, "paths": secret.paths,
                })
            });
            say(&serde_json::to_string_pretty(&listed.collect::<Vec<_>>())?);
        }
        SecretsCommand::List { json: false } if kept.is_empty() => {
            say("no secrets: `satellite secrets set NAME` keeps one")
        }
        SecretsCommand::List { json: false } => {
            for (name, secret) in &kept {
                say(&format!("{name:<24} {}", purpose(secret)));
            }
        }
        SecretsCommand::Remove { name } => {
            if kept.remove(&name).is_none() {
                complain(&format!("there is no secret `{name}`: `satellite secrets list` names them"));
                return Ok(ExitCode::FAILURE);
            }
            secrets::write(&path, &kept)?;
            say(&format!("`{name}` is forgotten"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a secret is for, as far as it was typed.
struct Purpose {
    hosts: Vec<BoundHost>,
    protocols: Vec<Protocol>,
    paths: Vec<WebPath>,
}

fn set(path: &Path, name: SecretName, typed: Purpose, keep: bool) -> anyhow::Result<ExitCode> {
    let before = secrets::read(path)?.remove(&name);
    let missing = match &before {
        Some(_) => None,
        None if keep => Some("there is no such secret yet, so it has no value to keep: leave out --keep"),
        None if typed.hosts.is_empty() => Some("what is it for? Add --host HOST"),
        None if typed.protocols.is_empty() => Some("what is it for? Add --protocol PROTOCOL"),
        None => None,
    };
    if let Some(why) = missing {
        complain(why);
        return Ok(ExitCode::from(USAGE));
    }
    let value = match &before {
        Some(before) if keep => before.value.clone(),
        Some(_) | None => {
            let typed = prompt::secret("Secret (not shown): ", VALUE_BYTES_MAX)?;
            Zeroizing::new(typed.expose_secret().trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    if value.is_empty() {
        complain("nothing was given, so nothing was changed");
        return Ok(ExitCode::FAILURE);
    }
    let (hosts, protocols, paths) =
        before.map(|before| (before.hosts, before.protocols, before.paths)).unwrap_or_default();
    let secret = Secret {
        hosts: if typed.hosts.is_empty() { hosts } else { typed.hosts },
        protocols: if typed.protocols.is_empty() { protocols } else { typed.protocols },
        paths: if typed.paths.is_empty() { paths } else { typed.paths },
        value,
    };
    let said = format!("`{name}` is for {}; devices that name it have it from their next poll on", purpose(&secret));
    // Somebody may have kept another one while this one was typed.
    let mut kept = secrets::read(path)?;
    kept.insert(name, secret);
    secrets::write(path, &kept)?;
    say(&said);
    Ok(ExitCode::SUCCESS)
}

fn purpose(secret: &Secret) -> String {
    let hosts: Vec<String> = secret.hosts.iter().map(ToString::to_string).collect();
    let protocols: Vec<&str> = secret.protocols.iter().map(|protocol| protocol.as_str()).collect();
    let paths: Vec<String> = secret.paths.iter().map(ToString::to_string).collect();
    let paths = if paths.is_empty() { String::new() } else { format!(", also for {}", paths.join(", ")) };
    format!("{} by {}{paths}", hosts.join(", "), protocols.join(", "))
}
