//! The config way: what an administrator sets arrives, is checked against the house's rules, and is answered for.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use satellite_tests::device::{Device, Manner};
use satellite_tests::house::{EMPTY_DOCUMENT, House, SOON};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::wait;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("a_configuration_reaches_a_connected_satellite_at_once", &[], reaches_at_once),
        journey("a_configuration_reaches_an_absent_satellite_when_it_comes", &[], reaches_the_absent),
        journey("items_that_are_refused_are_named_and_the_others_apply", PYTHON, refused_items),
        journey("what_the_policy_refused_is_judged_anew_when_it_changes", PYTHON, judged_anew),
        journey("a_paused_device_is_left_alone_and_its_slots_are_explained", PYTHON, paused),
        journey("a_target_outside_the_policy_gets_no_packet", PYTHON, outside_policy),
        journey("a_redirect_leads_nowhere", PYTHON, redirect),
        journey("documents_that_are_none_are_refused_with_their_place", &[], refused_documents),
        journey("a_satellite_that_starts_without_its_relay_polls_at_once", PYTHON, without_relay),
        journey("a_change_leaves_other_devices_alone", PYTHON, difference),
    ])
}

fn reaches_at_once(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let house = House::new(dir, &[&plug])?;
    house.wait_for_link(true)?;
    house.relay.configure(&house.id, &plug.as_http("1s"))?.success()?;
    wait::until_true("the device is polled", Duration::from_secs(10), || Ok(plug.requests() > 0))?;
    house.configure(EMPTY_DOCUMENT)?;
    // What was polled a moment ago may still be on its way.
    let after = plug.requests() + 1;
    let since = wait::mono_ms();
    wait::until_true("three slots pass", SOON, || Ok(wait::mono_ms() > since + 3_000))?;
    ensure!(plug.requests() <= after, "a device that was taken out is still polled");
    Ok(())
}

fn reaches_the_absent(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    house.satellite.stop()?;
    house.relay.configure(&house.id, &plug.as_http("1s"))?.success()?;
    ensure!(plug.requests() == 0);
    house.satellite.start()?;
    wait::until_true("the device is polled", SOON, || Ok(plug.requests() > 0))
}

fn refused_items(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    let document = format!(
        "{}[[device]]\nname = \"future\"\ncollector = \"teleport\"\n\
         [[device]]\nname = \"typo\"\ncollector = \"ping\"\nadress = \"127.0.0.1\"\n",
        plug.as_http("1s")
    );
    house.configure(&document)?;
    house.wait_for_polls(&plug, 3)?;
    wait::until_true("the relay knows what was refused", SOON, || {
        let shown = house.relay.satellite(&house.id)?.to_string();
        Ok(shown.contains("device.future") && shown.contains("teleport") && shown.contains("device.typo"))
    })?;
    house.finish(&[&plug])?;
    Ok(())
}

fn judged_anew(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let mut house = House::new(dir, &[&plug, &page])?;
    let open = format!("loopback_ports = [{}, {}]\n", plug.port(), page.port());
    let strict = format!("{open}paths = [\"/metrics\"]\n");
    let change = |house: &House, policy: &str, names_plug: bool| -> Result<()> {
        house.satellite.set_policy(policy)?;
        house.satellite.signal(Signal::HUP)?;
        wait::until_true("the relay knows what is refused now", SOON, || {
            let shown = house.relay.satellite(&house.id)?["config_status"]["items"].to_string();
            Ok(shown.contains("device.plug.url") == names_plug)
        })
    };
    house.configure(&page.as_prometheus("1s"))?;
    change(&house, &strict, false)?;
    house.configure(&format!("{}{}", plug.as_http("1s"), page.as_prometheus("1s")))?;
    house.wait_for_polls(&page, 3)?;
    ensure!(plug.connections() == 0, "a path that the policy does not list was asked for");
    change(&house, &open, false)?;
    house.wait_for_polls(&plug, 2).context("the policy allows it now")?;
    change(&house, &strict, true)?;
    let before = plug.requests();
    house.wait_for_polls(&page, 3)?;
    ensure!(plug.requests() == before, "the policy forbids it now");
    house.finish(&[&plug, &page])?;
    Ok(())
}

fn paused(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let mut house = House::new(dir, &[&plug, &page])?;
    let resting = plug.as_http("1s").replace("collector = \"http\"", "collector = \"http\"\npaused = true");
    house.configure(&format!("{resting}{}", page.as_prometheus("1s")))?;
    house.wait_for_polls(&page, 6)?;
    ensure!(plug.connections() == 0, "a paused device was polled");
    let verdict = house.finish(&[&page])?;
    // Two metrics, at least four slots.
    ensure!(verdict.reasons.get("paused").is_some_and(|count| *count >= 8), "{:?}", verdict.reasons);
    Ok(())
}

fn outside_policy(dir: &Path) -> Result<()> {
    let (plug, forbidden) = (Device::new("plug")?, Device::new("forbidden")?);
    // The policy lists the port of the first only.
    let mut house = House::new(dir, &[&plug])?;
    let port = forbidden.port();
    house.configure(&format!(
        "{}{}[[device]]\nname = \"spelled\"\ncollector = \"http\"\nurl = \"http://[::ffff:127.0.0.1]:{port}/status\"\nevery = \"1s\"\n\
         [[device.metric]]\nname = \"x\"\npath = \"$.tick\"\n\
         [[device]]\nname = \"named\"\ncollector = \"tcp\"\naddress = \"localhost:{port}\"\nevery = \"1s\"\n\
         [[device]]\nname = \"metadata\"\ncollector = \"http\"\nurl = \"http://169.254.169.254/latest/meta-data\"\nevery = \"1s\"\n\
         [[device.metric]]\nname = \"x\"\npath = \"$.tick\"\n",
        plug.as_http("1s"),
        forbidden.as_http("1s"),
    ))?;
    house.wait_for_polls(&plug, 8)?;
    ensure!(forbidden.connections() == 0, "{} connections to what the policy forbids", forbidden.connections());
    let told = house.satellite.gaps()?.to_string();
    ensure!(told.contains("policy"), "the owner is told which rule: {told}");
    let verdict = house.finish(&[&plug])?;
    ensure!(verdict.reasons.contains_key("policy"), "no gap says policy: {:?}", verdict.reasons);
    Ok(())
}

fn redirect(dir: &Path) -> Result<()> {
    let (plug, forbidden) = (Device::new("plug")?, Device::new("forbidden")?);
    let mut house = House::new(dir, &[&plug])?;
    plug.behave(Manner::Redirects(format!("http://127.0.0.1:{}/status", forbidden.port())));
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 3)?;
    ensure!(forbidden.connections() == 0, "a redirect was followed");
    house.finish(&[&plug])?;
    Ok(())
}

fn refused_documents(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let house = House::new(dir, &[&plug])?;
    house.configure(&plug.as_http("1s"))?;
    let version = house.config_version();
    let many: String = (0..1_001).map(|n| format!("[[device]]\nname = \"d{n}\"\ncollector = \"host\"\n")).collect();
    let huge = format!("# {}\n", "x".repeat(300 << 10));
    let cases = [
        ("[[device]\n", "TOML"),
        ("{\"device\": 3}", "list"),
        ("exec = \"reboot\"\n", "exec"),
        (many.as_str(), "1001 devices"),
        (huge.as_str(), "bytes"),
    ];
    for (document, word) in cases {
        let said = house.relay.configure(&house.id, document)?;
        ensure!(said.code == 1, "exit code {} for {word}: {}", said.code, said.all());
        ensure!(said.stderr.contains(word) && !said.stderr.contains("panicked"), "{word}: {}", said.all());
    }
    let said = house.relay.configure("st_aaaaaaaaaaaaaaaa", EMPTY_DOCUMENT)?;
    ensure!(said.code == 1 && said.stderr.contains("satellite list"), "{}", said.all());
    // Deep nesting is what breaks parsers.
    let deep = format!("{{\"device\": {}{}}}", "[".repeat(50_000), "]".repeat(50_000));
    let said = house.relay.configure(&house.id, &deep)?;
    ensure!(said.code == 1 && !said.stderr.contains("panicked"), "{}", said.all());
    house.wait_for_polls(&plug, 2)?;
    ensure!(house.config_version() == version, "what was refused left no trace");
    Ok(())
}

fn without_relay(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 2)?;
    house.relay.stop()?;
    house.satellite.kill()?;
    house.satellite.start()?;
    house.wait_for_polls(&plug, 3).context("from the last good configuration")?;
    house.relay.start()?;
    house.wait_for_link(true)?;
    house.finish(&[&plug])?;
    Ok(())
}

fn difference(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&plug.as_http("1s"))?;
    for round in 0..4 {
        let more = if round % 2 == 0 { page.as_prometheus("1s") } else { String::new() };
        house.configure(&format!("{}{more}", plug.as_http("1s")))?;
        house.wait_for_polls(&plug, 2)?;
    }
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "a change cost the untouched device a slot: {:?}", verdict.reasons);
    Ok(())
}
