//! `satellite-relay lease`: works whether or not the relay runs; both use the same registry.

use std::time::Duration;

use clap::{Args, Subcommand};
use satellite_shared::enrolment::JoinCode;
use satellite_shared::id::{LeaseId, SatelliteId};
use satellite_shared::secret::{Token, TokenKind};
use serde_json::json;

use super::{Failure, Shell, date, note, now_ms, print, print_json, table};
use crate::authority::{Authority, hostname};
use crate::lease::{parse_ttl, standing};
use crate::registry::{LeaseRow, NewLease, RegistryError, random, sha256_hex};
use crate::relay::Addresses;
use crate::settings::is_url;

const NAME_CHARS_MAX: usize = 63;

#[derive(Debug, Subcommand)]
pub(crate) enum Lease {
    /// Make a lease for one satellite and print its join code, once
    #[command(after_help = "Examples:
  satellite-relay lease create --name attic
  satellite-relay lease create --name attic --relay https://relay.example.org:8443 --ttl 24h
  satellite-relay lease create --name attic --replace     # the machine was set up anew
  satellite-relay lease create --name attic --json | jq -r .join_code")]
    Create(Create),
    /// List the leases, the newest first
    #[command(after_help = "Example:\n  satellite-relay lease list")]
    List {
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// End a lease; one that was used ends with its satellite
    #[command(after_help = "Example:\n  satellite-relay lease revoke ls_aaaaaaaaaaaaaaaa")]
    Revoke {
        /// The lease
        #[arg(value_name = "ID")]
        lease: LeaseId,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// What to call the satellite
    #[arg(long, value_parser = parse_name)]
    name: String,
    /// How long the lease lasts, 1s to 24h
    #[arg(long, value_parser = parse_ttl, default_value = "1h")]
    ttl: Duration,
    /// The relay's web door as the satellite sees it, such as <https://relay.example.org:8443>
    #[arg(long, value_name = "URL", value_parser = parse_relay)]
    relay: Option<String>,
    /// Give the enrolled satellite of this name a new identity; the old one ends when this lease is used
    #[arg(long)]
    replace: bool,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Lease {
    pub(crate) async fn run(self, shell: &Shell) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(shell).await,
            Self::List { json } => list(shell, json).await,
            Self::Revoke { lease, json } => revoke(shell, &lease, json).await,
        }
    }
}

impl Create {
    async fn run(self, shell: &Shell) -> Result<(), Failure> {
        let registry = shell.registry().await?;
        let now_ms = now_ms();
        let authority = Authority::load_or_create(&shell.data_dir, now_ms).map_err(Failure::unusable)?;
        let relay = self.relay.clone().unwrap_or_else(|| relay_url(shell));
        let (lease, token) = (LeaseId::from_bits(random()), Token::from_bits(TokenKind::Lease, random()));
        let ttl_ms = i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX);
        let expires_at_ms = now_ms.saturating_add(ttl_ms);
        let new = NewLease {
            id: lease.clone(),
            satellite: SatelliteId::from_bits(random()),
            name: self.name.clone(),
            token_sha256: sha256_hex(token.expose().as_bytes()),
            relay_url: relay.clone(),
            now_ms,
            expires_at_ms,
            replace: self.replace,
        };
        let satellite = registry.create_lease(&new).await?;
        let code = JoinCode { relay, lease, token, ca_pin: authority.ca_pin().to_owned() };
        if self.json {
            print_json(&self.document(&code, &satellite, expires_at_ms))
        } else {
            self.tell(&code, &satellite, expires_at_ms)
        }
    }

    fn document(&self, code: &JoinCode, satellite: &SatelliteId, expires_at_ms: i64) -> serde_json::Value {
        json!({
            "id": code.lease,
            "lease": code.lease,
            "satellite": satellite,
            "name": self.name,
            "token": code.token,
            "ca_pin": code.ca_pin,
            "relay": code.relay,
            "join_code": code.to_line(),
            "expires_at": date(expires_at_ms),
        })
    }

    fn tell(&self, code: &JoinCode, satellite: &SatelliteId, expires_at_ms: i64) -> Result<(), Failure> {
        let name = &self.name;
        print(format_args!(
            "A lease for `{name}` ({satellite}), good once, until {}. This is shown only now.\n\n  \
             relay   {}\n  id      {}\n  token   {}\n  ca-pin  {}\n\nThe join code, one line with all of it:\n\n{}\n",
            date(expires_at_ms),
            code.relay,
            code.lease,
            code.token.expose(),
            code.ca_pin,
            code.to_line(),
        ))?;
        print(format_args!(
            "Next, in the house:   sudo satellite lease set          (and paste the join code)\n\
             Then, on the relay:   satellite-relay config set {name} FILE   (what it polls)"
        ))
    }
}

/// The web door as well as it can be told from here.
fn relay_url(shell: &Shell) -> String {
    if let Some(url) = &shell.settings.web_url {
        return url.clone();
    }
    let port = Addresses::read(&shell.data_dir).map_or(shell.settings.web_listen.port(), |found| found.web.port());
    if let Some(host) = &shell.settings.public_host {
        return https(host, port);
    }
    let url = hostname().map(|name| https(&name, port)).filter(|url| is_url(url, "https"));
    let url = url.unwrap_or_else(|| https("localhost", port));
    note(format_args!(
        "note: the join code names {url}, this machine's own name. If the satellite can't reach it there, make the \
         lease with --relay https://NAME-OR-ADDRESS:{port}, or set public_host in {}",
        super::settings_path()
    ));
    url
}

fn https(host: &str, port: u16) -> String {
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    format!("https://{host}:{port}")
}

async fn list(shell: &Shell, json: bool) -> Result<(), Failure> {
    let leases = shell.registry().await?.leases().await?;
    let now_ms = now_ms();
    if json {
        let documents: Vec<_> = leases.iter().map(|lease| document(lease, now_ms)).collect();
        return print_json(&json!({ "leases": documents }));
    }
    if leases.is_empty() {
        note("There are no leases; `satellite-relay lease create --name NAME` makes one.");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = leases
        .iter()
        .map(|lease| {
            let state = standing(lease, now_ms).to_owned();
            let ends = if state == "open" { date(lease.expires_at_ms) } else { "-".into() };
            vec![
                lease.id.to_string(),
                lease.name.clone(),
                lease.satellite.to_string(),
                state,
                date(lease.created_at_ms),
                ends,
            ]
        })
        .collect();
    print(table(&["LEASE", "NAME", "SATELLITE", "STATE", "CREATED", "ENDS"], &rows))
}

fn document(lease: &LeaseRow, now_ms: i64) -> serde_json::Value {
    json!({
        "id": lease.id,
        "lease": lease.id,
        "name": lease.name,
        "satellite": lease.satellite,
        "state": standing(lease, now_ms),
        "relay": lease.relay_url,
        "created_at": date(lease.created_at_ms),
        "expires_at": date(lease.expires_at_ms),
        "used_at": lease.used_at_ms.map(date),
        "revoked_at": lease.revoked_at_ms.map(date),
    })
}

async fn revoke(shell: &Shell, id: &LeaseId, json: bool) -> Result<(), Failure> {
    let registry = shell.registry().await?;
    let lease = registry.lease(id).await?.ok_or_else(|| RegistryError::NoLease(id.to_string()))?;
    let satellite = registry.satellite(&lease.satellite).await?;
    // A satellite that came back with a later lease does not live by this one any more.
    let ends =
        satellite.is_some_and(|s| s.lease == lease.id && s.enrolled_at_ms.is_some() && s.revoked_at_ms.is_none());
    if ends {
        registry.revoke_satellite(&lease.satellite, now_ms()).await?;
    } else {
        registry.revoke_lease(id, now_ms()).await?;
    }
    if json {
        return print_json(&json!({ "id": id, "lease": id, "satellite": lease.satellite, "satellite_revoked": ends }));
    }
    match ends {
        true => print(format_args!(
            "Revoked {id}, and with it the satellite `{}` ({}), which enrolled with it.",
            lease.name, lease.satellite
        )),
        false => print(format_args!("Revoked {id}.")),
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.chars().count() <= NAME_CHARS_MAX && text.trim() == text;
    // A name that reads like an id would name two satellites.
    let is_id = text.parse::<SatelliteId>().is_ok();
    if !fits || is_id || text.starts_with('-') || text.chars().any(char::is_control) {
        return Err(format!("a name of 1 to {NAME_CHARS_MAX} characters on one line, such as attic"));
    }
    Ok(text.to_owned())
}

fn parse_relay(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    if !is_url(text, "https") {
        return Err("an https:// URL with a host and maybe a port, such as https://relay.example.org:8443".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::TTL;

    #[test]
    fn names_are_one_line_and_no_ids() {
        for name in ["attic", "Dach boden", "ü"] {
            assert_eq!(parse_name(name).as_deref(), Ok(name));
        }
        for name in ["", " a", "a\nb", "-a", "st_aaaaaaaaaaaaaaaa", &"x".repeat(64)] {
            assert!(parse_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_relay_is_an_https_url() {
        assert_eq!(parse_relay("https://relay.example.org:8443/").as_deref(), Ok("https://relay.example.org:8443"));
        assert!(parse_relay("http://relay.example.org").is_err());
        assert!(parse_relay("relay.example.org").is_err());
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        assert_eq!(https("2001:db8::1", 8443), "https://[2001:db8::1]:8443");
        assert_eq!(https("[2001:db8::1]", 8443), "https://[2001:db8::1]:8443");
    }

    #[test]
    fn the_default_ttl_is_the_lease_s() {
        assert_eq!(parse_ttl("1h"), Ok(TTL));
    }
}
