//! What a process uses, as the kernel counts it, read from outside.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of all its threads, user and kernel; counted in hundredths of a second.
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').context("a stat line")?.1.split_whitespace().collect();
    let ticks = |index: usize| -> Result<u64> { Ok(fields.get(index).context("a stat field")?.parse()?) };
    let all = ticks(11)? + ticks(12)?;
    Ok(Duration::from_millis(all * 1_000 / rustix::param::clock_ticks_per_second()))
}

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident.
    pub rss_kib: u64,
    /// Resident, shared pages by their share.
    pub pss_kib: u64,
    /// Resident and its own.
    pub private_kib: u64,
    /// The most that was ever resident.
    pub rss_max_kib: u64,
}

/// Memory of a process now.
///
/// # Errors
/// When there is no such process.
pub fn memory(pid: u32) -> Result<Memory> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let sum = |text: &str, names: &[&str]| -> u64 {
        let values = text.lines().filter_map(|line| line.split_once(':'));
        let wanted = values.filter(|(name, _)| names.contains(name));
        wanted.filter_map(|(_, value)| value.trim().trim_end_matches(" kB").parse::<u64>().ok()).sum()
    };
    Ok(Memory {
        rss_kib: sum(&rollup, &["Rss"]),
        pss_kib: sum(&rollup, &["Pss"]),
        private_kib: sum(&rollup, &["Private_Clean", "Private_Dirty"]),
        rss_max_kib: sum(&status, &["VmHWM"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.rss_kib >= memory.private_kib && memory.private_kib > 0, "{memory:?}");
        assert!(memory.rss_max_kib >= memory.rss_kib, "{memory:?}");
        assert!(cpu(std::process::id()).unwrap() < Duration::from_secs(3_600));
        assert!(cpu(u32::MAX).is_err());
    }
}
