//! `vmstat`: paging, swapping, page faults, and processes killed for want of memory.

use super::files::{Files, Names, Trouble, number};
use super::{Out, Read};

#[derive(Default)]
pub(super) struct Vmstat {
    names: Names,
}

impl Read for Vmstat {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        let text = files.text("proc/vmstat")?;
        for (place, line) in text.lines().enumerate() {
            let Some((word, value)) = line.split_once(' ') else { continue };
            if !wanted(word) {
                continue;
            }
            let Some(value) = number(value) else { return Err(files.malformed("a count is no number")) };
            out.untyped(self.names.at(place, "", word, || format!("node_vmstat_{word}")), &[], value);
        }
        Ok(())
    }
}

/// `^(oom_kill|pgpg|pswp|pg.*fault).*`
fn wanted(word: &str) -> bool {
    match word.as_bytes() {
        [b'p', b'g', ..] => word.starts_with("pgpg") || word[2..].contains("fault"),
        [b'p', ..] => word.starts_with("pswp"),
        _ => word.starts_with("oom_kill"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_node_exporters() {
        for word in ["oom_kill", "pgpgin", "pgpgout", "pswpin", "pgfault", "pgmajfault", "pgfault_x"] {
            assert!(wanted(word), "{word}");
        }
        for word in [
            "pgalloc_normal",
            "pageoutrun",
            "nr_free_pages",
            "pg",
            "p",
            "",
            "workingset_refault_file",
            "thp_fault_alloc",
        ] {
            assert!(!wanted(word), "{word}");
        }
    }
}
