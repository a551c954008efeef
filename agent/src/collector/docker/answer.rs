//! What Docker and Podman answer, as far as it is read, and what cAdvisor would call it.
//!
//! cgroups of the first and the second version count memory differently; cAdvisor's working set is, for both, what is used
//! without the files that have not been read of late. Podman does not tell those, so there is no working set of its
//! containers. A device of a disk goes by its numbers, `8:0`: the engine does not know its name.

use std::collections::BTreeMap;

use chrono::DateTime;
use satellite_shared::gap::Reason;
use serde::Deserialize;

use super::super::{Failure, Family, Readings};
use super::{Labels, STATS};

/// Bytes of a word that an engine chose and that becomes a label.
const LABEL_BYTES_MAX: usize = 256;
/// Networks of one container.
const NETWORKS_MAX: usize = 32;
/// Counts of one container's disks: eight a disk.
const DISK_COUNTS_MAX: usize = 512;

/// One container of the list.
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    #[serde(rename = "Id")]
    pub(super) id: String,
    #[serde(rename = "Names", default)]
    names: Option<Vec<String>>,
    #[serde(rename = "Image", default)]
    image: String,
}

impl Listed {
    /// Whether its id is one: it goes into a path.
    pub(super) fn has_id(&self) -> bool {
        (12..=64).contains(&self.id.len()) && self.id.bytes().all(|b| b.is_ascii_hexdigit())
    }

    /// Its first name; its id where it has none.
    pub(super) fn name(&self) -> &str {
        let name = self.names.iter().flatten().next().map(|name| name.strip_prefix('/').unwrap_or(name));
        cut(name.filter(|name| !name.is_empty()).unwrap_or(&self.id))
    }

    pub(super) fn labels(&self) -> Labels<'_> {
        [("id", &self.id), ("image", cut(&self.image)), ("name", self.name())]
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LABEL_BYTES_MAX)]
}

/// How a container is.
#[derive(Debug, Deserialize)]
pub(super) struct Inspected {
    #[serde(rename = "State")]
    state: State,
    #[serde(rename = "RestartCount", default)]
    restarts: u32,
    #[serde(rename = "HostConfig", default)]
    host: HostConfig,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    #[serde(rename = "OOMKilled", default)]
    oom_killed: bool,
    #[serde(default)]
    started_at: String,
    #[serde(default)]
    finished_at: String,
    #[serde(default)]
    health: Option<Health>,
}

#[derive(Debug, Deserialize)]
struct Health {
    #[serde(rename = "Status", default)]
    status: String,
}

#[derive(Debug, Default, Deserialize)]
struct HostConfig {
    #[serde(rename = "Memory", default)]
    memory: i64,
}

impl Inspected {
    /// Whether there is something that it takes.
    pub(super) fn runs(&self) -> bool {
        matches!(self.state.status.as_str(), "running" | "paused")
    }

    pub(super) fn restarts(&self) -> f64 {
        f64::from(self.restarts)
    }

    pub(super) fn was_killed_for_memory(&self) -> bool {
        self.state.oom_killed
    }

    /// 0 where there is none, as cAdvisor has it.
    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^53")]
    pub(super) fn memory_limit_bytes(&self) -> f64 {
        self.host.memory.max(0) as f64
    }

    /// Seconds since 1970; nothing where it has not been.
    pub(super) fn started(&self) -> Option<f64> {
        seconds(&self.state.started_at)
    }

    pub(super) fn finished(&self) -> Option<f64> {
        seconds(&self.state.finished_at)
    }

    pub(super) fn status(&self) -> &str {
        word(&self.state.status)
    }

    /// `none` where there is no check; Podman says nothing then.
    pub(super) fn health(&self) -> &str {
        let status = self.state.health.as_ref().map_or("", |health| health.status.as_str());
        if status.is_empty() { "none" } else { word(status) }
    }
}

fn word(text: &str) -> &str {
    let is_word = (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    if is_word { text } else { "unknown" }
}

/// What never was is told as the first day of the first year.
#[expect(clippy::cast_precision_loss, reason = "times far below 2^53")]
fn seconds(text: &str) -> Option<f64> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    Some(time.timestamp_millis()).filter(|millis| *millis > 0).map(|millis| millis as f64 / 1e3)
}

/// What a container takes.
#[derive(Debug, Deserialize)]
pub(super) struct Stats {
    #[serde(default)]
    read: String,
    #[serde(default)]
    cpu_stats: Cpu,
    #[serde(default)]
    memory_stats: Memory,
    #[serde(default)]
    pids_stats: Pids,
    #[serde(default)]
    blkio_stats: Disks,
    #[serde(default)]
    networks: Option<BTreeMap<String, Network>>,
}

impl Stats {
    /// Refuses an answer that does not say when it was true.
    pub(super) fn checked(self) -> Result<Self, Failure> {
        match DateTime::parse_from_rfc3339(&self.read) {
            Ok(_) => Ok(self),
            Err(error) => Err(Failure::new(Reason::BadAnswer, format!("`read` is no time: {error}"))),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct Cpu {
    #[serde(default)]
    cpu_usage: CpuUsage,
    #[serde(default)]
    throttling_data: Throttling,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CpuUsage {
    total_usage: Option<u64>,
    usage_in_kernelmode: Option<u64>,
    usage_in_usermode: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Throttling {
    periods: u64,
    throttled_periods: u64,
    throttled_time: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    usage: Option<u64>,
    max_usage: Option<u64>,
    failcnt: Option<u64>,
    stats: Option<MemoryParts>,
}

/// Those of the first version begin with `total_`, which counts the groups below as well.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MemoryParts {
    total_inactive_file: Option<u64>,
    total_rss: Option<u64>,
    total_cache: Option<u64>,
    total_swap: Option<u64>,
    inactive_file: Option<u64>,
    anon: Option<u64>,
    file: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pids {
    current: Option<u64>,
    limit: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Disks {
    io_service_bytes_recursive: Option<Vec<DiskCount>>,
    io_serviced_recursive: Option<Vec<DiskCount>>,
}

#[derive(Debug, Deserialize)]
struct DiskCount {
    major: u64,
    minor: u64,
    op: String,
    value: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    rx_bytes: u64,
    rx_packets: u64,
    rx_errors: u64,
    rx_dropped: u64,
    tx_bytes: u64,
    tx_packets: u64,
    tx_errors: u64,
    tx_dropped: u64,
}

/// Adds the samples of one container, with labels of their own after these.
struct Adding<'a, 'r> {
    labels: Labels<'a>,
    readings: &'r mut Readings,
}

impl Adding<'_, '_> {
    #[expect(clippy::cast_precision_loss, reason = "bytes and times far below 2^53")]
    fn add(&mut self, family: Family<'_>, label: Option<(&str, &str)>, value: impl Into<Option<u64>>, divisor: f64) {
        // The highest number there is stands for none.
        let Some(value) = value.into().filter(|value| *value != u64::MAX) else { return };
        let labels: Vec<(&str, &str)> = label.into_iter().chain(self.labels).collect();
        self.readings.sample(STATS, family, &labels, value as f64 / divisor);
    }
}

/// All that is known of what one container takes; nothing where it has ended since.
pub(super) fn add_stats(stats: &Stats, labels: Labels<'_>, readings: &mut Readings) {
    let Some(seen) = seconds(&stats.read) else { return };
    readings.sample(STATS, Family::gauge("container_last_seen", "seconds"), &labels, seen);
    let mut adding = Adding { labels, readings };
    add_cpu(&stats.cpu_stats, &mut adding);
    add_memory(&stats.memory_stats, &mut adding);
    adding.add(Family::gauge("container_threads", ""), None, stats.pids_stats.current, 1.0);
    adding.add(Family::gauge("container_threads_max", ""), None, stats.pids_stats.limit, 1.0);
    add_disks(&stats.blkio_stats, &mut adding);
    for (interface, network) in stats.networks.iter().flatten().take(NETWORKS_MAX) {
        add_network(cut(interface), network, &mut adding);
    }
}

fn add_cpu(cpu: &Cpu, adding: &mut Adding<'_, '_>) {
    let seconds = |name| Family::counter(name, "seconds");
    let CpuUsage { total_usage, usage_in_kernelmode, usage_in_usermode } = cpu.cpu_usage;
    adding.add(seconds("container_cpu_usage_seconds_total"), Some(("cpu", "total")), total_usage, 1e9);
    adding.add(seconds("container_cpu_system_seconds_total"), None, usage_in_kernelmode, 1e9);
    adding.add(seconds("container_cpu_user_seconds_total"), None, usage_in_usermode, 1e9);
    let Throttling { periods, throttled_periods, throttled_time } = cpu.throttling_data;
    if periods > 0 {
        adding.add(Family::counter("container_cpu_cfs_periods_total", ""), None, periods, 1.0);
        adding.add(Family::counter("container_cpu_cfs_throttled_periods_total", ""), None, throttled_periods, 1.0);
        adding.add(seconds("container_cpu_cfs_throttled_seconds_total"), None, throttled_time, 1e9);
    }
}

fn add_memory(memory: &Memory, adding: &mut Adding<'_, '_>) {
    let none = MemoryParts::default();
    let parts = memory.stats.as_ref().unwrap_or(&none);
    let idle = parts.total_inactive_file.or(parts.inactive_file);
    let working = memory.usage.zip(idle).map(|(usage, idle)| usage.saturating_sub(idle));
    for (name, value) in [
        ("container_memory_usage_bytes", memory.usage),
        ("container_memory_working_set_bytes", working),
        ("container_memory_max_usage_bytes", memory.max_usage),
        ("container_memory_rss", parts.total_rss.or(parts.anon)),
        ("container_memory_cache", parts.total_cache.or(parts.file)),
        ("container_memory_swap", parts.total_swap),
    ] {
        adding.add(Family::gauge(name, "bytes"), None, value, 1.0);
    }
    adding.add(Family::counter("container_memory_failcnt", ""), None, memory.failcnt, 1.0);
}

fn add_disks(disks: &Disks, adding: &mut Adding<'_, '_>) {
    for (counts, read, written, unit) in [
        (
            &disks.io_service_bytes_recursive,
            "container_fs_reads_bytes_total",
            "container_fs_writes_bytes_total",
            "bytes",
        ),
        (&disks.io_serviced_recursive, "container_fs_reads_total", "container_fs_writes_total", ""),
    ] {
        let mut sums: BTreeMap<(u64, u64), [u64; 2]> = BTreeMap::new();
        for count in counts.iter().flatten().take(DISK_COUNTS_MAX) {
            let which = match count.op.as_str() {
                "read" | "Read" => 0,
                "write" | "Write" => 1,
                _ => continue,
            };
            let sum = &mut sums.entry((count.major, count.minor)).or_default()[which];
            *sum = sum.saturating_add(count.value);
        }
        for ((major, minor), [reads, writes]) in sums {
            let device = format!("{major}:{minor}");
            adding.add(Family::counter(read, unit), Some(("device", &device)), reads, 1.0);
            adding.add(Family::counter(written, unit), Some(("device", &device)), writes, 1.0);
        }
    }
}

fn add_network(interface: &str, network: &Network, adding: &mut Adding<'_, '_>) {
    for (name, unit, value) in [
        ("container_network_receive_bytes_total", "bytes", network.rx_bytes),
        ("container_network_receive_packets_total", "", network.rx_packets),
        ("container_network_receive_errors_total", "", network.rx_errors),
        ("container_network_receive_packets_dropped_total", "", network.rx_dropped),
        ("container_network_transmit_bytes_total", "bytes", network.tx_bytes),
        ("container_network_transmit_packets_total", "", network.tx_packets),
        ("container_network_transmit_errors_total", "", network.tx_errors),
        ("container_network_transmit_packets_dropped_total", "", network.tx_dropped),
    ] {
        adding.add(Family::counter(name, unit), Some(("interface", interface)), value, 1.0);
    }
}
