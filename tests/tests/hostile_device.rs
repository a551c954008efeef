//! Devices that want to do harm hurt nobody but themselves: they are in error soon, with a reason that helps, the
//! satellite's memory hardly grows, and the other devices are polled on time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use satellite_relay::authority::{Authority, Door, Names};
use satellite_relay::data_dir::DataDir;
use satellite_shared::clock::{Clock as _, SystemClock};
use satellite_tests::device::Device;
use satellite_tests::hostile_device::{ALL, HostileDevice, PORTS, tcp_device};
use satellite_tests::house::House;
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::{memory, processor, wait};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

/// How much the satellite's memory may grow by, whatever a device does.
const GROWTH_KIB_MAX: u64 = 8 << 10;
/// How long a machine that tests may take for what a satellite does within ten seconds.
const IN_ERROR_WITHIN: Duration = Duration::from_secs(120);

/// Devices that attack at the same time.
const TOGETHER: usize = 5;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("devices_that_attack_hurt_nobody_but_themselves", PYTHON, attacks),
        journey("a_port_that_accepts_and_then_attacks_is_an_answer_and_costs_nothing", PYTHON, ports),
    ])
}

/// A server's certificate of an authority that no satellite knows.
fn stranger(dir: &Path) -> Result<Arc<rustls::ServerConfig>> {
    let now_ms = SystemClock.now().wall_ms;
    let authority = Authority::load_or_create(&DataDir::open(&dir.join("stranger"))?, now_ms)?;
    authority.renew_server_certificate(&Names::of_this_machine(), now_ms)?;
    Ok(authority.server_config(Door::Web, Arc::new(SystemClock))?)
}

/// Reason and detail of the gaps that a satellite knows of, by device.
fn gaps_by_device(house: &House) -> Result<BTreeMap<String, Vec<(String, String)>>> {
    let gaps = house.satellite.gaps()?;
    let mut by_device: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for gap in gaps["gaps"].as_array().context("no list of gaps")? {
        let text = |field: &str| gap[field].as_str().unwrap_or_default().to_owned();
        by_device.entry(text("device")).or_default().push((text("reason"), text("detail")));
    }
    Ok(by_device)
}

fn attacks(dir: &Path) -> Result<()> {
    let good = Device::new("good")?;
    let hostile = ALL.iter().map(|attack| HostileDevice::new(*attack)).collect::<Result<Vec<_>>>()?;
    let certificate = stranger(dir)?;
    hostile.iter().for_each(|device| device.show(Arc::clone(&certificate)));
    let mut house = House::new(dir, &[&good])?;
    let mut ports: Vec<u16> = hostile.iter().map(HostileDevice::port).collect();
    ports.push(good.port());
    house.satellite.stop()?;
    house.satellite.allow(&ports)?;
    house.satellite.start()?;
    house.configure(&good.as_http("1s"))?;
    house.wait_for_polls(&good, 3)?;
    let process = house.satellite.process_id().context("the satellite runs")?;
    let (began_ms, waited) = (wait::mono_ms(), processor::waited_for_turn(process)?);
    for together in hostile.chunks(TOGETHER) {
        attack(&house, &good, together)?;
    }
    let lasted = Duration::from_millis(wait::mono_ms() - began_ms);
    // Nothing is polled by a process that gets no processor: that much is the machine's, not the attackers'.
    let waited = processor::waited_for_turn(process)?.saturating_sub(waited);
    let verdict = house.finish(&[&good])?;
    let judged = verdict.details["devices"][0].as_object().context("what was judged of the good device")?;
    let missed = judged["missed"].as_object().context("what it missed")?;
    // Nor is a poll over in time where that was much.
    let starved = waited * 10 > lasted;
    ensure!(
        missed.keys().all(|reason| reason == "late" || (starved && reason == "timeout")),
        "the good device missed polls: {missed:?}"
    );
    let (stored, due) = (judged["stored"].as_u64().context("polls")?, lasted.saturating_sub(waited).as_secs());
    ensure!(
        stored * 4 >= due * 3,
        "the good device was polled {stored} times in {lasted:?}, of which the satellite waited {waited:?} for its turn"
    );
    Ok(())
}

/// Some devices attack beside the good one, until each has been seen through.
fn attack(house: &House, good: &Device, together: &[HostileDevice]) -> Result<()> {
    let process = house.satellite.process_id().context("the satellite runs")?;
    let before = memory::of(process)?;
    memory::forget_peak(process)?;
    let devices: String = together.iter().map(|device| device.as_device("2s")).collect();
    house.configure(&format!("{}{devices}", good.as_http("1s")))?;
    let names: Vec<&str> = together.iter().map(|device| device.attack().name).collect();
    let mut last = BTreeMap::new();
    let waited = wait::until_true(&format!("the right gaps of {names:?}"), IN_ERROR_WITHIN, || {
        last = gaps_by_device(house)?;
        Ok(together.iter().all(|device| is_seen_through(&last, device)))
    });
    waited.with_context(|| {
        let missing = together.iter().filter(|device| !is_seen_through(&last, device));
        let told = missing.map(|device| format!("{:?}: {:?}", device.attack(), last.get(device.attack().name)));
        told.collect::<Vec<_>>().join("\n")
    })?;
    // Two configurations a group: the relay takes ten a minute.
    house.wait_for_polls(good, 12)?;
    let after = memory::of(process)?;
    // Not what the program read of itself: a build for tests is large, and each attack meets parts of it that nothing else uses.
    let read_kib = after.file_kib.saturating_sub(before.file_kib);
    let grown_kib = after.peak_kib.saturating_sub(before.rss_kib + read_kib);
    ensure!(grown_kib <= GROWTH_KIB_MAX, "the satellite grew by {grown_kib} KiB under {names:?}");
    house.configure(&good.as_http("1s"))?;
    // What one group takes is not counted among the next one's.
    wait::until_true(&format!("nobody reads {names:?}"), IN_ERROR_WITHIN, || {
        Ok(!together.iter().any(HostileDevice::is_read))
    })
}

fn is_seen_through(gaps: &BTreeMap<String, Vec<(String, String)>>, device: &HostileDevice) -> bool {
    let attack = device.attack();
    let fits = |(reason, detail): &(String, String)| {
        attack.reasons.contains(&reason.as_str()) && !detail.is_empty() && detail.contains(attack.says)
    };
    device.asked() > 0 && gaps.get(attack.name).is_some_and(|gaps| gaps.iter().any(fits))
}

/// A port whose queue of connections is full: nothing answers there, not even with a refusal.
fn full_port() -> Result<(Vec<Socket>, u16)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0))))?;
    listener.listen(0)?;
    let address = listener.local_addr()?;
    let port = address.as_socket().context("an address")?.port();
    let mut sockets = vec![listener];
    for _ in 0..20 {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let is_full = client.connect_timeout(&address, Duration::from_millis(300)).is_err();
        sockets.push(client);
        if is_full {
            return Ok((sockets, port));
        }
    }
    anyhow::bail!("the kernel takes any number of connections that nobody accepts")
}

/// What one poll of a device gives beside its schedule.
fn probed(house: &House, device: &str) -> Result<BTreeMap<String, f64>> {
    let said = house.satellite.command(&["probe", device, "--json"], "")?.success()?;
    let said: Value = serde_json::from_str(&said).context("a probe's document")?;
    ensure!(said["failure"].is_null(), "{device}: {said}");
    let samples = said["samples"].as_array().context("samples")?;
    let pair = |sample: &Value| Some((sample["name"].as_str()?.to_owned(), sample["value"].as_f64()?));
    Ok(samples.iter().filter_map(pair).collect())
}

fn succeeds(house: &House, device: &str) -> Result<bool> {
    Ok(probed(house, device)?["probe_success"] > 0.5)
}

fn ports(dir: &Path) -> Result<()> {
    let good = Device::new("good")?;
    let hostile = PORTS.iter().map(|attack| HostileDevice::new(*attack)).collect::<Result<Vec<_>>>()?;
    let (_queue, full) = full_port()?;
    let mut house = House::new(dir, &[&good])?;
    let mut allowed: Vec<u16> = hostile.iter().map(HostileDevice::port).collect();
    allowed.extend([good.port(), full]);
    house.satellite.stop()?;
    house.satellite.allow(&allowed)?;
    house.satellite.start()?;
    house.configure(&good.as_http("1s"))?;
    house.wait_for_polls(&good, 2)?;
    let process = house.satellite.process_id().context("the satellite runs")?;
    let before = memory::of(process)?;
    memory::forget_peak(process)?;
    let devices: String = hostile.iter().map(|device| device.as_device("10s")).collect();
    house.configure(&format!("{}{devices}{}", good.as_http("1s"), tcp_device("full", full, "1s")))?;
    for device in &hostile {
        let name = device.attack().name;
        wait::until_true(&format!("{name} accepts"), IN_ERROR_WITHIN, || succeeds(&house, name))?;
        wait::until_true(&format!("polls of {name}"), IN_ERROR_WITHIN, || Ok(device.asked() > 3))?;
    }
    ensure!(!succeeds(&house, "full")?, "a port that does not answer was taken for open");
    let grown_kib = memory::of(process)?.peak_kib.saturating_sub(before.rss_kib);
    ensure!(grown_kib <= GROWTH_KIB_MAX, "the satellite grew by {grown_kib} KiB");
    house.finish(&[&good]).map(drop)
}
