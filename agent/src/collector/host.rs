//! `host`: this machine, as node_exporter's default Linux collectors tell it, with their names, labels and units.
//!
//! One part a file, one list of all ([`PARTS`]); each part is a metric with a schedule and gaps of its own. Files are
//! read below [`Context::root`]. What only reads memory of the kernel is read at once; what may wait for hardware or
//! for a file server is read by `aside`, so that a sensor or a mount that hangs costs itself only.
//!
//! A part that this machine does not have gives nothing and is no failure, unless the configuration lists it.
//! The names are those of node_exporter 1.5. What is left out of its default output, and why:
//!
//! | left out | why |
//! | --- | --- |
//! | `go_*`, `process_*`, `promhttp_*`, `node_exporter_build_info`, `node_scrape_collector_*` | about the exporter, not about the machine; the satellite's own health is its `status` |
//! | textfile (`node_textfile_*`) | its input is files that scripts leave: a list of series nobody configured |
//! | systemd | needs D-Bus; units are services, not the machine |
//! | `node_btrfs_device_unused_bytes`, `node_btrfs_device_errors_total` | an ioctl on the mounted file system, without a safe wrapper; the rest of btrfs is here |
//! | bcache, fibrechannel, infiniband, ipvs, tapestats | hardware and roles that a home server does not have |
//!
//! What is told otherwise than by 1.5: ZFS' signed numbers and the pool state `suspended` are told, as later versions
//! do; `node_btrfs_global_rsv_size_bytes` is read from where it is; softnet's `cpu` is the processor, not the line's
//! number, where one is off. `/mnt` and `/media` are told, which Debian's package leaves out.
//!
//! Two parts are off in node_exporter as here and run when listed: `processes`, and `network_address`
//! (node_exporter's `--collector.netdev.address-info`).

mod arp;
pub(super) mod aside;
mod bonding;
mod btrfs;
mod conntrack;
mod cpu;
mod cpufreq;
mod diskstats;
mod dmi;
mod edac;
mod entropy;
mod filefd;
mod files;
pub(super) mod filesystem;
mod hwmon;
mod loadavg;
mod mdadm;
mod meminfo;
mod netclass;
mod netdev;
mod netstat;
mod network_address;
mod nfs;
mod nfsd;
mod nvme;
mod os;
mod power_supply;
mod pressure;
mod processes;
mod rapl;
mod schedstat;
mod selinux;
mod sockstat;
mod softnet;
mod stat;
mod thermal_zone;
mod time;
mod timex;
mod udp_queues;
mod uname;
mod vmstat;
mod xfs;
mod zfs;

use std::path::PathBuf;
use std::time::Duration;

use satellite_shared::config::{Device, Metric, Problem};
use satellite_shared::gap::Reason;
use satellite_shared::metric::Kind;
use serde_json::Value;

use self::aside::{Aside, Gathered};
use self::files::{Files, Trouble};
use self::filesystem::Mount;
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings};

/// `collector = "host"`.
pub const KIND: CollectorKind = CollectorKind { name: "host", build };

/// The longest that one poll waits for what is read aside; the share of the device's timeout is less where that is short.
const PATIENCE_MAX: Duration = Duration::from_secs(2);
/// Files that stay open for what is read in the poll: about as many as that is.
const FILES_OPEN_MAX: usize = 96;
/// Files that stay open for one part read aside, four network interfaces' for one. A process may have 1,024 open unless
/// told otherwise.
const FILES_OPEN_ASIDE_MAX: usize = 96;

/// One part of the host.
struct Part {
    /// Its name: node_exporter's name of the collector, and the metric's in the configuration.
    name: &'static str,
    /// Where it is read.
    place: Place,
    /// Whether it is read without being listed.
    by_default: bool,
    /// What a machine must have, and what would allow it, for someone who listed it.
    needs: &'static str,
    make: fn() -> Box<dyn Read>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the poll: nothing in it can wait.
    Here,
    /// On a thread of its own, where this stands in the root; else the machine does not have it.
    Aside(&'static str),
    /// As that, each mount by itself.
    Mounts,
}

/// Reads one part.
trait Read: Send {
    /// Reads it once. What was given before an error is taken back.
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble>;
}

/// A part made from a function, for those that remember nothing.
struct Plain(fn(&mut Files, &mut Out<'_>) -> Result<(), Trouble>);

impl Read for Plain {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        (self.0)(files, out)
    }
}

const fn here(name: &'static str, needs: &'static str, make: fn() -> Box<dyn Read>) -> Part {
    Part { name, place: Place::Here, by_default: true, needs, make }
}

const fn aside(name: &'static str, path: &'static str, needs: &'static str, make: fn() -> Box<dyn Read>) -> Part {
    Part { name, place: Place::Aside(path), by_default: true, needs, make }
}

const fn when_listed(name: &'static str, path: &'static str, needs: &'static str, make: fn() -> Box<dyn Read>) -> Part {
    Part { name, place: Place::Aside(path), by_default: false, needs, make }
}

/// What no kernel goes without.
const PROC: &str = "it needs /proc: is it mounted?";

/// Every part, by name.
static PARTS: &[Part] = &[
    here("arp", "it needs a kernel with IPv4", || Box::new(arp::Arp::default())),
    here("bonding", "it needs a bonded network interface", || Box::new(Plain(bonding::read))),
    aside("btrfs", "sys/fs/btrfs", "it needs a mounted btrfs file system", || Box::new(Plain(btrfs::read))),
    here("conntrack", "it needs the nf_conntrack module: a firewall rule that tracks connections loads it", || {
        Box::new(Plain(conntrack::read))
    }),
    here("cpu", PROC, || Box::new(cpu::Cpu::default())),
    aside(
        "cpufreq",
        "sys/devices/system/cpu/cpufreq",
        "it needs a processor whose frequency the kernel steers; virtual machines have none",
        || Box::new(Plain(cpufreq::read)),
    ),
    here("diskstats", PROC, || Box::new(diskstats::Diskstats::default())),
    here("dmi", "it needs firmware with DMI tables; most ARM boards have none", || Box::new(dmi::Dmi::default())),
    here("edac", "it needs a memory controller with ECC and its EDAC driver", || Box::new(Plain(edac::read))),
    here("entropy", PROC, || Box::new(Plain(entropy::read))),
    here("filefd", PROC, || Box::new(Plain(filefd::read))),
    Part { name: "filesystem", place: Place::Mounts, by_default: true, needs: PROC, make: || Box::new(Plain(no_part)) },
    aside(
        "hwmon",
        "sys/class/hwmon",
        "it needs a sensor driver: try `modprobe coretemp`, `drivetemp` or what sensors-detect names",
        || Box::new(Plain(hwmon::read)),
    ),
    here("loadavg", PROC, || Box::new(Plain(loadavg::read))),
    aside("mdadm", "proc/mdstat", "it needs the md module: a software RAID loads it", || Box::new(Plain(mdadm::read))),
    here("meminfo", PROC, || Box::new(meminfo::Meminfo::default())),
    aside("netclass", "sys/class/net", "it needs /sys: is it mounted?", || Box::new(Plain(netclass::read))),
    here("netdev", PROC, || Box::new(Plain(netdev::read))),
    here("netstat", PROC, || Box::new(netstat::Netstat::default())),
    when_listed("network_address", "proc", "it needs a network interface", || {
        Box::new(network_address::NetworkAddress)
    }),
    here("nfs", "it needs an NFS mount", || Box::new(Plain(nfs::read))),
    here("nfsd", "it needs a running NFS server", || Box::new(Plain(nfsd::read))),
    here("nvme", "it needs an NVMe drive", || Box::new(Plain(nvme::read))),
    here("os", "it needs /etc/os-release", || Box::new(os::Os::default())),
    aside(
        "powersupplyclass",
        "sys/class/power_supply",
        "it needs a battery or mains adapter that the kernel knows",
        || Box::new(Plain(power_supply::read)),
    ),
    here("pressure", "it needs a kernel with pressure stall information: boot with `psi=1`", || {
        Box::new(Plain(pressure::read))
    }),
    when_listed(
        "processes",
        "proc/1",
        "it needs to see everyone's processes, which the unit's `ProtectProc=` hides: its drop-in `processes.conf` allows it",
        || Box::new(processes::Processes::default()),
    ),
    aside(
        "rapl",
        "sys/class/powercap",
        "it needs Intel or AMD energy counters, and leave to read energy_uj (root only by default)",
        || Box::new(Plain(rapl::read)),
    ),
    here("schedstat", "it needs a kernel with CONFIG_SCHEDSTATS", || Box::new(Plain(schedstat::read))),
    here("selinux", "it needs SELinux", || Box::new(Plain(selinux::read))),
    here("sockstat", PROC, || Box::new(sockstat::Sockstat::default())),
    here("softnet", PROC, || Box::new(Plain(softnet::read))),
    here("stat", PROC, || Box::new(Plain(stat::read))),
    aside(
        "thermal_zone",
        "sys/class/thermal",
        "it needs thermal zones: firmware or device tree describes them",
        || Box::new(Plain(thermal_zone::read)),
    ),
    here("time", PROC, || Box::new(time::Time::default())),
    here("timex", "it needs adjtimex(2): the unit's `ProtectClock=` or a container refuses it", || {
        Box::new(Plain(timex::read))
    }),
    here("udp_queues", "it needs a kernel with IPv4", || Box::new(Plain(udp_queues::read))),
    here("uname", PROC, || Box::new(Plain(uname::read))),
    here("vmstat", PROC, || Box::new(vmstat::Vmstat::default())),
    here("xfs", "it needs a mounted XFS file system", || Box::new(Plain(xfs::read))),
    aside("zfs", "proc/spl/kstat/zfs", "it needs the zfs module", || Box::new(zfs::Zfs::default())),
];

/// The mounts are walked by the collector itself.
fn no_part(_: &mut Files, _: &mut Out<'_>) -> Result<(), Trouble> {
    Ok(())
}

/// Where a part puts its samples.
struct Out<'a> {
    readings: &'a mut Readings,
    metric: usize,
}

impl Out<'_> {
    fn gauge(&mut self, name: &str, unit: &str, labels: &[(&str, &str)], value: f64) {
        self.readings.sample(self.metric, Family::gauge(name, unit), labels, value);
    }

    fn counter(&mut self, name: &str, unit: &str, labels: &[(&str, &str)], value: f64) {
        self.readings.sample(self.metric, Family::counter(name, unit), labels, value);
    }

    /// What node_exporter gives without saying what it is.
    fn untyped(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.readings.sample(self.metric, Family { name, kind: Kind::Unknown, unit: "" }, labels, value);
    }
}

/// This machine.
struct Host {
    seats: Vec<Seat>,
    root: PathBuf,
    files: Files,
    aside: Aside<Errand>,
    patience: Duration,
}

/// One part in use.
struct Seat {
    part: &'static Part,
    /// Whether the configuration lists it: then its absence is told.
    listed: bool,
    /// `None` while it is read aside.
    reader: Option<Box<dyn Read>>,
    /// Those of a part that is read aside; `None` while it is, and before.
    files: Option<Files>,
}

/// What is read aside.
enum Errand {
    Part(Box<Away>),
    Mount(Box<Mount>),
}

/// A part that is read aside, and what came of it.
struct Away {
    index: usize,
    reader: Box<dyn Read>,
    files: Files,
    readings: Readings,
    outcome: Result<(), Trouble>,
}

impl aside::Errand for Errand {
    fn run(&mut self) {
        match self {
            Self::Part(away) => {
                let mut out = Out { readings: &mut away.readings, metric: away.index };
                away.outcome = away.reader.read(&mut away.files, &mut out);
            }
            Self::Mount(mount) => mount.ask(),
        }
    }
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let excluded = excluded(device)?;
    for (index, metric) in device.metrics.iter().enumerate() {
        check_metric(device, metric, &excluded, index)?;
    }
    let mut seats = Vec::new();
    let mut metrics = Vec::new();
    for part in PARTS {
        let listed = device.metrics.iter().find(|metric| metric.name == part.name);
        if excluded.contains(&part.name) || (listed.is_none() && !part.by_default) {
            continue;
        }
        metrics.push(listed.cloned().unwrap_or_else(|| Metric {
            name: part.name.to_owned(),
            schedule: device.schedule.clone(),
            paused: false,
            options: serde_json::Map::default(),
        }));
        seats.push(Seat { part, listed: listed.is_some(), reader: Some((part.make)()), files: None });
    }
    if metrics.is_empty() {
        return Err(Problem { path: place(device, "exclude"), reason: "nothing is left: exclude fewer".into() });
    }
    let host = Host {
        seats,
        root: context.root.clone(),
        files: Files::new(&context.root, FILES_OPEN_MAX),
        aside: Aside::default(),
        patience: PATIENCE_MAX.min(device.timeout * 2 / 5),
    };
    Ok(Built { collector: Box::new(host), metrics })
}

fn place(device: &Device, what: &str) -> String {
    format!("device.{}.{what}", device.name)
}

fn part_named(name: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.name == name)
}

fn unknown_part(path: String, name: &str) -> Problem {
    let names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
    let name: String = name.chars().take(63).collect();
    Problem { path, reason: format!("`{name}` is no part of the host; there are {}", names.join(", ")) }
}

/// The names in `exclude`, the only option there is.
fn excluded(device: &Device) -> Result<Vec<&'static str>, Problem> {
    if let Some(key) = device.options.keys().find(|key| *key != "exclude") {
        return Err(Problem {
            path: place(device, key),
            reason: "unknown: a host has the option `exclude`, a list of parts to leave out".into(),
        });
    }
    let list = match device.options.get("exclude") {
        None => return Ok(vec![]),
        Some(Value::Array(list)) => list,
        Some(_) => {
            let reason = "not a list: write exclude = [\"hwmon\"]".into();
            return Err(Problem { path: place(device, "exclude"), reason });
        }
    };
    let named = list.iter().map(|value| {
        let name = value.as_str().unwrap_or("(not a text)");
        part_named(name).map(|part| part.name).ok_or_else(|| unknown_part(place(device, "exclude"), name))
    });
    named.collect()
}

fn check_metric(device: &Device, metric: &Metric, excluded: &[&str], index: usize) -> Result<(), Problem> {
    let path = |rest: &str| place(device, &format!("metric.{}{rest}", metric.name));
    let part = part_named(&metric.name)
        .ok_or_else(|| unknown_part(place(device, &format!("metric[{index}].name")), &metric.name))?;
    if let Some(key) = metric.options.keys().next() {
        let reason = "unknown: a part of the host has `every`, `cron` and `paused`".into();
        return Err(Problem { path: path(&format!(".{key}")), reason });
    }
    if excluded.contains(&part.name) {
        return Err(Problem { path: path(""), reason: "stands in `exclude`, too: take it from one of the two".into() });
    }
    if device.metrics[..index].iter().any(|other| other.name == metric.name) {
        return Err(Problem { path: path(""), reason: "stands twice: give it once".into() });
    }
    Ok(())
}

impl Collector for Host {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(async move {
            for (name, errand) in self.aside.settle() {
                self.take_back(&name, errand);
            }
            let mut errands = Vec::new();
            let mut out = Vec::new();
            for &index in due {
                match self.seats[index].part.place {
                    Place::Here => {}
                    Place::Aside(path) => self.ready_part(index, path, &mut errands, &mut out, readings),
                    Place::Mounts => self.ready_mounts(index, &mut errands, &mut out, readings),
                }
            }
            self.aside.send(errands);
            for &index in due {
                if self.seats[index].part.place == Place::Here {
                    self.read_here(index, readings);
                }
            }
            if !out.is_empty() {
                let gathered = self.aside.gather(self.patience).await;
                self.land(gathered, out, readings);
            }
            Ok(())
        })
    }
}

/// What a poll waits for: a part, or a mount of the part.
struct Awaited {
    index: usize,
    /// `None` for a part.
    mount: Option<Mount>,
}

impl Host {
    fn read_here(&mut self, index: usize, readings: &mut Readings) {
        let before = readings.len();
        let Some(reader) = &mut self.seats[index].reader else { return };
        let outcome = reader.read(&mut self.files, &mut Out { readings, metric: index });
        self.tell(index, outcome, before, readings);
    }

    /// Makes a part ready to be read aside, where the machine has it and it has come back from the last time.
    fn ready_part(
        &mut self,
        index: usize,
        path: &str,
        errands: &mut Vec<(String, Errand)>,
        out: &mut Vec<Awaited>,
        readings: &mut Readings,
    ) {
        if let Err(trouble) = self.files.must_stand(path) {
            return self.tell(index, Err(trouble), readings.len(), readings);
        }
        let seat = &mut self.seats[index];
        let Some(reader) = seat.reader.take() else {
            let detail = "the read of an earlier poll still hangs: a driver or a device does not answer";
            return readings.missing(index, Failure::new(Reason::Timeout, detail));
        };
        let files = seat.files.take().unwrap_or_else(|| Files::new(&self.root, FILES_OPEN_ASIDE_MAX));
        let away = Away { index, reader, files, readings: readings.sibling(), outcome: Ok(()) };
        errands.push((seat.part.name.to_owned(), Errand::Part(Box::new(away))));
        out.push(Awaited { index, mount: None });
    }

    /// Makes each mount ready to be asked aside, where it does not hang already.
    fn ready_mounts(
        &mut self,
        index: usize,
        errands: &mut Vec<(String, Errand)>,
        out: &mut Vec<Awaited>,
        readings: &mut Readings,
    ) {
        let mounts = match filesystem::mounts(&mut self.files) {
            Ok(mounts) => mounts,
            Err(trouble) => return self.tell(index, Err(trouble), readings.len(), readings),
        };
        if mounts.is_empty() {
            self.tell(index, Ok(()), readings.len(), readings);
        }
        for mount in mounts {
            if !self.aside.hangs(&mount.point) {
                errands.push((mount.point.clone(), Errand::Mount(Box::new(mount.clone()))));
            }
            out.push(Awaited { index, mount: Some(mount) });
        }
    }

    /// Takes over what was read aside, and tells what was not.
    fn land(&mut self, gathered: Gathered<Errand>, out: Vec<Awaited>, readings: &mut Readings) {
        let Gathered { mut landed, untaken } = gathered;
        for (name, errand) in untaken {
            self.take_back(&name, Some(errand));
        }
        for Awaited { index, mount } in out {
            let name = mount.as_ref().map_or(self.seats[index].part.name, |mount| mount.point.as_str());
            let at = landed.iter().position(|(other, _)| other == name);
            let errand = at.map(|at| landed.swap_remove(at));
            if let Some(mut mount) = mount {
                if let Some((_, Some(Errand::Mount(asked)))) = errand {
                    mount = *asked;
                }
                filesystem::tell(&mount, &mut Out { readings, metric: index });
                continue;
            }
            let before = readings.len();
            match errand {
                None => {
                    let waited = self.patience.as_millis();
                    let detail = format!("not read within {waited} ms: a driver or a device does not answer");
                    readings.missing(index, Failure::new(Reason::Timeout, detail));
                }
                Some((name, errand)) => {
                    if let Some(Errand::Part(away)) = &errand {
                        readings.append(&away.readings);
                    } else {
                        let detail = "its reader failed and was begun anew";
                        readings.missing(index, Failure::new(Reason::BadAnswer, detail));
                    }
                    if let Some(outcome) = self.take_back(&name, errand) {
                        self.tell(index, outcome, before, readings);
                    }
                }
            }
        }
        // Of earlier polls, come while this one waited.
        for (name, errand) in landed {
            self.take_back(&name, errand);
        }
    }

    /// Seats a part again, or a new one where it was lost; gives how its read ended.
    fn take_back(&mut self, name: &str, errand: Option<Errand>) -> Option<Result<(), Trouble>> {
        match errand {
            Some(Errand::Mount(_)) => None,
            Some(Errand::Part(away)) => {
                let seat = &mut self.seats[away.index];
                seat.reader = Some(away.reader);
                seat.files = Some(away.files);
                Some(away.outcome)
            }
            None => {
                let seat = self.seats.iter_mut().find(|seat| seat.part.name == name)?;
                seat.reader = Some((seat.part.make)());
                None
            }
        }
    }

    /// Takes back what a part gave before it failed, and says why where that is a failure.
    fn tell(&self, index: usize, outcome: Result<(), Trouble>, before: usize, readings: &mut Readings) {
        let seat = &self.seats[index];
        let why = match outcome {
            Ok(()) if readings.len() == before && seat.listed => format!("nothing there: {}", seat.part.needs),
            Ok(()) => return,
            Err(trouble) => {
                readings.truncate(before);
                if !trouble.is_absent() {
                    readings.missing(index, trouble.failure());
                    return;
                }
                if !seat.listed {
                    return;
                }
                format!("{trouble}: {}", seat.part.needs)
            }
        };
        readings.missing(index, Failure::new(Reason::Unsupported, why));
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::Arc;

    use satellite_shared::clock::SystemClock;
    use satellite_shared::config::{Document, Schedule};

    use super::*;
    use crate::collector::series_of_key;
    use crate::policy::{Gate, Policy};
    use crate::secrets::Keyring;

    /// Lays out the fixture below a folder.
    fn unpack(root: &Path) {
        let fixture = include_str!("host/fixtures/server.txt");
        for entry in fixture.split("\n== ").skip(1) {
            let (head, content) = entry.split_once('\n').unwrap_or((entry, ""));
            let (path, target) = head.split_once(" -> ").map_or((head, None), |(path, target)| (path, Some(target)));
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match target {
                Some(target) => symlink(target, path).unwrap(),
                None => fs::write(path, format!("{content}\n")).unwrap(),
            }
        }
    }

    fn device(text: &str) -> Device {
        let text = format!("[[device]]\nname = \"this-host\"\ncollector = \"host\"\nevery = \"10s\"\n{text}");
        let (_, document) = Document::parse_text(&text).unwrap();
        assert_eq!(document.problems, []);
        document.devices.into_iter().next().unwrap()
    }

    fn build_at(root: &Path, text: &str) -> Result<Built, Problem> {
        let gate = Arc::new(Gate::new(Policy::default(), Arc::new(SystemClock)));
        let context = Context::new(gate, Keyring::of([]), root);
        build(&device(text), &context)
    }

    fn problem(text: &str) -> String {
        match build_at(Path::new("/"), text) {
            Ok(_) => panic!("taken: {text}"),
            Err(problem) => problem.to_string(),
        }
    }

    fn poll(built: &mut Built, readings: &mut Readings) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let due: Vec<_> = (0..built.metrics.len()).collect();
        runtime.block_on(built.collector.poll(&due, readings)).unwrap();
    }

    /// Every sample as a line, and every failure, without where the fixture lies.
    fn told(root: &Path, text: &str) -> String {
        let mut built = build_at(root, text).unwrap();
        let mut readings = Readings::default();
        poll(&mut built, &mut readings);
        let mut lines: Vec<String> = Vec::new();
        for reading in readings.iter() {
            let series = series_of_key(&"this-host".parse().unwrap(), reading.key).unwrap();
            let mut line = series.name;
            for (name, value) in &series.labels {
                write!(line, " {name}={value:?}").unwrap();
            }
            lines.push(format!("{line} {} {} {}", series.kind.as_str(), series.unit, reading.value));
        }
        for (metric, failure) in readings.failures() {
            lines.push(format!("missing {}: {failure}", built.metrics[*metric].name));
        }
        lines.sort();
        lines.join("\n").replace(root.to_str().unwrap(), "")
    }

    /// What the fixture can't fix: clocks, the kernel, and the disk that the fixture lies on.
    const LIVE: &str = "exclude = [\"filesystem\", \"time\", \"uname\"]\n";

    #[test]
    fn a_home_server_is_told_whole() {
        let dir = tempfile::tempdir().unwrap();
        unpack(dir.path());
        insta::assert_snapshot!(told(dir.path(), LIVE));
    }

    #[test]
    fn a_machine_that_has_nothing_gives_nothing_and_that_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(told(dir.path(), LIVE), "node_selinux_enabled gauge  0");
    }

    #[test]
    fn a_part_that_is_listed_and_absent_says_what_would_allow_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sys/class/hwmon")).unwrap();
        let listed = "[[device.metric]]\nname = \"pressure\"\n[[device.metric]]\nname = \"hwmon\"\n";
        let told = told(dir.path(), &format!("{LIVE}{listed}"));
        assert!(told.contains("missing pressure: unsupported: /proc/pressure/cpu is not there: it needs a kernel with pressure stall information: boot with `psi=1`"), "{told}");
        assert!(told.contains("missing hwmon: unsupported: nothing there: it needs a sensor driver"), "{told}");
    }

    #[test]
    fn a_part_that_can_not_be_read_is_told_with_its_file_and_the_others_are_read() {
        let dir = tempfile::tempdir().unwrap();
        unpack(dir.path());
        fs::write(dir.path().join("proc/loadavg"), "much").unwrap();
        fs::write(dir.path().join("proc/net/dev"), "a\nb\n  eth0: 1 2 3\n").unwrap();
        fs::remove_file(dir.path().join("proc/meminfo")).unwrap();
        fs::create_dir(dir.path().join("proc/meminfo")).unwrap();
        let told = told(dir.path(), LIVE);
        assert!(
            told.contains("missing loadavg: bad_answer: /proc/loadavg: it does not begin with three numbers"),
            "{told}"
        );
        assert!(
            told.contains("missing netdev: bad_answer: /proc/net/dev: an interface has not sixteen numbers"),
            "{told}"
        );
        assert!(told.contains("missing meminfo: bad_answer: /proc/meminfo: Is a directory"), "{told}");
        assert!(!told.contains("node_network_receive_bytes_total"), "what came before the failure is taken back");
        assert!(told.contains("node_boot_time_seconds gauge seconds 1790000000"));
    }

    #[test]
    fn each_part_has_a_schedule_of_its_own() {
        let text = "exclude = [\"hwmon\"]\n[[device.metric]]\nname = \"filesystem\"\nevery = \"60s\"\n[[device.metric]]\nname = \"cpu\"\npaused = true\n";
        let built = build_at(Path::new("/"), text).unwrap();
        let metric = |name: &str| built.metrics.iter().find(|metric| metric.name == name);
        assert_eq!(metric("filesystem").unwrap().schedule, Schedule::Every(Duration::from_secs(60)));
        assert_eq!(metric("meminfo").unwrap().schedule, Schedule::Every(Duration::from_secs(10)));
        assert!(metric("cpu").unwrap().paused);
        assert_eq!(metric("hwmon"), None);
        assert_eq!(metric("processes"), None, "costly, and only when listed");
    }

    #[test]
    fn only_what_is_due_is_read() {
        let dir = tempfile::tempdir().unwrap();
        unpack(dir.path());
        let mut built = build_at(dir.path(), "").unwrap();
        let load = built.metrics.iter().position(|metric| metric.name == "loadavg").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut readings = Readings::default();
        runtime.block_on(built.collector.poll(&[load], &mut readings)).unwrap();
        assert_eq!((readings.len(), readings.iter().all(|reading| reading.metric == load)), (3, true));
    }

    #[test]
    fn a_configuration_that_can_not_be_meant_is_refused_with_its_place_and_what_there_is() {
        for (text, expected) in [
            ("exclude = [\"gpu\"]", "device.this-host.exclude: `gpu` is no part of the host; there are arp, bonding, "),
            ("exclude = [3]", "device.this-host.exclude: `(not a text)` is no part of the host"),
            ("exclude = \"cpu\"", "device.this-host.exclude: not a list: write exclude = [\"hwmon\"]"),
            ("path = \"/etc\"", "device.this-host.path: unknown: a host has the option `exclude`"),
            (
                "[[device.metric]]\nname = \"gpu\"",
                "device.this-host.metric[0].name: `gpu` is no part of the host; there are ",
            ),
            (
                "[[device.metric]]\nname = \"cpu\"\nraw = 1",
                "device.this-host.metric.cpu.raw: unknown: a part of the host has",
            ),
            (
                "exclude = [\"cpu\"]\n[[device.metric]]\nname = \"cpu\"",
                "device.this-host.metric.cpu: stands in `exclude`, too",
            ),
            (
                "[[device.metric]]\nname = \"cpu\"\n[[device.metric]]\nname = \"cpu\"",
                "device.this-host.metric.cpu: stands twice",
            ),
        ] {
            assert!(problem(text).starts_with(expected), "{}", problem(text));
        }
        let all: Vec<_> = PARTS.iter().map(|part| format!("{:?}", part.name)).collect();
        assert!(problem(&format!("exclude = [{}]", all.join(", "))).ends_with("nothing is left: exclude fewer"));
    }

    #[test]
    fn parts_stand_in_order_and_once() {
        assert!(PARTS.is_sorted_by(|a, b| a.name < b.name));
    }

    struct Hangs(std::sync::mpsc::Receiver<()>);

    impl Read for Hangs {
        fn read(&mut self, _: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
            let _released = self.0.recv();
            out.gauge("late", "", &[], 1.0);
            Ok(())
        }
    }

    #[test]
    fn a_part_that_hangs_costs_itself_only_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        unpack(dir.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (release, wait) = std::sync::mpsc::channel();
        let seat =
            |name, reader| Seat { part: part_named(name).unwrap(), listed: false, reader: Some(reader), files: None };
        let mut host = Host {
            seats: vec![
                seat("hwmon", Box::new(Hangs(wait))),
                seat("netclass", (part_named("netclass").unwrap().make)()),
                seat("loadavg", (part_named("loadavg").unwrap().make)()),
            ],
            root: dir.path().to_owned(),
            files: Files::new(dir.path(), FILES_OPEN_MAX),
            aside: Aside::default(),
            patience: Duration::from_secs(5),
        };
        let mut polled = || {
            let mut readings = Readings::default();
            runtime.block_on(host.poll(&[0, 1, 2], &mut readings)).unwrap();
            let failures: Vec<_> = readings.failures().iter().map(|(at, failure)| (*at, failure.to_string())).collect();
            (readings.iter().filter(|reading| reading.metric != 0).count(), readings.iter().count(), failures)
        };
        let (others, _, failures) = polled();
        assert_eq!(failures, [(0, "timeout: not read within 5000 ms: a driver or a device does not answer".into())]);
        let (again, all, failures) = polled();
        assert_eq!((others, all), (again, again));
        assert_eq!(failures.len(), 1);
        assert!(failures[0].1.contains("an earlier poll still hangs"), "{failures:?}");

        for () in [(), ()] {
            release.send(()).unwrap();
        }
        let all = loop {
            let (_, all, failures) = polled();
            if failures.is_empty() {
                break all;
            }
        };
        assert_eq!(all, others + 1);
    }

    #[test]
    fn this_machine_is_told() {
        let told = told(
            Path::new("/"),
            "[[device.metric]]\nname = \"processes\"\n[[device.metric]]\nname = \"network_address\"\n",
        );
        for expected in [
            "node_boot_time_seconds gauge seconds ",
            "node_memory_MemTotal_bytes gauge bytes ",
            "node_filesystem_size_bytes ",
            "node_uname_info ",
            "node_processes_pids gauge ",
            "node_network_address_info address=\"127.0.0.1\" device=\"lo\" netmask=\"8\" scope=\"link-local\" ",
        ] {
            assert!(told.contains(expected), "{expected} is not in\n{told}");
        }
    }
}
