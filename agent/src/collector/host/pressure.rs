//! `pressure`: how long tasks waited for processor, memory and disk.

use super::Out;
use super::files::{Files, Trouble, number};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for (file, waiting, stalled) in [
        ("proc/pressure/cpu", "node_pressure_cpu_waiting_seconds_total", None),
        ("proc/pressure/io", "node_pressure_io_waiting_seconds_total", Some("node_pressure_io_stalled_seconds_total")),
        (
            "proc/pressure/memory",
            "node_pressure_memory_waiting_seconds_total",
            Some("node_pressure_memory_stalled_seconds_total"),
        ),
    ] {
        for line in files.text(file)?.lines() {
            let name = match line.split_once(' ') {
                Some(("some", _)) => Some(waiting),
                Some(("full", _)) => stalled,
                _ => None,
            };
            let total = line.rsplit_once("total=").and_then(|(_, total)| number(total));
            if let (Some(name), Some(microseconds)) = (name, total) {
                out.counter(name, "seconds", &[], microseconds / 1000.0 / 1000.0);
            }
        }
    }
    Ok(())
}
