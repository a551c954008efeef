//! The data way, end to end: this host and real endpoints through mTLS into Parquet, read by readers that are not ours.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use satellite_tests::checker::{self, Verdict};
use satellite_tests::device::{Device, Manner};
use satellite_tests::house::{EMPTY_DOCUMENT, FAST_ARCHIVE, House, SOON};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::process::Process;
use satellite_tests::{process, wait};
use serde_json::Value;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("every_kind_of_collector_arrives_and_three_readers_agree", PYTHON, every_collector),
        journey("a_real_node_exporter_is_scraped", &[Peer::Python, Peer::NodeExporter], node_exporter),
        journey("devices_that_misbehave_are_gaps_and_delay_nobody", PYTHON, misbehaving_devices),
        journey("two_satellites_are_kept_apart", PYTHON, two_satellites),
        journey("records_arrive_in_an_s3_store", &[Peer::Python, Peer::S3], s3),
        journey("a_satellite_streams_through_an_http_proxy", &[Peer::Python, Peer::Tinyproxy], http_proxy),
        journey("a_satellite_streams_through_a_socks_proxy", &[Peer::Python, Peer::Microsocks], socks_proxy),
    ])
}

fn every_collector(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let mut house = House::new(dir, &[&plug, &page])?;
    let port = plug.port();
    house.configure(&format!(
        "{}{}[[device]]\nname = \"this\"\ncollector = \"host\"\nevery = \"2s\"\nlabels = {{ room = \"attic\" }}\n\
         [[device]]\nname = \"echo\"\ncollector = \"ping\"\naddress = \"127.0.0.1\"\nevery = \"1s\"\n\
         [[device]]\nname = \"door\"\ncollector = \"tcp\"\naddress = \"127.0.0.1:{port}\"\nevery = \"1s\"\n",
        plug.as_http("1s"),
        page.as_prometheus("1s"),
    ))?;
    house.wait_for_polls(&page, 8)?;
    let verdict = house.finish(&[&page])?;
    for name in [
        "node_cpu_seconds_total",
        "node_memory_MemTotal_bytes",
        "node_load1",
        "node_network_receive_bytes_total",
        "node_boot_time_seconds",
        "device_tick",
        "device_tick_total",
        "device_echo",
        "probe_success",
        "probe_duration_seconds",
    ] {
        ensure!(verdict.names.iter().any(|stored| stored == name), "{name} is not stored: {:?}", verdict.names);
    }
    read_three_ways(&house, verdict.stored)?;
    let records = house.relay.read_records(&["--satellite", &house.id, "--metric", "device_tick"])?;
    let text = records.to_string();
    ensure!(text.contains("\"plug\"") && text.contains("device_tick"), "`records` reads them back: {text}");
    Ok(())
}

fn read_three_ways(house: &House, stored: u64) -> Result<()> {
    let said = checker::python("readers.py", &[house.relay.records().as_os_str()])?;
    let readers: Value = serde_json::from_str(&said)?;
    for reader in ["pyarrow", "duckdb", "polars"] {
        let found = &readers[reader];
        ensure!(found["rows"] == stored, "{reader} reads {} rows of {stored}", found["rows"]);
        ensure!(found == &readers["pyarrow"], "{reader} reads otherwise than pyarrow: {said}");
        let text = found.to_string();
        for word in ["this", "plug", "page", "echo", "door", "idle"] {
            ensure!(text.contains(word), "{reader} finds no {word}: {text}");
        }
    }
    Ok(())
}

/// A port that was free a moment ago, for programs that can't say which one they took.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn wait_for_port(port: u16, process: &mut Process) -> Result<()> {
    wait::until("a peer that listens", SOON, || {
        process.check_running()?;
        Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok().map(drop))
    })
}

fn node_exporter(dir: &Path) -> Result<()> {
    let port = free_port()?;
    let program = Peer::NodeExporter.path().context("the exporter")?;
    let mut command = Command::new(program);
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let mut exporter = Process::start("node_exporter", &mut command, &dir.join("node_exporter.log"))?;
    wait_for_port(port, &mut exporter)?;
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    house.satellite.stop()?;
    house.satellite.allow(&[plug.port(), port])?;
    house.satellite.start()?;
    house.configure(&format!(
        "{}[[device]]\nname = \"exporter\"\ncollector = \"prometheus\"\nurl = \"http://127.0.0.1:{port}/metrics\"\nevery = \"2s\"\n",
        plug.as_http("1s")
    ))?;
    house.wait_for_polls(&plug, 6)?;
    let verdict = house.finish(&[&plug])?;
    for name in
        ["node_cpu_seconds_total", "go_goroutines", "process_cpu_seconds_total", "node_scrape_collector_success"]
    {
        ensure!(verdict.names.iter().any(|stored| stored == name), "{name} is not stored: {:?}", verdict.names);
    }
    Ok(())
}

fn misbehaving_devices(dir: &Path) -> Result<()> {
    let good = Device::new("good")?;
    let manners = [
        ("silent", Manner::Silent),
        ("slow", Manner::Slow(Duration::from_secs(20))),
        ("hangs-up", Manner::HangsUp),
        ("garbage", Manner::Garbage),
        ("failing", Manner::Status(500)),
        ("huge", Manner::Huge(64 << 20)),
        ("trickles", Manner::Trickles),
    ];
    let mut bad = Vec::new();
    for (name, manner) in manners {
        let device = Device::new(name)?;
        device.behave(manner);
        bad.push(device);
    }
    let mut devices = vec![&good];
    devices.extend(&bad);
    let mut house = House::new(dir, &devices)?;
    let document: String = devices.iter().map(|device| device.as_http("1s")).collect();
    house.configure(&document)?;
    house.wait_for_polls(&good, 15)?;
    // Devices that come back are polled again.
    bad[0].behave(Manner::Answers);
    wait::until_true("a device that works again is polled again", Duration::from_secs(120), || {
        Ok(bad[0].answers() > 0)
    })?;
    let verdict = house.finish(&devices)?;
    for reason in ["timeout", "refused", "bad_answer"] {
        ensure!(verdict.reasons.contains_key(reason), "no gap says {reason}: {:?}", verdict.reasons);
    }
    let judged = verdict.details["devices"].as_array().context("devices")?;
    let good = judged.iter().find(|device| device["device"] == "good").context("the good device")?;
    ensure!(good["stored"] == good["requests"], "the good device was delayed or dropped: {good}");
    Ok(())
}

fn two_satellites(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let mut house = House::new(dir, &[&plug])?;
    let mut second = satellite_tests::satellite::Satellite::new(dir, "cellar", &[page.port()])?;
    let second_id = second.join(&house.relay)?;
    ensure!(second_id != house.id, "two satellites have two ids");
    // The same device name in both: only the satellite tells them apart.
    let renamed = page.as_http("1s").replace("name = \"page\"", "name = \"plug\"");
    house.relay.configure(&second_id, &renamed)?.success()?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 5)?;
    house.wait_for_polls(&page, 5)?;
    house.relay.configure(&second_id, EMPTY_DOCUMENT)?.success()?;
    let account = house.relay.wait_until_balanced(&second_id, SOON)?;
    house.configure(EMPTY_DOCUMENT)?;
    house.relay.wait_until_balanced(&house.id, SOON)?;
    let verdict = Verdict::of(&house.relay.records(), &[])?;
    verdict.must_be_whole()?;
    ensure!(verdict.satellites.len() == 2, "{:?}", verdict.satellites);
    ensure!(account.due > 0, "{account:?}");
    house.satellite.stop()?;
    second.stop()?;
    for id in [&house.id, &second_id] {
        Verdict::of(&house.relay.records(), &[])?.must_agree(id, &house.relay.account(id)?)?;
    }
    Ok(())
}

fn s3(dir: &Path) -> Result<()> {
    let python = Peer::S3.path().context("moto")?;
    let port = free_port()?;
    let mut command = Command::new(&python);
    command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
    let mut store = Process::start("moto", &mut command, &dir.join("moto.log"))?;
    wait_for_port(port, &mut store)?;
    let endpoint = format!("http://127.0.0.1:{port}");
    let s3 = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new(&python);
        command.arg(checker::scripts().join("s3.py")).arg(&endpoint).args(arguments);
        process::run(&mut command, "")?.success()
    };
    s3(&["create", "house"])?;
    let plug = Device::new("plug")?;
    let credentials = dir.join("s3-credentials");
    std::fs::write(&credentials, "[default]\naws_access_key_id = test\naws_secret_access_key = test\n")?;
    std::fs::set_permissions(&credentials, std::fs::Permissions::from_mode(0o600))?;
    let settings = format!(
        "{FAST_ARCHIVE}[archive]\nurl = \"s3://house/records\"\nendpoint = \"{endpoint}\"\nallow_http = true\n\
         region = \"us-east-1\"\ncredentials_file = \"{}\"\n",
        credentials.display()
    );
    let mut house = House::with_settings(dir, &[&plug], &settings, None)?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 6)?;
    // The relay dies between two batches, and while it writes one.
    house.relay.kill()?;
    house.relay.start()?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 4)?;
    house.settle()?;
    let account = house.relay.account(&house.id)?;
    let fetched = dir.join("fetched");
    s3(&["fetch", "house", &fetched.display().to_string()])?;
    let verdict = Verdict::of(&fetched.join("records"), &[&plug])?;
    verdict.must_be_whole()?;
    verdict.must_agree(&house.id, &account)
}

fn http_proxy(dir: &Path) -> Result<()> {
    let port = free_port()?;
    let config = dir.join("tinyproxy.conf");
    let log = dir.join("tinyproxy.log");
    let text = format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 600\nAllow 127.0.0.1\nLogLevel Connect\nLogFile \"{}\"\n",
        log.display()
    );
    std::fs::write(&config, text)?;
    let mut command = Command::new(Peer::Tinyproxy.path().context("tinyproxy")?);
    command.arg("-d").arg("-c").arg(&config);
    let mut proxy = Process::start("tinyproxy", &mut command, &dir.join("tinyproxy-out.log"))?;
    wait_for_port(port, &mut proxy)?;
    through_proxy(dir, &format!("http://127.0.0.1:{port}"), proxy)?;
    let log = process::tail(&log, 500);
    ensure!(log.contains("CONNECT localhost:"), "the proxy carried it, and resolved the name: {log}");
    Ok(())
}

fn socks_proxy(dir: &Path) -> Result<()> {
    let port = free_port()?;
    let mut command = Command::new(Peer::Microsocks.path().context("microsocks")?);
    command.args(["-i", "127.0.0.1", "-p", &port.to_string()]);
    let log = dir.join("microsocks.log");
    let mut proxy = Process::start("microsocks", &mut command, &log)?;
    wait_for_port(port, &mut proxy)?;
    through_proxy(dir, &format!("socks5h://127.0.0.1:{port}"), proxy)?;
    let log = process::tail(&log, 500);
    ensure!(log.contains("connected to localhost:"), "the proxy carried it, and resolved the name: {log}");
    Ok(())
}

fn through_proxy(dir: &Path, url: &str, proxy: Process) -> Result<()> {
    let plug = Device::new("plug")?;
    let settings =
        format!("proxy = \"{url}\"\n[buffer]\ncommit_every = \"200ms\"\nfree_mib_min = 0\nfree_percent_min = 0\n");
    let mut house = House::with_settings(dir, &[&plug], FAST_ARCHIVE, Some(&settings))?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 4)?;
    house.finish(&[&plug])?;
    // Nothing goes around it: with the proxy gone, so is the link.
    house.satellite.start()?;
    house.wait_for_link(true)?;
    drop(proxy);
    house.wait_for_link(false)?;
    let accepted = house.relay.session.accepted();
    let since = wait::mono_ms();
    wait::until_true("a few attempts", Duration::from_secs(30), || Ok(wait::mono_ms() > since + 6_000))?;
    if house.relay.session.accepted() != accepted {
        bail!("the satellite went around its proxy");
    }
    Ok(())
}
