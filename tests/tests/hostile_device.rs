//! Devices that want to do harm hurt nobody but themselves: they are in error soon, with a reason that helps, the
//! satellite's memory hardly grows, and the other devices are polled on time.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use satellite_relay::authority::{Authority, Door, Names};
use satellite_relay::data_dir::DataDir;
use satellite_shared::clock::{Clock as _, SystemClock};
use satellite_tests::device::Device;
use satellite_tests::hostile_device::{ALL, HostileDevice};
use satellite_tests::house::House;
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::{memory, wait};
use serde_json::Value;

/// How much the satellite's memory may grow by, whatever a device does.
const GROWTH_KIB_MAX: u64 = 8 << 10;
/// How long a machine that tests may take for what a satellite does within ten seconds.
const IN_ERROR_WITHIN: Duration = Duration::from_secs(120);

/// Devices that attack at the same time.
const TOGETHER: usize = 5;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![journey("devices_that_attack_hurt_nobody_but_themselves", PYTHON, attacks)])
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
    for together in hostile.chunks(TOGETHER) {
        attack(&house, &good, together)?;
    }
    let verdict = house.finish(&[&good])?;
    let judged = verdict.details["devices"][0].as_object().context("what was judged of the good device")?;
    let missed = judged["missed"].as_object().context("what it missed")?;
    ensure!(missed.keys().all(|reason| reason == "late"), "the good device missed polls: {missed:?}");
    let late = missed.values().filter_map(Value::as_u64).sum::<u64>();
    let polls = judged["requests"].as_u64().context("how often it was asked")?;
    ensure!(
        late * 4 <= polls,
        "the good device was asked {polls} times, and {late} times not, as the satellite was late"
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
    house.wait_for_polls(good, 2)?;
    let grown_kib = memory::of(process)?.peak_kib.saturating_sub(before.rss_kib);
    ensure!(grown_kib <= GROWTH_KIB_MAX, "the satellite grew by {grown_kib} KiB under {names:?}");
    Ok(())
}

fn is_seen_through(gaps: &BTreeMap<String, Vec<(String, String)>>, device: &HostileDevice) -> bool {
    let attack = device.attack();
    let fits = |(reason, detail): &(String, String)| {
        attack.reasons.contains(&reason.as_str()) && !detail.is_empty() && detail.contains(attack.says)
    };
    device.asked() > 0 && gaps.get(attack.name).is_some_and(|gaps| gaps.iter().any(fits))
}
