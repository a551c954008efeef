//! The credential way: who may join, who stays, who is shown the door; and that no secret is left lying about.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use satellite_relay::lease::FAILURES_MAX;
use satellite_tests::device::Device;
use satellite_tests::house::{FAST_ARCHIVE, House, SOON};
use satellite_tests::impostor::{Impostor, Reached, stolen_identity};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::process::Said;
use satellite_tests::relay::{Lease, Relay};
use satellite_tests::satellite::Satellite;
use satellite_tests::wait;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("a_lease_enrols_one_satellite_once", &[], single_use),
        journey("a_lease_that_has_expired_enrols_nobody", &[], expired_lease),
        journey("a_revoked_lease_enrols_nobody", &[], revoked_lease),
        journey("a_mistyped_join_code_is_noticed_before_anything_is_sent", &[], mistyped),
        journey("a_wrong_token_is_refused_and_guessing_is_slow", &[], wrong_token),
        journey("a_relay_with_another_authority_gets_no_secret", &[], wrong_pin),
        journey("a_token_in_the_arguments_is_refused", &[], token_in_arguments),
        journey("the_identity_is_for_its_owner_only_and_no_secret_is_left_lying_about", &[], secrets),
        journey("a_lease_can_be_set_from_its_parts", &[], from_parts),
        journey("a_certificate_is_renewed_over_the_live_session", PYTHON, renewal),
        journey("a_satellite_whose_certificate_expired_comes_back", PYTHON, recovery),
        journey("a_revoked_satellite_is_out_at_once_and_stays_out", &[], revocation),
        journey("the_satellites_door_opens_to_nobody_without_a_certificate_of_this_relay", &[], strangers),
    ])
}

/// A running relay and a satellite that has not joined.
fn apart(dir: &Path) -> Result<(Relay, Satellite)> {
    let mut relay = Relay::new(dir, FAST_ARCHIVE)?;
    relay.start()?;
    Ok((relay, Satellite::new(dir, "attic", &[])?))
}

/// What a refusal must be: exit code 1, a word that says why, and no panic.
fn refused(said: &Said, word: &str) -> Result<()> {
    let text = said.all();
    ensure!(said.code == 1, "exit code {}: {text}", said.code);
    ensure!(text.to_lowercase().contains(word), "no word `{word}` in: {text}");
    ensure!(!text.contains("panicked"), "{text}");
    Ok(())
}

fn single_use(dir: &Path) -> Result<()> {
    let (relay, first) = apart(dir)?;
    let lease = relay.lease("attic", &[])?;
    first.enrol(&lease.join_code)?.success()?;
    let second = Satellite::new(dir, "cellar", &[])?;
    refused(&second.enrol(&lease.join_code)?, "used")?;
    ensure!(second.id().is_err(), "the second one has no identity");
    // And the first is not overwritten by accident.
    let another = relay.lease("another", &[])?;
    refused(&first.enrol(&another.join_code)?, "--replace")
}

fn expired_lease(dir: &Path) -> Result<()> {
    let (relay, satellite) = apart(dir)?;
    let lease = relay.lease("attic", &["--ttl", "1s"])?;
    let created = wait::mono_ms();
    wait::until_true("the lease expires", SOON, || Ok(wait::mono_ms() > created + 1_500))?;
    refused(&satellite.enrol(&lease.join_code)?, "expired")
}

fn revoked_lease(dir: &Path) -> Result<()> {
    let (relay, satellite) = apart(dir)?;
    let lease = relay.lease("attic", &[])?;
    relay.command(&["lease", "revoke", &lease.id])?.success()?;
    refused(&satellite.enrol(&lease.join_code)?, "revoked")
}

fn mistyped(dir: &Path) -> Result<()> {
    let (relay, satellite) = apart(dir)?;
    let lease = relay.lease("attic", &[])?;
    let mut code = lease.join_code.clone().into_bytes();
    let at = code.len() / 2;
    code[at] = if code[at] == b'A' { b'B' } else { b'A' };
    let before = relay.web.accepted();
    let said = satellite.enrol(&String::from_utf8(code)?)?;
    ensure!(said.code != 0 && said.all().contains("checksum"), "{}", said.all());
    let said = satellite.enrol(&lease.join_code[..lease.join_code.len() - 5])?;
    ensure!(said.code != 0, "a code that was cut: {}", said.all());
    let said = satellite.enrol("")?;
    ensure!(said.code != 0, "no code at all: {}", said.all());
    ensure!(relay.web.accepted() == before, "somebody connected for a code that is none");
    satellite.enrol(&lease.join_code)?.success()?;
    Ok(())
}

/// `lease set` from the parts of a lease.
fn set_parts(satellite: &Satellite, relay: &Relay, lease: &Lease, token: &str, pin: &str) -> Result<Said> {
    let url = format!("https://localhost:{}", relay.web.port());
    let arguments = ["lease", "set", "--relay", &url, "--id", &lease.id, "--ca-pin", pin];
    satellite.command(&arguments, &format!("{token}\n"))
}

fn from_parts(dir: &Path) -> Result<()> {
    let (relay, satellite) = apart(dir)?;
    let lease = relay.lease("attic", &[])?;
    set_parts(&satellite, &relay, &lease, &lease.token, &lease.ca_pin)?.success()?;
    ensure!(satellite.id()?.starts_with("st_"));
    Ok(())
}

/// Asks again while the relay says that this address asks too often: what it says then.
fn answered(ask: impl Fn() -> Result<Said>) -> Result<Said> {
    wait::until("an answer other than to wait", SOON, || {
        let said = ask()?;
        Ok((!said.all().contains("too many requests")).then_some(said))
    })
}

fn wrong_token(dir: &Path) -> Result<()> {
    let (relay, satellite) = apart(dir)?;
    let (lease, other) = (relay.lease("attic", &[])?, relay.lease("cellar", &[])?);
    // The token of another lease is a good token, and the wrong one.
    for guess in 0..FAILURES_MAX {
        let said = answered(|| set_parts(&satellite, &relay, &lease, &other.token, &lease.ca_pin))?;
        refused(&said, "token").with_context(|| format!("guess {guess}"))?;
        ensure!(!said.all().contains(&other.token), "the token is repeated: {}", said.all());
        ensure!(satellite.id().is_err());
    }
    // Guessing has ended the lease, for the right token too, and no other one.
    let said = answered(|| set_parts(&satellite, &relay, &lease, &lease.token, &lease.ca_pin))?;
    refused(&said, "revoked")?;
    let said = set_parts(&satellite, &relay, &other, "satl_short", &lease.ca_pin)?;
    ensure!(said.code != 0, "a token that is none: {}", said.all());
    answered(|| set_parts(&satellite, &relay, &other, &other.token, &other.ca_pin))?.success()?;
    Ok(())
}

fn wrong_pin(dir: &Path) -> Result<()> {
    let (relay, satellite) = apart(dir)?;
    let lease = relay.lease("attic", &[])?;
    let pin = "ab".repeat(32);
    let before = relay.web.bytes_up();
    let said = set_parts(&satellite, &relay, &lease, &lease.token, &pin)?;
    ensure!(said.code == 1 && said.all().contains("pin"), "{}", said.all());
    // A handshake's greeting and an alert went out; a request with a token and a CSR would be far more.
    let sent = relay.web.bytes_up() - before;
    ensure!(sent < 2_500, "{sent} bytes went to a relay that is not the right one");
    // The lease was not touched.
    set_parts(&satellite, &relay, &lease, &lease.token, &lease.ca_pin)?.success()?;
    Ok(())
}

fn token_in_arguments(dir: &Path) -> Result<()> {
    let (relay, satellite) = apart(dir)?;
    let lease = relay.lease("attic", &[])?;
    let before = relay.web.accepted();
    for arguments in [
        vec!["lease", "set", &lease.join_code],
        vec!["lease", "set", "--token", &lease.token],
        vec!["lease", "set", &lease.token],
    ] {
        let said = satellite.command(&arguments, "")?;
        ensure!(said.code == 2, "exit code {}: {}", said.code, said.all());
        ensure!(!said.all().contains(&lease.token) && !said.all().contains(&lease.join_code), "it is repeated");
    }
    ensure!(relay.web.accepted() == before, "nothing was sent");
    Ok(())
}

fn files_below(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

fn secrets(dir: &Path) -> Result<()> {
    let (relay, mut satellite) = apart(dir)?;
    let lease = relay.lease("attic", &[])?;
    let said = satellite.enrol(&lease.join_code)?;
    satellite.start()?;
    wait::until_true("the link", SOON, || Ok(relay.session.open() > 0))?;
    let identity = stolen_identity(&satellite.state_dir())?;
    let token = identity["token"].as_str().context("the identity's token")?.to_owned();
    let key = identity["key"].as_str().context("the identity's key")?;
    let key_line = key.lines().nth(1).context("a line of the key")?.to_owned();
    let own = satellite.state_dir().join("identity");
    ensure!(std::fs::metadata(&own)?.permissions().mode() & 0o777 == 0o700, "the identity's folder is open");
    let hidden = [lease.token.clone(), lease.join_code.clone(), token, key_line];
    let shown = format!("{}{}{}", said.all(), satellite.status()?, satellite.command(&["lease", "show"], "")?.all());
    ensure!(hidden.iter().all(|secret| !shown.contains(secret)), "a secret is printed: {shown}");
    for id in [satellite.process_id(), relay.process_id()].into_iter().flatten() {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{id}/{file}"))?;
            ensure!(hidden.iter().all(|secret| !contains(&text, secret)), "a secret is in {file} of {id}");
        }
    }
    let mut files = Vec::new();
    files_below(dir, &mut files)?;
    for file in files {
        let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
        if file.starts_with(&own) || file.to_string_lossy().contains("authority") {
            ensure!(mode == 0o600, "{} has mode {mode:o}", file.display());
        }
        if !file.starts_with(&own) {
            let text = std::fs::read(&file)?;
            ensure!(hidden.iter().all(|secret| !contains(&text, secret)), "a secret is in {}", file.display());
        }
    }
    Ok(())
}

fn contains(text: &[u8], secret: &str) -> bool {
    text.windows(secret.len()).any(|window| window == secret.as_bytes())
}

fn generation(house: &House) -> u64 {
    house.satellite.status().unwrap_or_default()["lease"]["certificate_generation"].as_u64().unwrap_or_default()
}

fn renewal(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let settings = format!("certificate_life = \"1m\"\n{FAST_ARCHIVE}");
    let mut house = House::with_settings(dir, &[&plug], &settings, None)?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    let first = stolen_identity(&house.satellite.state_dir())?;
    let before = generation(&house);
    wait::until_true("two renewals", Duration::from_secs(150), || Ok(generation(&house) >= before + 2))?;
    let now = stolen_identity(&house.satellite.state_dir())?;
    ensure!(now["key"] != first["key"], "a renewal takes a new key");
    house.wait_for_link(true)?;
    let verdict = house.finish(&[&plug])?;
    ensure!(verdict.polled_all_the_time(), "a renewal costs no sample: {:?}", verdict.reasons);
    Ok(())
}

fn recovery(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let settings = format!("certificate_life = \"1m\"\n{FAST_ARCHIVE}");
    let mut house = House::with_settings(dir, &[&plug], &settings, None)?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 2)?;
    // Away for longer than the certificate lives; polling goes on.
    house.relay.session.cut();
    house.relay.web.cut();
    let ends = stolen_identity(&house.satellite.state_dir())?["not_after_ms"].as_i64().context("its end")?;
    wait::until_true("the certificate ends", Duration::from_secs(120), || Ok(wait::wall_ms() > ends + 2_000))?;
    house.relay.session.mend();
    house.relay.web.mend();
    house.wait_for_link(true).context("after the certificate ended")?;
    house.finish(&[&plug])?;
    Ok(())
}

fn revocation(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let house = House::new(dir, &[&plug])?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    let thief = Impostor::with_identity(&stolen_identity(&house.satellite.state_dir())?)?;
    let port = house.relay.session.port();
    let attempt = thief.attempt(port)?;
    ensure!(attempt.reached == Reached::WouldBeHeard, "before, the identity is good: {attempt:?}");
    let attempt = thief.attempt(port)?;
    ensure!(!attempt.resumed, "the relay let a session be resumed");
    house.wait_for_link(true)?;
    let stored = || Ok(house.relay.account(&house.id)?.stored > 0);
    wait::until_true("what it sends while it is let in is stored", SOON, stored)?;

    house.relay.command(&["satellite", "revoke", &house.id])?.success()?;
    // Five seconds on a machine that has the time.
    wait::until_true("the socket is closed", Duration::from_secs(30), || Ok(house.relay.session.open() == 0))?;
    let closed_ms = wait::wall_ms();
    for _ in 0..3 {
        let attempt = thief.attempt(port)?;
        ensure!(attempt.reached != Reached::WouldBeHeard && !attempt.resumed, "a revoked identity got in: {attempt:?}");
    }
    wait::until_true("the owner is told", SOON, || {
        Ok(house.satellite.status()?["link"].to_string().to_lowercase().contains("revoked"))
    })?;
    ensure!(!house.is_linked()?, "a revoked satellite is linked");
    // Recovery, the way back for the forgotten, is none for the revoked.
    house.wait_for_polls(&plug, 4).context("polling goes on")?;
    let records = house.relay.read_records(&["--satellite", &house.id, "--metric", "device_tick"])?;
    let times: Vec<i64> =
        records["records"].as_array().into_iter().flatten().flat_map(|row| row["time_ms"].as_i64()).collect();
    ensure!(!times.is_empty(), "what it sent while it was let in is stored: {records}");
    ensure!(
        times.iter().all(|time| *time <= closed_ms),
        "a revoked satellite stores on: closed {closed_ms}, {times:?}"
    );
    Ok(())
}

fn strangers(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let house = House::new(dir, &[&plug])?;
    let identity = stolen_identity(&house.satellite.state_dir())?;
    let port = house.relay.session.port();
    let attempt = Impostor::without_certificate(&identity)?.attempt(port)?;
    ensure!(attempt.reached == Reached::NoTls, "without a certificate: {attempt:?}");
    // Another relay's satellite, with a certificate that is good over there.
    let elsewhere = dir.join("elsewhere");
    std::fs::create_dir(&elsewhere)?;
    let other = House::new(&elsewhere, &[&plug])?;
    let mut foreign = stolen_identity(&other.satellite.state_dir())?;
    foreign["ca_bundle"] = identity["ca_bundle"].clone();
    let attempt = Impostor::with_identity(&foreign)?.attempt(port)?;
    ensure!(attempt.reached == Reached::NoTls, "with another relay's certificate: {attempt:?}");
    // The web door is another door: what is good there is nothing here.
    house.wait_for_link(true)
}
