//! `arp`: neighbours known on each network interface.

use super::files::{Files, Trouble};
use super::{Out, Read};

#[derive(Default)]
pub(super) struct Arp {
    counts: Vec<(String, f64)>,
}

impl Read for Arp {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        self.counts.clear();
        for line in files.text("proc/net/arp")?.lines().skip(1) {
            let Some(device) = line.split_ascii_whitespace().last() else { continue };
            match self.counts.iter_mut().find(|(other, _)| other == device) {
                Some((_, count)) => *count += 1.0,
                None => self.counts.push((device.to_owned(), 1.0)),
            }
        }
        for (device, count) in &self.counts {
            out.gauge("node_arp_entries", "", &[("device", device)], *count);
        }
        Ok(())
    }
}
