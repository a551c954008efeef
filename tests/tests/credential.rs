//! The credential way: who may join, who stays, who is shown the door; and that no secret is left lying about.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use satellite_agent::credential::key::Key;
use satellite_relay::authority::{Authority, Door, Names};
use satellite_relay::data_dir::DataDir;
use satellite_relay::lease::FAILURES_MAX;
use satellite_shared::clock::SystemClock;
use satellite_shared::enrolment::{
    CHALLENGE_PATH, Challenge, ChallengeRequest, ENROL_PATH, EnrolRequest, Enrolled, Problem, RECOVER_PATH,
    RecoverRequest,
};
use satellite_shared::id::SatelliteId;
use satellite_shared::secret::{Token, TokenKind};
use satellite_tests::device::Device;
use satellite_tests::far_end::FarEnd;
use satellite_tests::house::{FAST_ARCHIVE, House, SOON};
use satellite_tests::impostor::{Impostor, Reached, stolen_identity};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::process::Said;
use satellite_tests::relay::{Lease, Relay};
use satellite_tests::satellite::Satellite;
use satellite_tests::wait;
use serde_json::{Value, json};

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
        journey("of_a_hundred_claims_of_one_lease_at_once_one_wins", &[], hundred_claims),
        journey("what_is_no_request_is_refused_with_its_code_and_costs_nothing", &[], hostile_bodies),
        journey("a_recovery_takes_the_key_the_nonce_and_the_certificate_in_force", &[], hostile_recoveries),
        journey("nothing_secret_is_told_to_who_is_not_the_relay", &[], far_ends),
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

fn wrong_token(dir: &Path) -> Result<()> {
    let (relay, satellite) = apart(dir)?;
    let (lease, other) = (relay.lease("attic", &[])?, relay.lease("cellar", &[])?);
    // The token of another lease is a good token, and the wrong one.
    for guess in 0..FAILURES_MAX {
        // Who asks too often is told to wait, and does.
        let said = set_parts(&satellite, &relay, &lease, &other.token, &lease.ca_pin)?;
        refused(&said, "token").with_context(|| format!("guess {guess}"))?;
        ensure!(!said.all().contains(&other.token), "the token is repeated: {}", said.all());
        ensure!(satellite.id().is_err());
    }
    // Guessing has ended the lease, for the right token too, and no other one.
    let said = set_parts(&satellite, &relay, &lease, &lease.token, &lease.ca_pin)?;
    refused(&said, "revoked")?;
    let said = set_parts(&satellite, &relay, &other, "satl_short", &lease.ca_pin)?;
    ensure!(said.code != 0, "a token that is none: {}", said.all());
    set_parts(&satellite, &relay, &other, &other.token, &other.ca_pin)?.success()?;
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

/// A relay that lets one address ask as often as a test must, and what a stranger trusts.
fn asked_often(dir: &Path) -> Result<(Relay, Impostor)> {
    let limits = "[limits]\nenrolments_per_second = 1000.0\nenrolments_at_once = 1000\n";
    let mut relay = Relay::new(dir, &format!("{FAST_ARCHIVE}{limits}"))?;
    relay.start()?;
    let bundle = std::fs::read_to_string(relay.data_dir().join("authority/authority.pem"))?;
    let stranger = Impostor::without_certificate(&json!({ "ca_bundle": bundle }))?;
    Ok((relay, stranger))
}

/// Status and document.
fn post(stranger: &Impostor, relay: &Relay, path: &str, body: &str) -> Result<(u16, Value)> {
    let said = stranger.request(
        relay.doors()?.0,
        &format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    )?;
    let status = said.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| said.clone())?;
    let document = said.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    Ok((status, serde_json::from_str(document).unwrap_or(Value::Null)))
}

fn claim(lease: &Lease, key: &Key) -> Result<EnrolRequest> {
    Ok(EnrolRequest {
        lease: lease.id.parse()?,
        token: Token::parse(TokenKind::Lease, &lease.token)?,
        csr: key.request()?,
        hostname: "house".into(),
        agent_version: "0.0.0".into(),
    })
}

fn hundred_claims(dir: &Path) -> Result<()> {
    let (relay, stranger) = asked_often(dir)?;
    let lease = relay.lease("attic", &[])?;
    let answers: Vec<Result<(u16, Value)>> = std::thread::scope(|scope| {
        let claims: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let body = serde_json::to_string(&claim(&lease, &Key::generate()?)?)?;
                    post(&stranger, &relay, ENROL_PATH, &body)
                })
            })
            .collect();
        claims.into_iter().map(|claim| claim.join().unwrap_or_else(|_| anyhow::bail!("panicked"))).collect()
    });
    let mut winners = Vec::new();
    for answer in answers {
        let (status, document) = answer?;
        match status {
            200 => winners.push(document),
            409 => ensure!(document["code"] == "lease_used", "{document}"),
            other => anyhow::bail!("{other}: {document}"),
        }
    }
    ensure!(winners.len() == 1, "{} of a hundred have won", winners.len());
    let satellite = winners[0]["satellite"].as_str().context("who")?;
    let shown = relay.satellite(satellite)?;
    let certificates = shown["certificates"].as_array().context("certificates")?;
    ensure!(certificates.len() == 1 && certificates[0]["generation"] == 1, "{certificates:?}");
    Ok(())
}

fn hostile_bodies(dir: &Path) -> Result<()> {
    let (relay, stranger) = asked_often(dir)?;
    let lease = relay.lease("attic", &[])?;
    let good = serde_json::to_value(claim(&lease, &Key::generate()?)?)?;
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body.to_string()
    };
    let deep = "[".repeat(10_000);
    let bodies = [
        ("nothing", String::new(), 400),
        ("no JSON", "satellite".into(), 400),
        ("deep JSON", deep, 400),
        ("a list", "[]".into(), 400),
        ("no lease", with("lease", Value::Null), 400),
        ("a path for a lease", with("lease", json!("../../authority")), 400),
        ("SQL for a lease", with("lease", json!("ls_' OR '1'='1")), 400),
        ("a number for a token", with("token", json!(7)), 400),
        ("a giant token", with("token", json!("satl_".repeat(1_000))), 400),
        ("another kind of token", with("token", json!(lease.token.replace("satl_", "sats_"))), 400),
        ("no certificate request", with("csr", json!("")), 400),
        ("a giant", with("csr", json!("x".repeat(20_000))), 413),
        ("another's lease", with("lease", json!("ls_aaaaaaaaaaaaaaaa")), 401),
        ("a wrong token", with("token", json!(Token::from_bits(TokenKind::Lease, [7; 32]))), 401),
    ];
    for (what, body, status) in &bodies {
        let (found, document) = post(&stranger, &relay, ENROL_PATH, body).context(*what)?;
        ensure!(found == *status, "{what}: {found} {document}");
        let problem: Problem = serde_json::from_value(document).context(*what)?;
        ensure!(!problem.message.is_empty() && !problem.message.contains(&lease.token), "{what}: {problem:?}");
    }
    // Whether a lease exists or a token is wrong is one answer.
    let [.., (_, unknown, _), (_, wrong, _)] = &bodies;
    ensure!(post(&stranger, &relay, ENROL_PATH, unknown)? == post(&stranger, &relay, ENROL_PATH, wrong)?);
    // And the lease is as good as it was.
    let (status, document) = post(&stranger, &relay, ENROL_PATH, &good.to_string())?;
    ensure!(status == 200, "{document}");
    let log = std::fs::read_to_string(relay.log())?;
    ensure!(!log.contains(&lease.token), "the log has the token");
    Ok(())
}

/// A recovery as the satellite's program makes it.
fn asks_to_recover(who: &SatelliteId, nonce: &str, generation: u64, old: &Key, new: &Key) -> Result<String> {
    let csr = new.request()?;
    let signature = old.sign(&RecoverRequest::signed_text(who, nonce, generation, &csr))?;
    let request = RecoverRequest { satellite: who.clone(), nonce: nonce.into(), generation, csr, signature };
    Ok(serde_json::to_string(&request)?)
}

fn hostile_recoveries(dir: &Path) -> Result<()> {
    let (relay, stranger) = asked_often(dir)?;
    let enrol = |name: &str| -> Result<(Enrolled, Key)> {
        let key = Key::generate()?;
        let body = serde_json::to_string(&claim(&relay.lease(name, &[])?, &key)?)?;
        Ok((serde_json::from_value(post(&stranger, &relay, ENROL_PATH, &body)?.1)?, key))
    };
    let (attic, attic_key) = enrol("attic")?;
    let (cellar, cellar_key) = enrol("cellar")?;
    let nonce = |who: &SatelliteId| -> Result<String> {
        let body = serde_json::to_string(&ChallengeRequest { satellite: who.clone() })?;
        let challenge: Challenge = serde_json::from_value(post(&stranger, &relay, CHALLENGE_PATH, &body)?.1)?;
        Ok(challenge.nonce)
    };
    let refused = |what: &str, body: &str, code: &str| -> Result<()> {
        let (_, document) = post(&stranger, &relay, RECOVER_PATH, body)?;
        ensure!(document["code"] == code, "{what}: {document}");
        Ok(())
    };
    let new = Key::generate()?;
    let (a, c) = (&attic.satellite, &cellar.satellite);
    refused("a nonce of nobody", &asks_to_recover(a, &"ab".repeat(32), 1, &attic_key, &new)?, "nonce_unknown")?;
    refused("another's nonce", &asks_to_recover(a, &nonce(c)?, 1, &attic_key, &new)?, "nonce_unknown")?;
    refused("another's key", &asks_to_recover(a, &nonce(a)?, 1, &cellar_key, &new)?, "proof_failed")?;
    refused("another's key in another's name", &asks_to_recover(c, &nonce(c)?, 1, &attic_key, &new)?, "proof_failed")?;
    refused("a generation that never was", &asks_to_recover(a, &nonce(a)?, 9, &attic_key, &new)?, "proof_failed")?;
    let nobody = SatelliteId::from_bits([9; 10]);
    refused("nobody", &asks_to_recover(&nobody, &nonce(&nobody)?, 1, &attic_key, &new)?, "proof_failed")?;
    // Signed for one request, sent with another key in it.
    let once = nonce(a)?;
    let mut torn: RecoverRequest = serde_json::from_str(&asks_to_recover(a, &once, 1, &attic_key, &new)?)?;
    torn.csr = Key::generate()?.request()?;
    refused("a signature of another request", &serde_json::to_string(&torn)?, "proof_failed")?;
    refused("the nonce of a failed try", &asks_to_recover(a, &once, 1, &attic_key, &new)?, "nonce_unknown")?;
    // Strangers who ask for challenges without end push out nobody else's.
    let kept = nonce(c)?;
    for _ in 0..50 {
        nonce(a)?;
        nonce(&nobody)?;
    }
    let good = asks_to_recover(c, &kept, 1, &cellar_key, &new)?;
    let (status, document) = post(&stranger, &relay, RECOVER_PATH, &good)?;
    ensure!(status == 200 && document["generation"] == 2, "{document}");
    refused("the same again", &good, "nonce_unknown")?;
    relay.command(&["satellite", "revoke", a.as_str()])?.success()?;
    refused("a revoked one", &asks_to_recover(a, &nonce(a)?, 1, &attic_key, &new)?, "revoked")?;
    let shown = relay.satellite(a.as_str())?;
    ensure!(shown["certificates"].as_array().map(Vec::len) == Some(1), "{shown:#}");
    Ok(())
}

/// Authorities and names that are not the relay's, each by what is wrong with it.
fn other_ends(dir: &Path, relay: &Relay) -> Result<Vec<(&'static str, FarEnd)>> {
    let now_ms = wait::wall_ms();
    let clock = || std::sync::Arc::new(SystemClock);
    let folder = |name: &str, copied: bool| -> Result<DataDir> {
        let path = dir.join(name);
        std::fs::create_dir_all(path.join("authority"))?;
        for folder in [path.clone(), path.join("authority")] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
        }
        if copied {
            // The relay's own authority, as only somebody who has broken into it could have it: for the name alone.
            let file = "authority/authority.pem";
            std::fs::copy(relay.data_dir().join(file), path.join(file))?;
        }
        Ok(DataDir::open(&path)?)
    };
    let end = |authority: &Authority| FarEnd::new(authority.server_config(Door::Web, clock())?);
    let foreign = Authority::load_or_create(&folder("foreign", false)?, now_ms)?;
    foreign.renew_server_certificate(&Names::of_this_machine(), now_ms)?;
    let misnamed = Authority::load_or_create(&folder("misnamed", true)?, now_ms)?;
    let mut names = Names::default();
    names.add("relay.example.org");
    misnamed.renew_server_certificate(&names, now_ms)?;
    let ended = Authority::load_or_create(&folder("ended", true)?, now_ms)?;
    ended.renew_server_certificate(&Names::of_this_machine(), now_ms - 200 * 24 * 3_600_000)?;
    Ok(vec![
        ("another authority", end(&foreign)?),
        ("another name", end(&misnamed)?),
        ("a certificate that has ended", end(&ended)?),
    ])
}

fn far_ends(dir: &Path) -> Result<()> {
    let (relay, mut satellite) = apart(dir)?;
    let lease = relay.lease("attic", &[])?;
    let ends = other_ends(dir, &relay)?;
    for (what, end) in &ends {
        let url = format!("https://localhost:{}", end.port());
        let arguments = ["lease", "set", "--relay", &url, "--id", &lease.id, "--ca-pin", &lease.ca_pin];
        let said = satellite.command(&arguments, &format!("{}\n", lease.token))?;
        ensure!(said.code == 1 && satellite.id().is_err(), "{what}: {}", said.all());
        end.must_have_heard_nothing(&[&lease.token]).with_context(|| format!("enrolment, {what}"))?;
    }
    // The relay with another pin is not the relay: its own door, which could have been fooled by nobody.
    let pin = "ab".repeat(32);
    ensure!(set_parts(&satellite, &relay, &lease, &lease.token, &pin)?.code == 1);
    // Afterwards, in a life's second part: the session goes to somebody else.
    satellite.enrol(&lease.join_code)?.success()?;
    satellite.start()?;
    wait::until_true("the link", SOON, || Ok(satellite.status()?["link"]["state"] == "connected"))?;
    let identity = stolen_identity(&satellite.state_dir())?;
    let secret = |field: &str| identity[field].as_str().map(str::to_owned).with_context(|| field.to_owned());
    let (token, key) = (secret("token")?, secret("key")?);
    let ends = other_ends(&dir.join("later"), &relay)?;
    let (_, satellites) = relay.doors()?;
    for (what, end) in &ends {
        relay.session.lead_to(Some(([127, 0, 0, 1], end.port()).into()));
        relay.session.cut_once();
        wait::until_true(&format!("a visit to {what}"), satellite_tests::house::CONNECTED_WITHIN, || {
            Ok(end.visits() > 0)
        })?;
        end.must_have_heard_nothing(&[&token, &key]).with_context(|| format!("session, {what}"))?;
        ensure!(satellite.status()?["link"]["state"] != "connected", "it is linked to {what}");
    }
    relay.session.lead_to(Some(([127, 0, 0, 1], satellites).into()));
    wait::until_true("the link to the relay", satellite_tests::house::CONNECTED_WITHIN, || {
        Ok(satellite.status()?["link"]["state"] == "connected")
    })
}
