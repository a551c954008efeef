//! How much memory a process has, as the kernel counts it.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Of one moment, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What is resident now.
    pub rss_kib: u64,
    /// Of that, pages of files: the program's own, which come as its parts are used for the first time.
    pub file_kib: u64,
    /// The most that was since the start, or since [`forget_peak`].
    pub peak_kib: u64,
}

/// The memory of a process.
///
/// # Errors
/// When there is no such process.
pub fn of(process: u32) -> Result<Memory> {
    let status = std::fs::read_to_string(path(process, "status")).with_context(|| format!("process {process}"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    };
    Ok(Memory { rss_kib: field("VmRSS:")?, file_kib: field("RssFile:")?, peak_kib: field("VmHWM:")? })
}

/// From now on the peak is counted anew.
///
/// # Errors
/// When there is no such process.
pub fn forget_peak(process: u32) -> Result<()> {
    Ok(std::fs::write(path(process, "clear_refs"), "5")?)
}

fn path(process: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/{file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_allocated_and_freed_shows_in_the_peak_until_it_is_forgotten() {
        let me = std::process::id();
        drop(std::hint::black_box(vec![7_u8; 64 << 20]));
        let before = of(me).unwrap();
        assert!(before.peak_kib >= before.rss_kib && before.peak_kib > 60 << 10, "{before:?}");
        forget_peak(me).unwrap();
        assert!(of(me).unwrap().peak_kib < before.peak_kib);
    }
}
