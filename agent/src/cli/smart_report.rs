//! `satellite smart-report`: what smartctl says of each disk of this machine, one JSON line each, for the collector `smart`.
//!
//! systemd starts it for each visit of `satellite-smart.socket`, with the rights that it takes to ask disks, which the
//! satellite does not have. It takes no input, writes nothing, asks nothing but `smartctl -x`, and never wakes a disk that
//! sleeps. The first line names the disks, each of which has a line of its own as soon as it is known; all of it is bounded
//! in count, size and time.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt as _;
use satellite_shared::gap::Reason;
use serde_json::{Value, json};

use crate::collector::smart::{DISKS_MAX, DOCUMENT_BYTES_MAX};
use crate::collector::{Failure, http, program};

const PROGRAM: &str = "smartctl";
/// The list of disks.
const SCAN_BYTES_MAX: usize = 256 << 10;
const SCAN_TIME: Duration = Duration::from_secs(10);
/// One disk: a drive that retries bad sectors takes its time, a dead one takes for ever.
const DISK_TIME: Duration = Duration::from_secs(20);
/// Disks that are asked at the same time.
const AT_ONCE_MAX: usize = 4;
const NAME_BYTES_MAX: usize = 128;

pub(crate) async fn run() -> ExitCode {
    let disks = match scan().await {
        Ok(disks) => disks,
        Err(failure) => {
            drop(print(&json!({ "error": failure.detail, "reason": failure.reason })));
            return ExitCode::FAILURE;
        }
    };
    let names: Vec<&str> = disks.iter().map(|disk| disk.shown.as_str()).collect();
    if print(&json!({ "disks": names })).is_err() {
        return ExitCode::FAILURE;
    }
    let mut lines = futures_util::stream::iter(disks).map(report).buffer_unordered(AT_ONCE_MAX);
    while let Some(line) = lines.next().await {
        // Who asked is gone.
        if print(&line).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn print(line: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// A disk as smartctl lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    name: String,
    /// Where one name stands for several disks, which of them: `megaraid,1`.
    kind: Option<String>,
    /// What it is called where that tells it from others: `/dev/bus/0 [megaraid_disk_01]`.
    shown: String,
}

async fn scan() -> Result<Vec<Disk>, Failure> {
    let said = smartctl(&["--scan", "--json=c"], SCAN_BYTES_MAX, SCAN_TIME).await?;
    disks(&said)
}

fn disks(said: &[u8]) -> Result<Vec<Disk>, Failure> {
    let bad = |detail: &str| Failure::new(Reason::BadAnswer, detail);
    let document =
        http::read_document(said).map_err(|_| bad("`smartctl --scan` printed no JSON: it has to be 7.0 or later"))?;
    let listed = document["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    if listed.len() > DISKS_MAX {
        return Err(bad(&format!("{} disks, more than {DISKS_MAX}", listed.len())));
    }
    let plain = |text: &str, more: &[u8]| {
        (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    let disk = |listed: &Value| {
        let name = listed["name"].as_str().filter(|name| name.starts_with("/dev/") && plain(name, b"/-_.:+"))?;
        // Of other kinds smartctl finds out more by itself: it lists each SATA disk as `scsi`.
        let kind = listed["type"].as_str().filter(|kind| kind.contains(','));
        let shown = listed["info_name"].as_str().filter(|shown| kind.is_some() && plain(shown, b"/-_.:+ []"));
        kind.is_none_or(|kind| plain(kind, b",+:_/")).then(|| Disk {
            name: name.into(),
            kind: kind.map(Into::into),
            shown: shown.unwrap_or(name).into(),
        })
    };
    listed.iter().map(|listed| disk(listed).ok_or_else(|| bad("smartctl lists a disk whose name is none"))).collect()
}

async fn report(disk: Disk) -> Value {
    let mut arguments = vec!["--json=c", "-x", "-n", "standby"];
    arguments.extend(disk.kind.iter().flat_map(|kind| ["-d", kind]));
    arguments.push(&disk.name);
    let said = smartctl(&arguments, DOCUMENT_BYTES_MAX, DISK_TIME).await;
    let none = |_| Failure::new(Reason::BadAnswer, "smartctl printed no JSON");
    match said.and_then(|said| http::read_document(&said).map_err(none)) {
        Ok(document) => json!({ "disk": disk.shown, "document": document }),
        Err(failure) => json!({ "disk": disk.shown, "error": failure.detail, "reason": failure.reason }),
    }
}

/// What it prints; its exit status stands in there.
async fn smartctl(arguments: &[&str], bytes_max: usize, time: Duration) -> Result<Vec<u8>, Failure> {
    program::run(PROGRAM, arguments, bytes_max, time).await.map(|said| said.text).map_err(|error| failure_of(&error))
}

fn failure_of(error: &program::Error) -> Failure {
    match error {
        program::Error::Missing(_) => {
            Failure::new(Reason::Unsupported, "smartctl is not there: sudo apt install smartmontools")
        }
        program::Error::Late(_) => Failure::new(Reason::Timeout, error.to_string()),
        program::Error::Broken(what) => Failure::new(Reason::BadAnswer, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(devices: &str) -> Result<Vec<Disk>, Failure> {
        disks(format!("{{\"devices\": [{devices}]}}").as_bytes())
    }

    #[test]
    fn disks_are_asked_by_name_and_by_kind_where_a_name_stands_for_several() {
        let found = disks(include_bytes!("../collector/smart/fixtures/scan.json")).unwrap();
        let plain = |name: &str| Disk { name: name.into(), kind: None, shown: name.into() };
        assert_eq!(found, [plain("/dev/sda"), plain("/dev/nvme0")]);
        let shown = "/dev/bus/0 [megaraid_disk_01] [SAT]";
        let raid = format!(r#"{{"name": "/dev/bus/0", "info_name": "{shown}", "type": "sat+megaraid,1"}}"#);
        let kind = Some("sat+megaraid,1".into());
        assert_eq!(listed(&raid).unwrap(), [Disk { name: "/dev/bus/0".into(), kind, shown: shown.into() }]);
        assert_eq!(disks(b"{}").unwrap(), [], "a machine without disks");
    }

    #[test]
    fn what_smartctl_would_take_for_something_else_than_a_disk_is_refused() {
        for devices in [
            r#"{"name": "-s", "type": "scsi"}"#,
            r#"{"name": "/dev/sda;reboot", "type": "scsi"}"#,
            r#"{"name": "/etc/shadow", "type": "scsi"}"#,
            r#"{"name": "/dev/sda", "type": "sat,12 -s on"}"#,
            r#"{"type": "scsi"}"#,
            "7",
        ] {
            assert!(listed(devices).unwrap_err().detail.contains("name is none"), "{devices}");
        }
        let many = vec![r#"{"name": "/dev/sda", "type": "scsi"}"#; DISKS_MAX + 1].join(",");
        assert!(listed(&many).unwrap_err().detail.contains("more than 64"));
        assert!(disks(b"smartctl 6.6\n").unwrap_err().detail.contains("7.0 or later"));
    }

    #[test]
    fn a_disk_that_goes_on_is_told_apart_from_nonsense_and_from_what_is_not_installed() {
        for (error, reason) in [
            (program::Error::Late(DISK_TIME), Reason::Timeout),
            (program::Error::Broken("smartctl printed more than 9 bytes".into()), Reason::BadAnswer),
            (program::Error::Missing("smartctl".into()), Reason::Unsupported),
        ] {
            assert_eq!(failure_of(&error).reason, reason, "{error}");
        }
        assert_eq!(disks(b"smartctl 6.6\n").unwrap_err().reason, Reason::BadAnswer);
    }
}
