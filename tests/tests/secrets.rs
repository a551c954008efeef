//! Where a secret may be, and nowhere else: a whole life of a satellite at the most talkative log level, then a search
//! of every file, every argument, every environment and every core for the lease's token, the session's tokens and the
//! private keys, in every form that they are written in.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use satellite_tests::device::{Device, Manner};
use satellite_tests::house::{FAST_ARCHIVE, House, SOON};
use satellite_tests::impostor::stolen_identity;
use satellite_tests::journey::{self, journey};
use satellite_tests::process::Process;
use satellite_tests::relay::Relay;
use satellite_tests::satellite::Satellite;
use satellite_tests::{programs, wait};

fn main() -> ExitCode {
    journey::run(vec![
        journey("a_whole_life_leaves_no_secret_but_in_its_place", &[], life),
        journey("neither_program_leaves_a_core_or_lets_its_user_look_in", &[], cores),
    ])
}

/// Something that must not be found, by the name of what it is.
struct Secret {
    what: String,
    bytes: Vec<u8>,
}

/// All that was ever secret in one life.
#[derive(Default)]
struct Secrets(Vec<Secret>);

impl Secrets {
    fn add(&mut self, what: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        assert!(bytes.len() >= 16, "{what} is too short to be looked for");
        if !self.0.iter().any(|secret| secret.bytes == bytes) {
            self.0.push(Secret { what: what.to_owned(), bytes });
        }
    }

    /// A token, and the random bits in it, as text and as they are.
    fn add_token(&mut self, what: &str, token: &str) -> Result<()> {
        self.add(what, token);
        let (_, body) = token.split_once('_').context("a token's form")?;
        let bits = data_encoding::BASE64URL_NOPAD.decode(&body.as_bytes()[..43])?;
        self.add_bits(what, &bits);
        self.add(&format!("the body of {what}"), &body.as_bytes()[..43]);
        Ok(())
    }

    /// A private key: as PEM, as DER, and the number itself, in all the forms that a dump could have.
    fn add_key(&mut self, what: &str, pem: &str) -> Result<()> {
        // The file may hold a certificate too, which is for everybody.
        let block = pem.lines().skip_while(|line| !line.contains("BEGIN PRIVATE KEY")).skip(1);
        let lines: Vec<&str> = block.take_while(|line| !line.starts_with("-----")).collect();
        for line in lines.iter().filter(|line| line.len() >= 32) {
            self.add(&format!("a line of {what}"), *line);
        }
        self.add(&format!("{what} in one line"), lines.concat());
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes())?;
        let der = der.secret_der();
        self.add(&format!("{what} as DER"), der);
        // The private number of P-256 in PKCS #8: an octet string of 32 bytes.
        let at = der.windows(2).position(|window| window == [0x04, 0x20]).context("the number in a key")?;
        self.add_bits(&format!("the number of {what}"), &der[at + 2..at + 34]);
        Ok(())
    }

    fn add_bits(&mut self, what: &str, bits: &[u8]) {
        self.add(&format!("{what}, raw"), bits);
        self.add(&format!("{what}, hex"), data_encoding::HEXLOWER.encode(bits));
        self.add(&format!("{what}, HEX"), data_encoding::HEXUPPER.encode(bits));
        self.add(&format!("{what}, base64"), data_encoding::BASE64_NOPAD.encode(bits));
        self.add(&format!("{what}, base64url"), data_encoding::BASE64URL_NOPAD.encode(bits));
        // As `{:?}` of bytes writes them.
        let list: Vec<String> = bits.iter().map(u8::to_string).collect();
        self.add(&format!("{what}, as a list"), list.join(", "));
    }

    /// Everything in an identity file.
    fn add_identity(&mut self, when: &str, satellite: &Satellite) -> Result<()> {
        let identity = stolen_identity(&satellite.state_dir())?;
        let text = |field: &str| identity[field].as_str().with_context(|| field.to_owned());
        self.add_token(&format!("the session's token {when}"), text("token")?)?;
        self.add_key(&format!("the key {when}"), text("key")?)
    }

    fn must_not_be_in(&self, place: &str, bytes: &[u8]) -> Result<()> {
        for Secret { what, bytes: secret } in &self.0 {
            ensure!(!holds(bytes, secret), "{what} is in {place}");
        }
        Ok(())
    }
}

/// Whether a haystack holds a needle: by its first byte, as most places have none of it.
fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((&first, rest)) = needle.split_first() else { return false };
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&byte| byte == first) {
        from += at + 1;
        if haystack[from..].starts_with(rest) {
            return true;
        }
    }
    false
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut folders, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// Arguments and environment of a program, as far as this user may see them.
fn process_texts(id: u32) -> Vec<(String, Vec<u8>)> {
    let read =
        |file: &str| std::fs::read(format!("/proc/{id}/{file}")).ok().map(|text| (format!("{file} of {id}"), text));
    ["cmdline", "environ"].iter().filter_map(|file| read(file)).collect()
}

fn generation(house: &House) -> u64 {
    house.satellite.status().unwrap_or_default()["lease"]["certificate_generation"].as_u64().unwrap_or_default()
}

fn life(dir: &Path) -> Result<()> {
    let (plug, liar) = (Device::new("plug")?, Device::new("liar")?);
    let settings = format!("certificate_life = \"1m\"\n{FAST_ARCHIVE}");
    let mut relay = Relay::new(dir, &settings)?;
    relay.start()?;
    let mut secrets = Secrets::default();
    let authority = relay.data_dir().join("authority");
    secrets.add_key("the authority's key", &std::fs::read_to_string(authority.join("authority.pem"))?)?;
    secrets.add_key("the relay's key", &std::fs::read_to_string(authority.join("server.pem"))?)?;
    let mut said = String::new();

    // Errors before there is an identity: a wrong token, a used lease, a mistyped code, a relay that is not there.
    let mut satellite = Satellite::new(dir, "attic", &[plug.port(), liar.port()])?;
    let (lease, wrong) = (relay.lease("attic", &[])?, relay.lease("wrong", &[])?);
    for lease in [&lease, &wrong] {
        secrets.add_token("a lease's token", &lease.token)?;
        secrets.add("a join code", lease.join_code.as_str());
    }
    let url = format!("https://localhost:{}", relay.web.port());
    let parts = ["lease", "set", "--relay", &url, "--id", &lease.id, "--ca-pin", &lease.ca_pin];
    said += &satellite.command(&parts, &format!("{}\n", wrong.token))?.all();
    said += &satellite.enrol(&lease.join_code.replacen('A', "B", 1))?.all();
    relay.web.cut();
    said += &satellite.enrol(&lease.join_code)?.all();
    relay.web.mend();
    said += &satellite.enrol(&lease.join_code)?.success()?;
    secrets.add_identity("at first", &satellite)?;
    said += &Satellite::new(dir, "second", &[])?.enrol(&lease.join_code)?.all();

    satellite.start()?;
    let id = satellite.id()?;
    let house = House { relay, satellite, id };
    house.wait_for_link(true)?;
    liar.behave(Manner::Garbage);
    house.configure(&format!("{}{}", plug.as_http("1s"), liar.as_prometheus("1s")))?;
    house.wait_for_polls(&plug, 2)?;

    // A renewal over the live session, and the programs as they run with it.
    let before = generation(&house);
    wait::until_true("a renewal", Duration::from_secs(120), || Ok(generation(&house) > before))?;
    secrets.add_identity("after a renewal", &house.satellite)?;
    let mut texts = Vec::new();
    for id in [house.satellite.process_id(), house.relay.process_id()].into_iter().flatten() {
        texts.extend(process_texts(id));
    }
    // Away until the certificate has ended, then back by its key.
    house.relay.session.cut();
    house.relay.web.cut();
    let ends = stolen_identity(&house.satellite.state_dir())?["not_after_ms"].as_i64().context("its end")?;
    wait::until_true("the certificate ends", Duration::from_secs(120), || Ok(wait::wall_ms() > ends + 2_000))?;
    secrets.add_identity("when it ended", &house.satellite)?;
    house.relay.session.mend();
    house.relay.web.mend();
    house.wait_for_link(true).context("after the certificate ended")?;
    secrets.add_identity("after a recovery", &house.satellite)?;
    let recovered = house.relay.satellite(&house.id)?;
    ensure!(recovered["recoveries"].as_u64() >= Some(1) || generation(&house) > 2, "{recovered:#}");

    house.relay.command(&["satellite", "revoke", &house.id])?.success()?;
    wait::until_true("the owner is told", SOON, || {
        Ok(house.satellite.status()?["link"].to_string().to_lowercase().contains("revoked"))
    })?;
    secrets.add_identity("at the end", &house.satellite)?;
    said += &shown(&house)?;
    search(dir, &secrets, &said, &texts)
}

/// All that both command lines show of a satellite.
fn shown(house: &House) -> Result<String> {
    let mut shown = String::new();
    for arguments in [vec!["status"], vec!["status", "--json"], vec!["gaps"], vec!["lease", "show"], vec!["check"]] {
        shown += &house.satellite.command(&arguments, "")?.all();
    }
    for arguments in [
        vec!["satellite", "list"],
        vec!["satellite", "show", &house.id, "--json"],
        vec!["lease", "list"],
        vec!["lease", "list", "--json"],
        vec!["config", "get", &house.id],
    ] {
        shown += &house.relay.command(&arguments)?.all();
    }
    Ok(shown)
}

fn search(dir: &Path, secrets: &Secrets, said: &str, texts: &[(String, Vec<u8>)]) -> Result<()> {
    secrets.must_not_be_in("what the commands said", said.as_bytes())?;
    for (place, text) in texts {
        secrets.must_not_be_in(place, text)?;
    }
    let (mut searched, mut kept) = (0, 0);
    for file in files_below(dir)? {
        let own = file.components().any(|part| part.as_os_str() == "identity" || part.as_os_str() == "authority");
        if own {
            kept += 1;
            let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{} has mode {mode:o}", file.display());
        } else {
            searched += 1;
            secrets.must_not_be_in(&file.display().to_string(), &std::fs::read(&file)?)?;
        }
    }
    let logs = std::fs::read_to_string(dir.join("relay/relay.log"))?;
    ensure!(logs.contains("DEBUG"), "the log was not at its most talkative");
    ensure!(secrets.0.len() > 40 && searched > 8 && kept >= 3, "{} secrets, {searched} files", secrets.0.len());
    Ok(())
}

fn cores(dir: &Path) -> Result<()> {
    // As on a machine that writes cores: whoever starts the programs allows them.
    let limit = getrlimit(Resource::Core);
    if limit.maximum != Some(0) {
        setrlimit(Resource::Core, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    let programs = programs::programs()?;
    let start = |name: &str, command: &mut Command| -> Result<Process> {
        command.current_dir(dir);
        Process::start(name, command, &dir.join(format!("{name}.log")))
    };
    let data = dir.join("data");
    let mut serve = Command::new(&programs.relay);
    serve.args(["serve", "--web-listen", "127.0.0.1:0", "--satellites-listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
    let mut relay = start("relay", &mut serve)?;
    let addresses = data.join("addresses.json");
    wait::until_true("the relay serves", SOON, || {
        relay.check_running()?;
        Ok(addresses.exists())
    })?;
    let mut satellite = Satellite::new(dir, "attic", &[])?;
    satellite.start()?;
    let id = satellite.process_id().context("it runs")?;
    for id in [relay.id(), id] {
        let limits = std::fs::read_to_string(format!("/proc/{id}/limits"))?;
        let cores = limits.lines().find(|line| line.starts_with("Max core file size")).context("a limit of cores")?;
        ensure!(cores.split_whitespace().filter(|word| *word == "0").count() == 2, "{cores}");
    }
    relay.signal(Signal::ABORT)?;
    let ended = relay.wait_for_end(SOON)?;
    ensure!(ended.signal() == Some(Signal::ABORT.as_raw()) && !ended.core_dumped(), "{ended:?}");
    satellite.signal(Signal::ABORT)?;
    wait::until_true("the satellite has ended", SOON, || Ok(satellite.check_running().is_err()))?;
    let left: Vec<PathBuf> = files_below(dir)?.into_iter().filter(|file| is_core(file)).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn is_core(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let elf = std::fs::read(file).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"));
    elf || name == "core" || name.starts_with("core.")
}
