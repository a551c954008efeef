//! `stat`: interrupts, context switches, forks, running and blocked processes, and when the machine was started.

use super::Out;
use super::files::{Files, Trouble, number};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for line in files.text("proc/stat")?.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(word), Some(value)) = (words.next(), words.next().and_then(number)) else { continue };
        match word {
            "intr" => out.counter("node_intr_total", "", &[], value),
            "ctxt" => out.counter("node_context_switches_total", "", &[], value),
            "btime" => out.gauge("node_boot_time_seconds", "seconds", &[], value),
            "processes" => out.counter("node_forks_total", "", &[], value),
            "procs_running" => out.gauge("node_procs_running", "", &[], value),
            "procs_blocked" => out.gauge("node_procs_blocked", "", &[], value),
            _ => {}
        }
    }
    Ok(())
}
