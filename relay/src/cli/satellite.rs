//! `satellite-relay satellite`: who there is, and how they are.

use clap::Subcommand;
use satellite_shared::wire::to_relay::ConfigState;
use serde_json::{Value, json};

use super::records::printable;
use super::{Failure, Shell, ago, date, note, now_ms, print, print_json, table};
use crate::registry::{CertificateRow, CertificateState, SatelliteRow};

/// Satellites say something every 30 seconds.
const ONLINE_MS: i64 = 120_000;

#[derive(Debug, Subcommand)]
pub(crate) enum Satellite {
    /// List the satellites
    #[command(after_help = "Example:\n  satellite-relay satellite list")]
    List {
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show one satellite
    #[command(after_help = "Example:\n  satellite-relay satellite show attic")]
    Show {
        /// Its id or name
        #[arg(value_name = "ID")]
        satellite: String,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// End a satellite: its certificates, its lease and, within seconds, its session. Records stay
    #[command(after_help = "Example:\n  satellite-relay satellite revoke attic")]
    Revoke {
        /// Its id or name
        #[arg(value_name = "ID")]
        satellite: String,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
}

impl Satellite {
    pub(crate) async fn run(self, shell: &Shell) -> Result<(), Failure> {
        match self {
            Self::List { json } => list(shell, json).await,
            Self::Show { satellite, json } => show(shell, &satellite, json).await,
            Self::Revoke { satellite, json } => revoke(shell, &satellite, json).await,
        }
    }
}

async fn list(shell: &Shell, json: bool) -> Result<(), Failure> {
    let satellites = shell.registry().await?.satellites().await?;
    let now_ms = now_ms();
    if json {
        let documents: Vec<_> = satellites.iter().map(|satellite| document(satellite, now_ms)).collect();
        return print_json(&json!({ "satellites": documents }));
    }
    if satellites.is_empty() {
        note("There are no satellites; `satellite-relay lease create --name NAME` makes room for one.");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = satellites
        .iter()
        .map(|satellite| {
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
            vec![
                satellite.name.clone(),
                satellite.id.to_string(),
                state(satellite, now_ms).to_owned(),
                satellite.last_seen_ms.map_or_else(|| "-".into(), |seen| ago(seen, now_ms)),
                config_line(satellite),
                or_dash(&satellite.hostname),
                or_dash(&satellite.agent_version),
            ]
        })
        .collect();
    print(table(&["NAME", "ID", "STATE", "SEEN", "CONFIG", "HOST", "VERSION"], &rows))
}

async fn show(shell: &Shell, id_or_name: &str, json: bool) -> Result<(), Failure> {
    let registry = shell.registry().await?;
    let satellite = registry.satellite_by(id_or_name).await?;
    let certificates = registry.certificates(&satellite.id).await?;
    let now_ms = now_ms();
    if json {
        let mut document = document(&satellite, now_ms);
        document["certificates"] = certificates.iter().map(|row| certificate(row, now_ms)).collect();
        return print_json(&document);
    }
    let when = |at: Option<i64>| at.map_or_else(|| "never".into(), |at| format!("{} ({})", date(at), ago(at, now_ms)));
    let mut lines = vec![
        format!("{} ({})", satellite.name, satellite.id),
        format!("  state        {}", state(&satellite, now_ms)),
        format!("  lease        {}", satellite.lease),
        format!("  enrolled     {}", when(satellite.enrolled_at_ms)),
        format!("  last seen    {}", when(satellite.last_seen_ms)),
        format!("  address      {}", satellite.address.as_deref().unwrap_or("-")),
        format!("  host         {}", satellite.hostname.as_deref().unwrap_or("-")),
        format!("  version      {}", satellite.agent_version.as_deref().unwrap_or("-")),
        format!("  config       {}", config_line(&satellite)),
    ];
    if let Some(revoked) = satellite.revoked_at_ms {
        lines.push(format!("  revoked      {}", when(Some(revoked))));
    }
    for item in satellite.config_status.iter().flat_map(|status| &status.items) {
        lines.push(format!("    refused    {}: {}", printable(&item.path), printable(&item.reason)));
    }
    if let Some(progress) = &satellite.progress {
        lines.push(format!(
            "  waiting      {} samples, {} KiB in its buffer",
            progress.waiting,
            progress.buffer_bytes >> 10
        ));
    }
    for row in certificates.iter().filter(|row| row.in_force(now_ms)) {
        lines.push(format!(
            "  certificate  generation {}, {}, until {}, renewed from {}",
            row.generation,
            certificate_state(row, now_ms),
            date(row.not_after_ms),
            date(row.renew_after_ms)
        ));
    }
    print(lines.join("\n"))
}

async fn revoke(shell: &Shell, id_or_name: &str, json: bool) -> Result<(), Failure> {
    let registry = shell.registry().await?;
    let satellite = registry.satellite_by(id_or_name).await?;
    registry.revoke_satellite(&satellite.id, now_ms()).await?;
    if json {
        return print_json(&json!({ "id": satellite.id, "name": satellite.name, "revoked": true }));
    }
    print(format_args!(
        "Revoked `{}` ({}): its certificates, its lease and, within seconds, its session. What it sent stays.",
        satellite.name, satellite.id
    ))
}

fn state(satellite: &SatelliteRow, now_ms: i64) -> &'static str {
    if satellite.revoked_at_ms.is_some() {
        "revoked"
    } else if satellite.enrolled_at_ms.is_none() {
        "waiting"
    } else if satellite.last_seen_ms.is_some_and(|seen| now_ms.saturating_sub(seen) < ONLINE_MS) {
        "online"
    } else {
        "offline"
    }
}

fn config_line(satellite: &SatelliteRow) -> String {
    if satellite.config_version == 0 {
        return "none".into();
    }
    let version = satellite.config_version;
    match &satellite.config_status {
        Some(status) if status.version == version => match (status.state, status.items.len()) {
            (ConfigState::Applied, 0) => format!("{version} applied"),
            (ConfigState::Applied, refused) => format!("{version} applied, {refused} refused"),
            (ConfigState::Rejected, _) => format!("{version} rejected"),
        },
        Some(_) | None => format!("{version} sent when it connects"),
    }
}

fn document(satellite: &SatelliteRow, now_ms: i64) -> Value {
    json!({
        "id": satellite.id,
        "satellite": satellite.id,
        "name": satellite.name,
        "state": state(satellite, now_ms),
        "lease": satellite.lease,
        "created_at": date(satellite.created_at_ms),
        "enrolled_at": satellite.enrolled_at_ms.map(date),
        "last_seen_at": satellite.last_seen_ms.map(date),
        "revoked_at": satellite.revoked_at_ms.map(date),
        "address": satellite.address,
        "hostname": satellite.hostname,
        "agent_version": satellite.agent_version,
        "config_version": satellite.config_version,
        "config_status": satellite.config_status,
        "config_status_at": satellite.config_status_at_ms.map(date),
        "generation": satellite.generation,
        "recoveries": satellite.recoveries,
        "progress": satellite.progress,
    })
}

fn certificate(row: &CertificateRow, now_ms: i64) -> Value {
    json!({
        "generation": row.generation,
        "serial": row.serial_hex,
        "state": certificate_state(row, now_ms),
        "not_after": date(row.not_after_ms),
        "renew_after": date(row.renew_after_ms),
    })
}

fn certificate_state(row: &CertificateRow, now_ms: i64) -> &'static str {
    match row.state {
        CertificateState::Revoked | CertificateState::Overlap if !row.in_force(now_ms) => "revoked",
        _ if row.not_after_ms <= now_ms => "expired",
        CertificateState::PendingUse => "pending",
        CertificateState::Current => "current",
        CertificateState::Overlap => "overlap",
        CertificateState::Revoked => "revoked",
    }
}
