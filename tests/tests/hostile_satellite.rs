//! A satellite with a good identity and bad intentions: everything it says is refused with its code or kept as its own
//! affair, nothing of another satellite changes, and the relay's memory stays bounded.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use satellite_shared::gap::{Gap, Lost, Reason};
use satellite_shared::id::Epoch;
use satellite_shared::metric::Kind;
use satellite_shared::wire::block::{Body, FrameKind};
use satellite_shared::wire::to_relay::{Authenticate, ConfigItem, ConfigState, ConfigStatus, Progress, Renew, ToRelay};
use satellite_shared::wire::to_satellite::{Ack, Nack, NackCode, RefusalCode, Refused, ToSatellite};
use satellite_tests::checker::Verdict;
use satellite_tests::device::Device;
use satellite_tests::house::{FAST_ARCHIVE, House};
use satellite_tests::impostor::{ANSWERED_WITHIN, Impostor, Session, authenticate, forge, stolen_identity};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::satellite::Satellite;
use satellite_tests::{memory, process, wait};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

const EPOCH: Epoch = Epoch(0x0bad);
/// What the relay may grow by under any attack here: a debug build, two connections' worth of bounds.
const GROWTH_KIB_MAX: u64 = 400 << 10;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("who_claims_to_be_another_satellite_is_refused_and_stores_only_under_its_own_name", PYTHON, claims),
        journey("what_is_no_authentication_is_refused_with_its_code", PYTHON, greetings),
        journey("forged_numbers_are_answered_and_are_the_forger_s_own_affair", PYTHON, numbers),
        journey("frames_that_lie_are_refused_or_set_aside", PYTHON, lies),
        journey("names_lead_nowhere_but_into_columns_and_steer_no_terminal", PYTHON, names),
        journey("descriptors_and_epochs_without_end_cost_bounded_memory", PYTHON, memory),
        journey("floods_end_their_own_session_and_nobody_else_s", PYTHON, floods),
        journey("who_never_reads_is_let_go_and_holds_up_nobody", PYTHON, deaf),
        journey("a_request_for_a_certificate_gets_its_key_signed_and_no_wish_granted", PYTHON, requests),
    ])
}

/// A house whose satellite behaves, and somebody who does not, with an identity of his own.
struct Scene {
    house: House,
    port: u16,
    plug: Device,
    thief: Impostor,
    identity: Value,
    id: String,
}

impl Scene {
    fn new(dir: &Path) -> Result<Self> {
        Self::committing(dir, FAST_ARCHIVE)
    }

    /// One whose relay commits as often as this says.
    fn committing(dir: &Path, settings: &str) -> Result<Self> {
        let plug = Device::new("plug")?;
        let settings = format!("{settings}[limits]\nenrolments_per_second = 100.0\nenrolments_at_once = 100\n");
        let house = House::with_settings(dir, &[&plug], &settings, None)?;
        house.configure(&plug.as_http("1s"))?;
        let other = Satellite::new(dir, "thief", &[])?;
        other.enrol(&house.relay.lease("thief", &[])?.join_code)?.success()?;
        let identity = stolen_identity(&other.state_dir())?;
        let id = other.id()?;
        house.wait_for_polls(&plug, 2)?;
        // Not over the link, which is the other satellite's.
        let (_, port) = house.relay.doors()?;
        Ok(Self { thief: Impostor::with_identity(&identity)?, house, port, plug, identity, id })
    }

    /// The thief, let in.
    fn enter(&self) -> Result<Session> {
        Ok(self.thief.enter(self.port, authenticate(&self.identity, &[EPOCH])?)?.0)
    }

    /// The same with a series 0 that may be used.
    fn enter_with_series(&self, epochs: &[Epoch]) -> Result<Session> {
        let mut session = self.enter()?;
        for &epoch in epochs {
            session.frame(&forge::descriptor(epoch, 0, forge::series("forged", &[])))?;
        }
        Ok(session)
    }

    /// The most memory that the relay ever had.
    fn peak_kib(&self) -> Result<u64> {
        let id = self.house.relay.process_id().context("the relay runs")?;
        Ok(memory::of(id)?.peak_kib)
    }

    /// All that the well-behaved satellite was to do was done, and the relay still runs.
    fn ends_well(mut self) -> Result<()> {
        self.house.wait_for_polls(&self.plug, 2)?;
        ensure!(self.house.is_linked()?, "the well-behaved satellite lost its link");
        self.house.settle()?;
        let verdict = Verdict::of(&self.house.relay.records(), &[&self.plug])?;
        let account = self.house.relay.account(&self.house.id)?;
        verdict.must_agree(&self.house.id, &account)?;
        // The forger's own numbers may have holes.
        let faults = |of: &Value| -> u64 {
            let names = ["lost", "duplicated", "duplicates", "claims_differ", "unexpected", "altered", "out_of_order"];
            names.iter().filter_map(|name| of[name].as_u64()).sum()
        };
        let epochs = verdict.details["epochs"].as_array().context("epochs")?;
        let own = epochs.iter().filter(|epoch| epoch["satellite"] == self.house.id.as_str());
        let devices = verdict.details["devices"].as_array().context("devices")?;
        for part in own.chain(devices) {
            ensure!(faults(part) == 0, "the well-behaved satellite was harmed: {part:#}");
        }
        ensure!(verdict.unexpected + verdict.altered == 0, "{verdict:?}");
        Ok(())
    }
}

fn refused(session: &mut Session) -> Result<RefusalCode> {
    session.hear_until("REFUSED", |event| {
        if let ToSatellite::Refused(Refused { code, .. }) = event { Some(code) } else { None }
    })
}

fn nack(session: &mut Session) -> Result<Nack> {
    session.hear_until("NACK", |event| if let ToSatellite::Nack(nack) = event { Some(nack) } else { None })
}

/// Waits until this record is acknowledged.
fn acknowledged(session: &mut Session, epoch: Epoch, seq: u64) -> Result<()> {
    session.hear_until(&format!("the ACK of {seq} of {epoch}"), |event| match event {
        ToSatellite::Ack(Ack { stored, .. }) => {
            let there = stored.iter().filter(|stored| stored.epoch == epoch);
            there
                .flat_map(|stored| stored.ranges.as_slice())
                .any(|&(first, last)| first <= seq && seq <= last)
                .then_some(())
        }
        ToSatellite::Hello(_)
        | ToSatellite::Authenticated(_)
        | ToSatellite::Refused(_)
        | ToSatellite::Config(_)
        | ToSatellite::Nack(_)
        | ToSatellite::Certificate(_)
        | ToSatellite::Heartbeat(_)
        | ToSatellite::Drain(_)
        | ToSatellite::Error(_) => None,
    })
}

fn complaint(session: &mut Session, code: &str) -> Result<String> {
    session.hear_until(&format!("ERROR {code}"), |event| {
        if let ToSatellite::Error(complaint) = event
            && complaint.code == code
        {
            Some(complaint.message)
        } else {
            None
        }
    })
}

/// Whoever does this hears this code, if he listens, and is closed for this reason.
fn violates(
    scene: &Scene,
    what: &str,
    (code, why): (&str, &str),
    act: impl FnOnce(&mut Session) -> Result<()>,
) -> Result<()> {
    let mut session = scene.enter_with_series(&[EPOCH]).context(what.to_owned())?;
    let log = || std::fs::read_to_string(scene.house.relay.log());
    let before = log()?.len();
    // A session that is closed while it is written to is closed.
    drop(act(&mut session));
    let heard = session.hear_the_end().context(what.to_owned())?;
    let reason = format!("disconnected why=\"{why}\"");
    let noted = wait::until_true(&format!("{what}: the log's {reason}"), ANSWERED_WITHIN, || {
        let log = log()?;
        Ok(log[before..].lines().any(|line| line.contains(&scene.id) && line.contains(&reason)))
    });
    noted.with_context(|| heard.clone())?;
    // Who still writes when the relay has gone does not get its last words.
    let told = heard.contains(&format!("code: \"{code}\"")) || !heard.contains("code: ");
    ensure!(told, "{what}: no ERROR {code} in {heard}");
    Ok(())
}

fn claims(dir: &Path) -> Result<()> {
    let scene = Scene::new(dir)?;
    let victim = stolen_identity(&scene.house.satellite.state_dir())?;
    let before = scene.house.relay.account(&scene.house.id)?;
    for part in ["token", "lease"] {
        let mut mixed = scene.identity.clone();
        mixed[part] = victim[part].clone();
        let mut session = scene.thief.connect(scene.port)?;
        session.say(&ToRelay::Authenticate(authenticate(&mixed, &[])?))?;
        ensure!(refused(&mut session)? == RefusalCode::Credentials, "with another's {part}");
        session.hear_the_end()?;
    }
    // Whoever is let in is who the certificate says, whatever it announces: another's epoch is an epoch of its own.
    let epoch = wait::until("an epoch of the victim", ANSWERED_WITHIN, || {
        let account: Value =
            serde_json::from_str(&scene.house.relay.command(&["account", &scene.house.id, "--json"])?.success()?)?;
        Ok(account["epochs"][0]["epoch"].as_str().and_then(|epoch| epoch.parse::<Epoch>().ok()))
    })?;
    let (mut session, welcome) = scene.thief.enter(scene.port, authenticate(&scene.identity, &[epoch])?)?;
    ensure!(welcome.satellite.as_str() == scene.id, "it is let in as {}", welcome.satellite);
    // Of the epoch that it names it is told what it has stored itself, which is nothing.
    let told = welcome.stored.iter().any(|stored| !stored.ranges.is_empty());
    ensure!(!told, "it is told what another has stored: {:?}", welcome.stored);
    session.frame(&forge::descriptor(epoch, 0, forge::series("forged", &[])))?;
    // Numbers that the victim has not reached yet: were they taken as its own, its records would be dropped as known.
    session.frame(&forge::samples(epoch, 1, 0, &[1.0; 50]))?;
    session.frame(&forge::samples(epoch, 51, 0, &[2.0; 1_500]))?;
    acknowledged(&mut session, epoch, 1_550)?;
    let forged = scene.house.relay.account(&scene.id)?;
    ensure!((forged.due, forged.stored, forged.balanced) == (1_550, 1_550, true), "{forged:?}");
    // A heartbeat about the victim's epoch counts as the thief's.
    let progress =
        Progress { clock_ms: 0, epoch, last_seq: 1 << 40, due: 1 << 40, waiting: 1 << 40, buffer_bytes: 0, polls: 0 };
    session.say(&ToRelay::Heartbeat(progress))?;
    wait::until_true("the thief's own claim", ANSWERED_WITHIN, || {
        Ok(scene.house.relay.account(&scene.id)?.due == 1 << 40)
    })?;
    let after = scene.house.relay.account(&scene.house.id)?;
    ensure!(after.due >= before.due && after.due < 10_000 && after.balanced, "the victim's account: {after:?}");
    scene.ends_well()
}

fn greetings(dir: &Path) -> Result<()> {
    let scene = Scene::new(dir)?;
    let good = authenticate(&scene.identity, &[EPOCH])?;
    let many: Vec<Epoch> = (0..1_001).map(Epoch).collect();
    let odd = [
        ("too many epochs", RefusalCode::Protocol, authenticate(&scene.identity, &many)?),
        ("an epoch twice", RefusalCode::Protocol, authenticate(&scene.identity, &[EPOCH, EPOCH])?),
        ("a name that steers", RefusalCode::Protocol, Authenticate { hostname: "\u{1b}[2J".into(), ..good.clone() }),
        ("a giant name", RefusalCode::Protocol, Authenticate { agent_version: "x".repeat(300), ..good.clone() }),
        ("no instance", RefusalCode::Protocol, Authenticate { instance: String::new(), ..good.clone() }),
        ("a protocol of the future", RefusalCode::Version, Authenticate { protocol: 99, ..good }),
    ];
    for (what, code, authenticate) in odd {
        let mut session = scene.thief.connect(scene.port)?;
        session.say(&ToRelay::Authenticate(authenticate))?;
        ensure!(refused(&mut session).context(what)? == code, "{what}");
        session.hear_the_end().context(what)?;
    }
    // Whatever comes before it is refused too, and does nothing.
    let first: [(&str, Message); 4] = [
        ("a frame", Message::binary(forge::samples(EPOCH, 1, 0, &[1.0]))),
        ("a request for a certificate", Message::text(r#"{"event":"RENEW","data":{"csr":""}}"#)),
        ("an unknown event", Message::text(r#"{"event":"OPEN_SESAME","data":{}}"#)),
        ("no event", Message::text("GET / HTTP/1.1")),
    ];
    for (what, message) in first {
        let mut session = scene.thief.connect(scene.port)?;
        session.send(message)?;
        ensure!(refused(&mut session).context(what)? == RefusalCode::Protocol, "{what}");
        session.hear_the_end().context(what)?;
    }
    let account = scene.house.relay.account(&scene.id)?;
    ensure!(account.due == 0, "{account:?}");
    scene.ends_well()
}

fn numbers(dir: &Path) -> Result<()> {
    let scene = Scene::new(dir)?;
    for (what, first_seq) in [("number 0", 0), ("a number that overflows", u64::MAX)] {
        violates(&scene, what, ("damaged", "damaged frame"), |session| {
            session.frame(&forge::samples(EPOCH, first_seq, 0, &[1.0]))
        })?;
    }
    let mut session = scene.enter_with_series(&[EPOCH])?;
    session.frame(&forge::samples(EPOCH, 1 << 63, 0, &[1.0]))?;
    ensure!(nack(&mut session)?.code == NackCode::Conflict, "beyond what a store can count");

    // Backwards, then over it in part, then again with another content: stored once, as it was first.
    session.frame(&forge::samples(EPOCH, 101, 0, &[1.0; 10]))?;
    session.frame(&forge::samples(EPOCH, 1, 0, &[2.0; 10]))?;
    acknowledged(&mut session, EPOCH, 10)?;
    session.frame(&forge::samples(EPOCH, 105, 0, &[3.0; 10]))?;
    let conflict = nack(&mut session)?;
    ensure!((conflict.code, conflict.first_seq) == (NackCode::Conflict, 105), "{conflict:?}");
    session.frame(&forge::samples(EPOCH, 1, 0, &[4.0; 10]))?;
    acknowledged(&mut session, EPOCH, 1)?;
    let account = scene.house.relay.account(&scene.id)?;
    ensure!((account.stored, account.explained) == (20, 0), "{account:?}");

    // Holes: a bounded number of them is kept open.
    let mut refusals = 0;
    for hole in 0..1_100u64 {
        session.frame(&forge::samples(EPOCH, 1_000 + 10 * hole, 0, &[5.0]))?;
    }
    let last = nack(&mut session)?;
    refusals += u32::from(last.code == NackCode::Retry);
    ensure!(refusals == 1 && last.message.contains("holes"), "{last:?}");

    // A loss may be declared of any epoch, and is the declarer's: in bounds, one frame's worth of epochs at most.
    let lost = |n: u64, epoch: u128| Gap {
        device: None,
        metric: None,
        from_ms: wait::wall_ms(),
        to_ms: wait::wall_ms(),
        count: u64::MAX / 4096,
        reason: Reason::Evicted,
        detail: String::new(),
        lost: Some(Lost { epoch: Epoch(epoch), first_seq: 10 * n + 1, last_seq: 10 * n + 2, due_through: u64::MAX }),
    };
    let (many, scattered) = (Epoch(0xf00d), Epoch(0xfeed));
    let epochs: Vec<Gap> = (0..5_000u64).map(|n| lost(0, (1 << 64) + u128::from(n))).collect();
    session.frame(&forge::body(many, 1, 0, &Body::Gaps(epochs)))?;
    acknowledged(&mut session, many, 5_000)?;
    let mut first = 1;
    for _ in 0..20 {
        let holes: Vec<Gap> = (first..first + 100).map(|n| lost(n, scattered.0)).collect();
        session.frame(&forge::body(many, 10_000 + first, 0, &Body::Gaps(holes)))?;
        first += 100;
    }
    acknowledged(&mut session, many, 10_000 + first - 1)?;
    let said = scene.house.relay.command(&["account", &scene.id, "--json"])?.success()?;
    let account: Value = serde_json::from_str(&said)?;
    let epochs = account["epochs"].as_array().context("epochs")?;
    ensure!(epochs.len() <= 10, "{} epochs are kept for one frame of lies", epochs.len());
    let ranges = |epoch: &Value| epoch["ranges"].as_array().map_or(0, Vec::len);
    ensure!(epochs.iter().all(|epoch| ranges(epoch) <= 1_024), "holes without end are kept");
    scene.ends_well()
}

fn lies(dir: &Path) -> Result<()> {
    let scene = Scene::new(dir)?;
    let good = forge::samples(EPOCH, 1, 0, &[1.0; 4]);
    violates(&scene, "a wrong checksum", ("damaged", "damaged frame"), |session| {
        let mut bad = good.clone();
        bad[12] ^= 1;
        session.frame(&bad)
    })?;
    violates(&scene, "an unknown kind", ("damaged", "damaged frame"), |session| {
        let mut bad = good.clone();
        bad[5] = 9;
        session.frame(&forge::seal(bad))
    })?;
    violates(&scene, "a length that is not its own", ("damaged", "damaged frame"), |session| {
        let mut bad = good.clone();
        bad[8] ^= 0x40;
        session.frame(&forge::seal(bad))
    })?;
    violates(&scene, "a frame that is longer than one", ("damaged", "damaged frame"), |session| {
        session.frame(&forge::payload(FrameKind::Samples, forge::RAW, EPOCH, 1, 1, &[0; 7_000]))
    })?;
    violates(&scene, "an event in bytes that are no text", ("malformed", "text that is not UTF-8"), |session| {
        // One unmasked-to-zero text frame of a byte that UTF-8 never has.
        session.bytes(&[0x81, 0x81, 0, 0, 0, 0, 0xff])
    })?;

    // What its header says is right, and its payload is not: set aside whole, and the stream goes on.
    let mut session = scene.enter_with_series(&[EPOCH])?;
    let bomb = zstd::bulk::compress(&vec![0; 512 << 20], 3)?;
    let fits = &bomb[..bomb.len().min(6_900)];
    let undecodable = [
        ("a bomb", forge::payload(FrameKind::Samples, forge::ZSTD, EPOCH, 1, 10, fits)),
        ("a bomb of gaps", forge::payload(FrameKind::Gaps, forge::ZSTD, EPOCH, 11, 10, fits)),
        ("noise", forge::payload(FrameKind::Samples, forge::RAW, EPOCH, 21, 10, &[0xa5; 900])),
        ("an unknown codec", forge::payload(FrameKind::Samples, 7, EPOCH, 31, 10, &[0; 90])),
        ("more records than it holds", {
            let mut frame = forge::samples(EPOCH, 41, 0, &[1.0; 4]);
            frame[40] = 10;
            frame[48] = 10;
            forge::seal(frame)
        }),
        ("more due than it holds", {
            let mut frame = forge::samples(EPOCH, 51, 0, &[1.0; 10]);
            frame[48] = 11;
            forge::seal(frame)
        }),
    ];
    for (what, frame) in &undecodable {
        session.frame(frame).context(*what)?;
    }
    acknowledged(&mut session, EPOCH, 60)?;
    session.frame(&forge::samples(EPOCH, 61, 0, &[1.0; 10]))?;
    acknowledged(&mut session, EPOCH, 70)?;
    let account = scene.house.relay.account(&scene.id)?;
    ensure!((account.stored, account.set_aside) == (10, 61), "{account:?}");

    // What a series is can't be changed after it was said, and what was not said is asked for.
    session.frame(&forge::descriptor(EPOCH, 0, forge::series("another", &[])))?;
    ensure!(complaint(&mut session, "series")?.contains("another descriptor"));
    session.frame(&forge::samples(EPOCH, 71, 77, &[1.0]))?;
    ensure!(nack(&mut session)?.code == NackCode::UnknownSeries);
    scene.ends_well()
}

/// Everything below a folder, relative to it.
fn tree(dir: &Path) -> Result<Vec<String>> {
    let (mut folders, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(dir)?.to_string_lossy().into_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}

fn names(dir: &Path) -> Result<()> {
    let scene = Scene::new(dir)?;
    let mut session = scene.enter()?;
    let escape = "\u{1b}]0;owned\u{7}\u{1b}[2J";
    // Names that break the grammar are no series; their blocks are set aside.
    let bad_name = forge::series("../../../etc/passwd", &[]);
    let bad_label = forge::series("fine", &[("../date=1970-01-01", "x")]);
    let twice = forge::series("fine", &[("a", "1"), ("a", "2")]);
    let giant = forge::series("fine", &[("a", &"x".repeat(5_000))]);
    for (number, series) in (10..).zip([bad_name, bad_label, twice, giant]) {
        session.frame(&forge::descriptor(EPOCH, number, series))?;
        complaint(&mut session, "series").with_context(|| format!("series {number}"))?;
        session.frame(&forge::samples(EPOCH, u64::from(number), number, &[1.0]))?;
    }
    // A device's name is no path either: it can't even be written by our own types.
    let device = ("../../../../tmp/forged", "fine", Kind::Gauge, "", Vec::<(&str, &str)>::new());
    let raw = postcard::to_stdvec(&vec![device])?;
    session.frame(&forge::payload(FrameKind::Series, forge::RAW, EPOCH, 20, 1, &raw))?;
    complaint(&mut session, "series")?;
    // Text that may be anything is anything, in its column.
    let mut free = forge::series("fine", &[("path", "../../../etc"), ("steers", escape)]);
    free.unit = escape.to_owned();
    session.frame(&forge::descriptor(EPOCH, 0, free))?;
    session.frame(&forge::samples(EPOCH, 14, 0, &[1.0]))?;
    let gap = Gap {
        device: None,
        metric: Some(escape.to_owned()),
        from_ms: wait::wall_ms(),
        to_ms: wait::wall_ms(),
        count: 1,
        reason: Reason::Timeout,
        detail: escape.to_owned(),
        lost: None,
    };
    session.frame(&forge::body(EPOCH, 15, 14, &Body::Gaps(vec![gap])))?;
    acknowledged(&mut session, EPOCH, 15)?;
    let items = vec![ConfigItem { path: escape.into(), reason: escape.into() }];
    session.say(&ToRelay::ConfigStatus(ConfigStatus { version: 1, state: ConfigState::Rejected, items }))?;
    wait::until_true("what it says of its configuration is kept", ANSWERED_WITHIN, || {
        Ok(scene.house.relay.satellite(&scene.id)?["config_status"]["version"] == 1)
    })?;
    for command in [
        vec!["records", "--since", "1h"],
        vec!["records", "--since", "1h", "--gaps"],
        vec!["satellite", "show", &scene.id],
        vec!["satellite", "list"],
        vec!["account", &scene.id],
    ] {
        let shown = scene.house.relay.command(&command)?.success()?;
        let steers = shown.chars().any(|c| c.is_control() && c != '\n');
        ensure!(!steers, "`{command:?}` steers the terminal: {shown:?}");
    }
    let records = scene.house.relay.records();
    for file in tree(&records)? {
        let parts: Vec<&str> = file.split('/').collect();
        let plain = match parts.as_slice() {
            ["samples", date, hour, name] => date.starts_with("date=2") && hour.starts_with("hour=") && is_object(name),
            ["gaps", date, name] => date.starts_with("date=2") && is_object(name),
            // What the relay notes for a registry that comes back from a backup.
            ["relays", relay, "latest"] => relay.starts_with("relay-"),
            _ => false,
        };
        ensure!(plain, "an object lies at {file}");
    }
    scene.ends_well()
}

fn is_object(name: &str) -> bool {
    name.strip_suffix(".parquet").is_some_and(|stem| stem.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
}

fn memory(dir: &Path) -> Result<()> {
    let scene = Scene::new(dir)?;
    let before = scene.peak_kib()?;
    // Frames that decode into a hundred times their size, in one epoch until it is too much.
    let label = "x".repeat(3_900);
    let bomb = |epoch: Epoch, first: u32| {
        let all: Vec<_> =
            (0..400).map(|n| forge::series("bomb", &[("a", &label), ("n", &(first + n).to_string())])).collect();
        forge::body(epoch, first.into(), 0, &Body::Series(all))
    };
    ensure!(bomb(EPOCH, 0).len() <= 7_000, "the bomb is one frame: {}", bomb(EPOCH, 0).len());
    violates(&scene, "descriptors without end", ("series", "too many series"), |session| {
        (0..100).try_for_each(|n| session.frame(&bomb(EPOCH, n * 400)))
    })?;
    // And in one epoch after the other, where the oldest is forgotten.
    let mut session = scene.enter()?;
    for n in 0..100 {
        session.frame(&bomb(Epoch(0x1000 + n), 0))?;
    }
    // The highest number in many epochs: no table may be as long as its highest number.
    let mut session = scene.enter_with_series(&[EPOCH]).context("after the bombs")?;
    let epochs: Vec<Epoch> = (0..1_500).map(|n| Epoch(0x2000 + n)).collect();
    for &epoch in &epochs {
        session.frame(&forge::descriptor(epoch, 999_998, forge::series("sparse", &[])))?;
        session.frame(&forge::samples(epoch, 1, 999_998, &[1.0]))?;
    }
    acknowledged(&mut session, epochs[epochs.len() - 1], 1)?;
    let growth = scene.peak_kib()? - before;
    ensure!(growth <= GROWTH_KIB_MAX, "the relay grew by {} MiB", growth >> 10);
    scene.ends_well()
}

fn floods(dir: &Path) -> Result<()> {
    let scene = Scene::committing(dir, "commit_every = \"20s\"\n")?;
    let before = scene.peak_kib()?;
    violates(&scene, "events", ("rate_limited", "too many events"), |session| {
        let progress =
            Progress { clock_ms: 0, epoch: EPOCH, last_seq: 1, due: 1, waiting: 0, buffer_bytes: 0, polls: 0 };
        (0..5_000).try_for_each(|_| session.say(&ToRelay::Heartbeat(progress)))
    })?;
    violates(&scene, "pings", ("rate_limited", "too many pings"), |session| {
        (0..5_000).try_for_each(|_| session.send(Message::Ping(Vec::new().into())))
    })?;
    violates(&scene, "AUTHENTICATE again and again", ("rate_limited", "too many complaints"), |session| {
        let again = ToRelay::Authenticate(authenticate(&scene.identity, &[EPOCH])?);
        (0..60).try_for_each(|_| session.say(&again))
    })?;
    violates(&scene, "RENEW again and again", ("rate_limited", "too many complaints"), |session| {
        (0..60).try_for_each(|_| session.say(&ToRelay::Renew(Renew { csr: "none".into() })))
    })?;
    violates(&scene, "events that nobody knows", ("unsupported", "too many complaints"), |session| {
        (0..60).try_for_each(|_| session.text(r#"{"event":"OPEN_SESAME","data":{}}"#))
    })?;
    violates(&scene, "deep JSON", ("malformed", "too many complaints"), |session| {
        (0..60).try_for_each(|_| session.text(&"[".repeat(200_000)))
    })?;
    violates(&scene, "an event that is too long", ("malformed", "a message that is too long"), |session| {
        session.text(&"x".repeat(300_000))
    })?;
    violates(&scene, "a message that is too long", ("malformed", "a message that is too long"), |session| {
        session.frame(&vec![0; 2 << 20])
    })?;
    violates(&scene, "fragments without end", ("malformed", "a message that is too long"), |session| {
        // A text message that never ends: a first fragment, then empty-handed continuations.
        session.bytes(&[0x01, 0x80, 0, 0, 0, 0])?;
        (0..2_000).try_for_each(|_| {
            let mut fragment = vec![0x00, 0x80 | 126, 0x04, 0x00, 0, 0, 0, 0];
            fragment.resize(8 + 1_024, b'x');
            session.bytes(&fragment)
        })
    })?;
    violates(&scene, "garbage after the upgrade", ("malformed", "not WebSocket"), |session| {
        session.bytes(&[0xff; 100])
    })?;
    // More than the credit at once, which nothing acknowledges so soon.
    violates(&scene, "credit ignored", ("over_credit", "over credit"), |session| {
        // Undecodable, so that nothing but its bytes fills the batch, which closes after twenty seconds.
        (1_000..3_000).try_for_each(|seq| {
            session.frame(&forge::payload(FrameKind::Samples, forge::RAW, EPOCH, seq, 1, &[0xa5; 6_900]))
        })
    })?;
    let growth = scene.peak_kib()? - before;
    ensure!(growth <= GROWTH_KIB_MAX, "the relay grew by {} MiB", growth >> 10);
    scene.ends_well()
}

fn deaf(dir: &Path) -> Result<()> {
    let scene = Scene::new(dir)?;
    let mut session = scene.enter()?;
    // Each unknown series is answered; nobody reads the answers, so that the relay can say nothing more at some point.
    let mut sent = 0u32;
    let frame = forge::samples(EPOCH, 1, 9, &[1.0]);
    session.tcp().set_write_timeout(Some(Duration::from_secs(1)))?;
    let closed = wait::until_true("the deaf one is let go", ANSWERED_WITHIN, || {
        for _ in 0..2_000 {
            if session.bytes(&masked(&frame)).is_err() {
                break;
            }
            sent += 1;
        }
        let log = std::fs::read_to_string(scene.house.relay.log())?;
        Ok(log.lines().any(|line| line.contains(&scene.id) && line.contains("takes nothing any more")))
    });
    closed.with_context(|| format!("{sent} frames; {}", process::tail(&scene.house.relay.log(), 5)))?;
    drop(session);
    scene.ends_well()
}

/// A binary WebSocket frame as a client writes it, with a mask of zeros.
fn masked(payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut frame = vec![0x82, 0x80 | 126];
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

fn requests(dir: &Path) -> Result<()> {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    };

    let scene = Scene::new(dir)?;
    let key = KeyPair::generate()?;
    let good = CertificateParams::default().serialize_request(&key)?.pem()?;
    let other = CertificateParams::default().serialize_request(&KeyPair::generate()?)?;
    let mut unsigned = other.der().to_vec();
    if let Some(last) = unsigned.last_mut() {
        *last ^= 1;
    }
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512)?;
    let refusals = [
        ("RSA of 1024 bits", include_str!("../fixtures/rsa-1024.csr").to_owned()),
        ("RSA of 2048 bits", include_str!("../fixtures/rsa-2048.csr").to_owned()),
        ("secp256k1", include_str!("../fixtures/secp256k1.csr").to_owned()),
        ("a curve of 112 bits", include_str!("../fixtures/secp224r1.csr").to_owned()),
        ("P-521", CertificateParams::default().serialize_request(&p521)?.pem()?),
        ("a signature that is not its own", pem("CERTIFICATE REQUEST", &unsigned)),
        ("a giant", format!("{good}{}", "\n".repeat(20_000))),
        ("a giant inside", pem("CERTIFICATE REQUEST", &vec![0x30; 9_000])),
        ("a private key", key.serialize_pem()),
        ("nothing", String::new()),
    ];
    for (what, csr) in refusals {
        let mut session = scene.enter()?;
        session.say(&ToRelay::Renew(Renew { csr }))?;
        complaint(&mut session, "renewal").with_context(|| what.to_owned())?;
    }
    // Everything that a request may wish for, and be another with.
    let mut wishes = CertificateParams::default();
    wishes.distinguished_name.push(DnType::CommonName, scene.house.id.as_str());
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    wishes.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    wishes.subject_alt_names = vec![
        SanType::URI(format!("spiffe://satellite/{}", scene.house.id).as_str().try_into()?),
        SanType::DnsName("localhost".try_into()?),
    ];
    // rcgen writes no CA:TRUE into a request; what it writes is enough to be tempting.
    let csr = wishes.serialize_request(&key).or_else(|_| {
        wishes.is_ca = IsCa::NoCa;
        wishes.serialize_request(&key)
    })?;
    for csr in [csr.pem()?, include_str!("../fixtures/wishes.csr").to_owned()] {
        let mut session = scene.enter()?;
        session.say(&ToRelay::Renew(Renew { csr }))?;
        let certificate = session.hear_until("CERTIFICATE", |event| {
            if let ToSatellite::Certificate(certificate) = event { Some(certificate) } else { None }
        })?;
        must_be_plain(&certificate.chain, &scene.id)?;
    }
    // What was granted lets in as who it was granted to, and as nobody else.
    let shown = scene.house.relay.satellite(&scene.house.id)?;
    ensure!(shown["certificates"].as_array().map(Vec::len) == Some(1), "the other has got a certificate: {shown:#}");
    scene.ends_well()
}

/// The certificate names this satellite, is good for clients only, and signs nothing.
fn must_be_plain(chain: &str, id: &str) -> Result<()> {
    let der = CertificateDer::from_pem_slice(chain.as_bytes())?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der)?;
    let names: Vec<&str> = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    ensure!(names == [id], "it is for {names:?}");
    let alternatives = certificate.subject_alternative_name()?.context("alternative names")?;
    let own = format!("spiffe://satellite/{id}");
    let wanted = [x509_parser::extensions::GeneralName::URI(&own)];
    ensure!(alternatives.value.general_names == wanted, "{:?}", alternatives.value.general_names);
    let usage = certificate.extended_key_usage()?.context("what it is good for")?.value;
    ensure!(usage.client_auth && !usage.server_auth && !usage.any && usage.other.is_empty(), "{usage:?}");
    ensure!(!certificate.is_ca(), "it is an authority");
    let signs = certificate.key_usage()?.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign());
    ensure!(!signs, "it may sign certificates");
    Ok(())
}

fn pem(label: &str, der: &[u8]) -> String {
    let lines: Vec<String> = der.chunks(48).map(|line| data_encoding::BASE64.encode(line)).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
