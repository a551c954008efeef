//! `softnet`: packets that each processor took from the network, dropped, or left for the next round.

use super::Out;
use super::files::{Files, Trouble};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let text = files.text("proc/net/softnet_stat")?;
    for (line, place) in text.lines().zip(0_usize..) {
        let columns: Vec<u32> =
            line.split_ascii_whitespace().map_while(|word| u32::from_str_radix(word, 16).ok()).collect();
        let [processed, dropped, squeezed, ..] = columns[..] else {
            return Err(files.malformed("fewer than three hexadecimal numbers"));
        };
        // The thirteenth column names the processor since Linux 5.10; before, the line does.
        let cpu = columns.get(12).map_or(place, |cpu| *cpu as usize).to_string();
        let labels = [("cpu", cpu.as_str())];
        out.counter("node_softnet_processed_total", "", &labels, f64::from(processed));
        out.counter("node_softnet_dropped_total", "", &labels, f64::from(dropped));
        out.counter("node_softnet_times_squeezed_total", "", &labels, f64::from(squeezed));
    }
    Ok(())
}
