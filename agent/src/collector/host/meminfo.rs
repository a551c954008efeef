//! `meminfo`: memory, all that the kernel tells of it.

use super::files::{Files, Names, Trouble, number};
use super::{Out, Read};

#[derive(Default)]
pub(super) struct Meminfo {
    names: Names,
}

impl Read for Meminfo {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        let text = files.text("proc/meminfo")?;
        for (place, line) in text.lines().enumerate() {
            let Some((word, rest)) = line.split_once(':') else { continue };
            let mut rest = rest.split_ascii_whitespace();
            let Some(value) = rest.next().and_then(number) else {
                return Err(files.malformed("an amount of memory is no number"));
            };
            if rest.next().is_some() {
                let name = self.names.at(place, "kB", word, || format!("{}_bytes", metric_name(word)));
                out.gauge(name, "bytes", &[], value * 1024.0);
            } else {
                out.gauge(self.names.at(place, "", word, || metric_name(word)), "", &[], value);
            }
        }
        Ok(())
    }
}

/// `Active(anon)` is `node_memory_Active_anon`.
fn metric_name(word: &str) -> String {
    let word = word.replace('(', "_").replace(')', "");
    format!("node_memory_{word}")
}
