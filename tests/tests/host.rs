//! The `host` collector beside the real prometheus-node-exporter: same names, labels, kinds and values.
//!
//! On this machine, where our poll lies between two of its scrapes; and on the fixture of a home server, which has the
//! sensors, RAIDs and file systems that this machine lacks, and where every value is the same to the last bit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use satellite_agent::collector::{Context, Readings, host, series_of_key};
use satellite_agent::policy::{Gate, Policy};
use satellite_agent::secrets::Keyring;
use satellite_shared::clock::{Clock, SystemClock};
use satellite_shared::config::Document;

/// The exporter as Debian calls it.
const EXPORTER: &str = "prometheus-node-exporter";
/// The version whose names ours are.
const VERSION: &str = "version 1.5.";
/// How long the exporter may take to answer for the first time.
const START_MS_MAX: u64 = 20_000;

/// What the exporter gives and we leave out, with the reason; the header of `collector/host.rs` says the same.
const LEFT_OUT: &[(&str, &str)] = &[
    ("go_", "about the exporter, not about the machine"),
    ("process_", "about the exporter, not about the machine"),
    ("promhttp_", "about the exporter, not about the machine"),
    ("node_exporter_build_info", "about the exporter, not about the machine"),
    ("node_scrape_collector_", "about the exporter, not about the machine"),
    ("node_textfile_", "files that scripts leave are no part of the configuration"),
];

/// What the exporter asks of this machine although it is told to read the fixture, and what the fixture can't fix.
const LIVE: &[&str] = &[
    "node_time_seconds",
    "node_time_zone_offset_seconds",
    "node_timex_",
    "node_uname_info",
    "node_filesystem_",
    "node_selinux_",
    "node_network_receive_nohandler_total",
];

/// What we have otherwise than 1.5, as the header of `collector/host.rs` says.
const OTHERWISE: &[(&str, &str)] = &[
    ("node_btrfs_global_rsv_size_bytes", "1.5 looks for it in the wrong folder and says 0"),
    ("node_zfs_arc_arc_need_free", "a signed number: later versions tell those, too"),
    ("node_zfs_zpool_state{state=\"suspended\"", "later versions tell this state, too"),
];

/// Debian's own default drops `/mnt` and `/media`; this is the project's.
const MOUNT_POINTS: &str = "--collector.filesystem.mount-points-exclude=\
    ^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)";

type Journey = fn() -> anyhow::Result<()>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = why_not();
    let trials: [(&str, Journey); 4] = [
        ("this_machine_has_node_exporters_names_labels_and_kinds", names_are_the_same),
        ("what_does_not_change_has_the_same_value", constants_are_the_same),
        ("counters_lie_between_two_scrapes", counters_lie_between),
        ("a_home_server_has_the_same_series_and_values", the_fixture_is_the_same),
    ];
    let trials = trials.into_iter().map(|(name, run)| {
        let name = match &missing {
            Some(why) => format!("{name} ({why})"),
            None => name.to_owned(),
        };
        Trial::test(name, move || run().map_err(|error| Failed::from(format!("{error:#}"))))
            .with_ignored_flag(missing.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Why the comparison can't be made here.
fn why_not() -> Option<String> {
    let Ok(output) = Command::new(EXPORTER).arg("--version").output() else {
        return Some(format!("{EXPORTER} is missing: apt-get install {EXPORTER}"));
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let version = said.lines().next().unwrap_or_default();
    (!version.contains(VERSION)).then(|| format!("it compares with {VERSION}x, here is {version}"))
}

/// A running exporter; ended when dropped.
struct Exporter {
    child: Child,
    port: u16,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Exporter {
    fn start(arguments: &[String]) -> anyhow::Result<Self> {
        // Another may take the port between our asking for it and the exporter's.
        for _ in 0..5 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            let child = Command::new(EXPORTER)
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            let mut exporter = Self { child, port };
            let begun = SystemClock.now().mono_ms;
            while SystemClock.now().mono_ms - begun < START_MS_MAX && exporter.child.try_wait()?.is_none() {
                if exporter.scrape().is_ok() {
                    return Ok(exporter);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        bail!("{EXPORTER} did not begin to answer");
    }

    fn scrape(&self) -> anyhow::Result<Told> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.contains(" 200 "), "{head}");
        Told::parse(body)
    }
}

/// Series with their labels in order, and values; and what kind each name is of.
#[derive(Default)]
struct Told {
    values: BTreeMap<String, f64>,
    kinds: BTreeMap<String, String>,
}

impl Told {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut told = Self::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').context("a type of nothing")?;
                told.kinds.insert(name.to_owned(), kind.replace("untyped", "unknown"));
            } else if !line.starts_with('#') && !LEFT_OUT.iter().any(|(prefix, _)| line.starts_with(prefix)) {
                let (series, value) = line.rsplit_once(' ').context("a sample without a value")?;
                // It writes labels in order, and escapes as Rust's Debug does.
                told.values.insert(series.to_owned(), value.parse()?);
            }
        }
        Ok(told)
    }

    fn without(mut self, prefixes: &[&str]) -> Self {
        self.values.retain(|series, _| !prefixes.iter().any(|prefix| series.starts_with(prefix)));
        self
    }

    fn series(&self) -> BTreeSet<&String> {
        self.values.keys().collect()
    }

    fn kind(&self, series: &str) -> &str {
        let name = series.split('{').next().unwrap_or_default();
        self.kinds.get(name).map_or("", String::as_str)
    }
}

/// What our collector reads below a root.
fn poll(root: &Path) -> anyhow::Result<Told> {
    let (_, document) = Document::parse_text("[[device]]\nname = \"this-host\"\ncollector = \"host\"\n")
        .map_err(|problem| anyhow::anyhow!("{problem}"))?;
    let gate = Arc::new(Gate::new(Policy::default(), Arc::new(SystemClock)));
    let context = Context::new(gate, Keyring::of([]), root);
    let device = document.devices.first().context("no device")?;
    let mut built = (host::KIND.build)(device, &context).map_err(|problem| anyhow::anyhow!("{problem}"))?;
    let due: Vec<_> = (0..built.metrics.len()).collect();
    let mut readings = Readings::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(built.collector.poll(&due, &mut readings))?;
    ensure!(readings.failures().is_empty(), "{:?}", readings.failures());

    let mut told = Told::default();
    for reading in readings.iter() {
        let series = series_of_key(&device.name, reading.key).context("a series that breaks the limits")?;
        let labels: Vec<_> = series.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        told.kinds.insert(series.name.clone(), series.kind.as_str().to_owned());
        let name = if labels.is_empty() { series.name } else { format!("{}{{{}}}", series.name, labels.join(",")) };
        ensure!(told.values.insert(name.clone(), reading.value).is_none(), "{name} stands twice");
    }
    Ok(told)
}

/// The exporter's scrape, our poll, and its scrape again.
fn bracket() -> anyhow::Result<[Told; 3]> {
    let exporter = Exporter::start(&[MOUNT_POINTS.to_owned()])?;
    Ok([exporter.scrape()?, poll(Path::new("/"))?, exporter.scrape()?])
}

fn kinds_are_the_same(ours: &Told, theirs: &Told) -> anyhow::Result<()> {
    for series in ours.values.keys() {
        let (our, their) = (ours.kind(series), theirs.kind(series));
        ensure!(our == their, "{series} is of kind {our}, theirs of kind {their}");
    }
    Ok(())
}

fn names_are_the_same() -> anyhow::Result<()> {
    let [before, ours, after] = bracket()?;
    let (before_series, our_series, after_series) = (before.series(), ours.series(), after.series());
    // What comes or goes in between may be told or not.
    let lacking: Vec<_> = before_series.intersection(&after_series).filter(|s| !our_series.contains(**s)).collect();
    ensure!(lacking.is_empty(), "we lack {lacking:#?}");
    let extra: Vec<_> =
        our_series.iter().filter(|s| !before_series.contains(**s) && !after_series.contains(**s)).collect();
    ensure!(extra.is_empty(), "we have alone {extra:#?}");
    ensure!(ours.values.len() > 200, "only {} series", ours.values.len());
    kinds_are_the_same(&ours, &after)
}

/// Gauges that do not change while the machine runs and nobody changes it.
const CONSTANTS: &[&str] = &[
    "node_boot_time_seconds",
    "node_disk_info",
    "node_dmi_info",
    "node_entropy_pool_size_bits",
    "node_filefd_maximum",
    "node_filesystem_device_error",
    "node_filesystem_files{",
    "node_filesystem_readonly",
    "node_filesystem_size_bytes",
    "node_memory_CommitLimit_bytes",
    "node_memory_HugePages_Total",
    "node_memory_Hugepagesize_bytes",
    "node_memory_MemTotal_bytes",
    "node_memory_SwapTotal_bytes",
    "node_memory_VmallocTotal_bytes",
    "node_netstat_Ip_Forwarding",
    "node_network_address_assign_type",
    "node_network_device_id",
    "node_network_flags",
    "node_network_iface_",
    "node_network_info",
    "node_network_mtu_bytes",
    "node_network_protocol_type",
    "node_network_speed_bytes",
    "node_network_transmit_queue_length",
    "node_network_up",
    "node_nf_conntrack_entries_limit",
    "node_os_",
    "node_selinux_",
    "node_time_clocksource_",
    "node_time_zone_offset_seconds",
    "node_uname_info",
];

fn constants_are_the_same() -> anyhow::Result<()> {
    let [before, ours, after] = bracket()?;
    let mut compared = 0;
    for (series, value) in &ours.values {
        let constant = CONSTANTS.iter().any(|prefix| series.starts_with(prefix));
        if let (true, Some(theirs)) = (constant, after.values.get(series)) {
            ensure!(value == theirs, "{series} is {value}, theirs {theirs}");
            compared += 1;
        }
    }
    ensure!(compared > 30, "only {compared} were compared");
    for (series, value) in ours.values.iter().filter(|(series, _)| series.starts_with("node_timex_")) {
        // They may fall as well as rise.
        let (Some(one), Some(other)) = (before.values.get(series), after.values.get(series)) else { continue };
        let (least, most) = (one.min(*other), one.max(*other));
        ensure!(least <= *value && *value <= most, "{series} is {value}, not between {least} and {most}");
    }
    let total = ours.values.get("node_memory_MemTotal_bytes").context("no memory")?;
    for (series, value) in ours.values.iter().filter(|(series, _)| series.starts_with("node_memory_")) {
        let theirs = before.values.get(series).with_context(|| format!("{series} is ours alone"))?;
        ensure!((value - theirs).abs() <= total * 0.2, "{series} is {value}, theirs {theirs}");
    }
    Ok(())
}

fn counters_lie_between() -> anyhow::Result<()> {
    let [before, ours, after] = bracket()?;
    let counts = |series: &str| {
        let untyped = series.starts_with("node_vmstat_") || series.starts_with("node_netstat_");
        let level = ["node_netstat_Tcp_CurrEstab", "node_netstat_Ip_Forwarding"].contains(&series);
        series == "node_time_seconds" || after.kind(series) == "counter" || (untyped && !level)
    };
    let mut compared = 0;
    for (series, value) in ours.values.iter().filter(|(series, _)| counts(series)) {
        let (Some(least), Some(most)) = (before.values.get(series), after.values.get(series)) else { continue };
        ensure!(least <= value && value <= most, "{series} is {value}, not between {least} and {most}");
        compared += 1;
    }
    ensure!(compared > 100, "only {compared} were compared");
    Ok(())
}

/// Lays out the fixture of the agent's own tests.
fn unpack(root: &Path) -> anyhow::Result<()> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/src/collector/host/fixtures/server.txt");
    let fixture = fs::read_to_string(&fixture).with_context(|| fixture.display().to_string())?;
    for entry in fixture.split("\n== ").skip(1) {
        let (head, content) = entry.split_once('\n').unwrap_or((entry, ""));
        let (path, target) = head.split_once(" -> ").map_or((head, None), |(path, target)| (path, Some(target)));
        let path: PathBuf = root.join(path);
        fs::create_dir_all(path.parent().context("a file at the root")?)?;
        match target {
            Some(target) => symlink(target, path)?,
            None => fs::write(path, format!("{content}\n"))?,
        }
    }
    Ok(())
}

fn the_fixture_is_the_same() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    unpack(dir.path())?;
    let below = |flag: &str, path: &str| format!("--path.{flag}={}", dir.path().join(path).display());
    let exporter = Exporter::start(&[
        below("procfs", "proc"),
        below("sysfs", "sys"),
        below("udev.data", "run/udev/data"),
        below("rootfs", ""),
        "--no-collector.netdev.netlink".to_owned(),
    ])?;
    let otherwise: Vec<_> = OTHERWISE.iter().map(|(prefix, _)| *prefix).collect();
    let theirs = exporter.scrape()?.without(LIVE).without(&otherwise);
    let ours = poll(dir.path())?.without(LIVE).without(&otherwise);
    let lines = |told: &Told| {
        let values = told.values.iter();
        values.map(|(series, value)| format!("{series} {value:?}")).collect::<BTreeSet<_>>()
    };
    let (our_lines, their_lines) = (lines(&ours), lines(&theirs));
    let lacking: Vec<_> = their_lines.difference(&our_lines).collect();
    let extra: Vec<_> = our_lines.difference(&their_lines).collect();
    ensure!(lacking.is_empty() && extra.is_empty(), "we lack {lacking:#?} and have alone {extra:#?}");
    ensure!(ours.values.len() > 500, "only {} series", ours.values.len());
    kinds_are_the_same(&ours, &theirs)
}
