//! `rapl`: energy that the processor's own meters counted.

use super::Out;
use super::files::{Files, Trouble};

const ZONES: &str = "sys/class/powercap";

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let mut seen: Vec<(String, usize)> = Vec::new();
    for zone in files.names(ZONES)? {
        if !zone.starts_with("intel-rapl") {
            continue;
        }
        let Some(name) = files.line_if_any(&format!("{ZONES}/{zone}/name")) else { continue };
        let (name, index) = name_and_index(&name, &mut seen);
        let microjoules = match files.number(&format!("{ZONES}/{zone}/energy_uj")) {
            // Root's only, since the counters were found to tell secrets: then there is no data, as node_exporter has it.
            Err(Trouble::Denied(path)) => return Err(Trouble::Absent(path)),
            other => other?,
        };
        let metric = format!("node_rapl_{}_joules_total", name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
        let path = files.path(&format!("{ZONES}/{zone}"));
        let labels = [("index", index.as_str()), ("path", &path.to_string_lossy())];
        out.counter(&metric, "joules", &labels, microjoules / 1_000_000.0);
    }
    Ok(())
}

/// `package-0` is package 0; a name without a number is numbered as it comes.
fn name_and_index(text: &str, seen: &mut Vec<(String, usize)>) -> (String, String) {
    if let Some((name, index)) = text.rsplit_once('-')
        && index.parse::<u32>().is_ok()
    {
        return (name.to_owned(), index.to_owned());
    }
    let at = seen.iter().position(|(name, _)| name == text).unwrap_or_else(|| {
        seen.push((text.to_owned(), 0));
        seen.len() - 1
    });
    let index = seen[at].1;
    seen[at].1 += 1;
    (text.to_owned(), index.to_string())
}
