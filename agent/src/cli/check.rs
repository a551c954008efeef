//! `satellite check`: is everything as it should be? One line a question, with the fix.
//!
//! One check a function; [`all`] lists them in the order that they depend on each other.

use std::process::ExitCode;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use satellite_shared::clock::{Clock as _, SystemClock};
use satellite_shared::wire::ToSatellite;
use tokio_tungstenite::tungstenite::Message;

use crate::cli::say;
use crate::credential::keystore::{Identity, Keystore};
use crate::credential::verification_time::VerificationTime;
use crate::kernel_clock;
use crate::policy::Policy;
use crate::secrets::{self, SecretsError};
use crate::settings::Settings;
use crate::uplink::dial::{Dial, Meter};
use crate::uplink::proxy::Route;

/// A clock that differs from the relay's by more is worth a word.
const SKEW_MS_MAX: i64 = 30_000;
/// How long the relay's greeting may take.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// What a check found.
#[derive(Debug, Clone, serde::Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    says: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Failed,
}

impl Finding {
    fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, state: State::Ok, says: says.into() }
    }

    fn warning(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, state: State::Warning, says: says.into() }
    }

    fn failed(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, state: State::Failed, says: says.into() }
    }
}

pub(crate) async fn run(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let findings = all(settings).await;
    let failed = findings.iter().any(|finding| finding.state == State::Failed);
    if json {
        say(&serde_json::json!({ "ok": !failed, "checks": findings }).to_string());
    } else {
        for finding in &findings {
            let mark = match finding.state {
                State::Ok => "ok     ",
                State::Warning => "warning",
                State::Failed => "FAILED ",
            };
            say(&format!("{mark}  {:<9} {}", finding.check, finding.says));
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn all(settings: &Settings) -> Vec<Finding> {
    let mut findings =
        vec![Finding::ok("settings", "read, every field is known"), policy(settings), state_dir(settings)];
    findings.extend([secrets(settings), time_sync()]);
    let keystore = Keystore::new(&settings.state_dir);
    let identity = match keystore.load().map(|stored| stored.identity) {
        Ok(Some(identity)) => identity,
        Ok(None) => {
            findings.push(Finding::failed("lease", "needs a lease: run sudo satellite lease set"));
            return findings;
        }
        Err(error) => {
            findings.push(Finding::failed("lease", error.to_string()));
            return findings;
        }
    };
    findings.push(certificate(&identity));
    findings.push(proxy(settings, &identity));
    findings.push(relay(settings, &keystore, identity).await);
    findings
}

fn policy(settings: &Settings) -> Finding {
    match Policy::load(&settings.policy) {
        Ok(_) if settings.policy.exists() => Finding::ok("policy", format!("{}", settings.policy.display())),
        Ok(_) => Finding::ok("policy", format!("{} is not there: the defaults hold", settings.policy.display())),
        Err(error) => Finding::failed("policy", error.to_string()),
    }
}

fn state_dir(settings: &Settings) -> Finding {
    use std::os::unix::fs::PermissionsExt as _;
    let path = settings.state_dir.display();
    match std::fs::metadata(&settings.state_dir) {
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            Finding::failed("state", format!("{path} is open to others: chmod 700 {path}"))
        }
        Ok(_) => Finding::ok("state", format!("{path} is this user's alone")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Finding::warning("state", format!("{path} is not there: the first start makes it"))
        }
        Err(error) => Finding::failed("state", format!("{path}: {error}: run this as root or as the satellite's user")),
    }
}

fn secrets(settings: &Settings) -> Finding {
    match secrets::read(&settings.state_dir.join(secrets::FILE_NAME)) {
        Ok(kept) if kept.is_empty() => Finding::ok("secrets", "none are kept"),
        Ok(kept) => Finding::ok("secrets", format!("{} kept, nobody else can read them", kept.len())),
        Err(SecretsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Finding::warning("secrets", "not looked at: run this as root or as the satellite's user")
        }
        Err(error) => Finding::failed("secrets", error.to_string()),
    }
}

fn time_sync() -> Finding {
    let now_ms = SystemClock.now().wall_ms;
    // 2026-01-01: no clock that is right shows less.
    if now_ms < 1_767_225_600_000 {
        return Finding::failed(
            "clock",
            "before 2026: set it, or let systemd-timesyncd do so (timedatectl set-ntp true)",
        );
    }
    match kernel_clock::read() {
        Some(clock) if clock.is_synchronised() => Finding::ok("clock", "synchronised, the kernel says"),
        Some(_) => Finding::warning(
            "clock",
            "not synchronised, the kernel says: timedatectl set-ntp true; with chrony, write rtcsync in chrony.conf",
        ),
        None => Finding::warning(
            "clock",
            "the kernel does not say here whether it is synchronised: see that the host of this container keeps it right",
        ),
    }
}

fn certificate(identity: &Identity) -> Finding {
    let now_ms = SystemClock.now().wall_ms;
    let ends = crate::cli::time(identity.not_after_ms);
    if identity.not_after_ms <= now_ms {
        return Finding::warning(
            "lease",
            format!("{}: the certificate ended {ends}: the satellite recovers it by itself", identity.satellite),
        );
    }
    Finding::ok(
        "lease",
        format!("{} ({}), certificate {} until {ends}", identity.satellite, identity.name, identity.generation),
    )
}

fn proxy(settings: &Settings, identity: &Identity) -> Finding {
    let route = identity
        .session_url
        .replacen("wss://", "https://", 1)
        .parse()
        .map_err(|_| format!("{}: not an address", identity.session_url))
        .and_then(|uri| Route::to(&uri, &settings.proxy_settings()).map_err(|error| error.to_string()));
    match route {
        Ok(Route::Direct) => Finding::ok("proxy", "none"),
        Ok(Route::Connect { proxy, .. } | Route::Socks { proxy, .. }) => {
            Finding::ok("proxy", format!("through {}", proxy.authority().map_or("", |authority| authority.host())))
        }
        Err(error) => Finding::failed("proxy", error),
    }
}

async fn relay(settings: &Settings, keystore: &Keystore, identity: Identity) -> Finding {
    let clock = Arc::new(SystemClock);
    let dial = Dial {
        identity,
        proxy: settings.proxy_settings(),
        time: VerificationTime::load(clock.clone(), keystore.dir()),
        meter: Arc::new(Meter::default()),
    };
    let mut socket = match dial.connect().await {
        Ok(socket) => socket,
        Err(error) => return Finding::failed("relay", error.to_string()),
    };
    let hello = match tokio::time::timeout(HELLO_TIME, socket.next()).await {
        Ok(Some(Ok(Message::Text(text)))) => serde_json::from_str::<ToSatellite>(&text).ok(),
        Ok(_) | Err(_) => None,
    };
    match hello {
        Some(ToSatellite::Hello(hello)) => {
            let skew_ms = clock.now().wall_ms - hello.clock_ms;
            let says = format!("{} answers, its certificate is of the pinned authority", hello.relay);
            if skew_ms.abs() > SKEW_MS_MAX {
                return Finding::warning(
                    "relay",
                    format!("{says}; this clock differs from its by {} s", skew_ms / 1000),
                );
            }
            Finding::ok("relay", says)
        }
        Some(ToSatellite::Refused(refused)) => Finding::failed("relay", refused.message),
        Some(_) | None => {
            Finding::failed("relay", "TLS stands, and then the relay says nothing: look at the relay's log")
        }
    }
}
