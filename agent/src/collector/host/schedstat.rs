//! `schedstat`: how long tasks ran on each processor, and waited for it.

use super::Out;
use super::files::{Files, Trouble, number};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for line in files.text("proc/schedstat")?.lines() {
        let Some((cpu, columns)) = line.strip_prefix("cpu").and_then(|rest| rest.split_once(' ')) else { continue };
        let mut columns = columns.split_ascii_whitespace().skip(6).map(number);
        let [Some(Some(running)), Some(Some(waiting)), Some(Some(slices))] =
            [columns.next(), columns.next(), columns.next()]
        else {
            return Err(files.malformed("a processor has fewer than nine numbers"));
        };
        let labels = [("cpu", cpu)];
        out.counter("node_schedstat_running_seconds_total", "seconds", &labels, running / 1e9);
        out.counter("node_schedstat_waiting_seconds_total", "seconds", &labels, waiting / 1e9);
        out.counter("node_schedstat_timeslices_total", "", &labels, slices);
    }
    Ok(())
}
