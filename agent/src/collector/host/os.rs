//! `os`: which distribution the machine runs.

use super::files::{Files, Stamp, Trouble};
use super::{Out, Read};

/// Far more than any distribution writes.
const RELEASE_BYTES_MAX: usize = 64 << 10;
/// The labels, and the variables they come from.
const LABELS: [(&str, &str); 12] = [
    ("build_id", "BUILD_ID"),
    ("id", "ID"),
    ("id_like", "ID_LIKE"),
    ("image_id", "IMAGE_ID"),
    ("image_version", "IMAGE_VERSION"),
    ("name", "NAME"),
    ("pretty_name", "PRETTY_NAME"),
    ("variant", "VARIANT"),
    ("variant_id", "VARIANT_ID"),
    ("version", "VERSION"),
    ("version_codename", "VERSION_CODENAME"),
    ("version_id", "VERSION_ID"),
];

/// What the file said; it is read again when it is another.
#[derive(Default)]
pub(super) struct Os {
    read: Option<(&'static str, Stamp)>,
    values: [String; LABELS.len()],
}

impl Read for Os {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        let found = ["etc/os-release", "usr/lib/os-release"]
            .into_iter()
            .find_map(|file| files.stamp(file).map(|stamp| (file, stamp)));
        if found.is_none() || found != self.read {
            let file = found.map_or("etc/os-release", |(file, _)| file);
            self.values = values(files.text_up_to(file, RELEASE_BYTES_MAX)?);
            self.read = found;
        }
        let mut labels = [("", ""); LABELS.len()];
        for ((label, (name, _)), value) in labels.iter_mut().zip(LABELS).zip(&self.values) {
            *label = (name, value);
        }
        out.gauge("node_os_info", "", &labels, 1.0);
        let [_, id, id_like, _, _, name, .., version_id] = labels;
        if let Some(version) = leading_number(version_id.1).filter(|version| *version > 0.0) {
            out.gauge("node_os_version", "", &[id, id_like, name], version);
        }
        Ok(())
    }
}

fn values(text: &str) -> [String; LABELS.len()] {
    let mut values = LABELS.map(|_| String::new());
    for line in text.lines() {
        let Some((variable, value)) = line.trim().split_once('=') else { continue };
        if let Some(at) = LABELS.iter().position(|(_, name)| *name == variable) {
            values[at] = unquote(value);
        }
    }
    values
}

/// A value as a shell would read it: in either quotes, a backslash before `"`, `$`, `` ` `` and itself.
fn unquote(value: &str) -> String {
    if let Some(plain) = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return plain.to_owned();
    }
    let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    let mut plain = String::with_capacity(value.len());
    let mut letters = value.chars().peekable();
    while let Some(letter) = letters.next() {
        match letters.next_if(|next| letter == '\\' && "\"$`\\".contains(*next)) {
            Some(escaped) => plain.push(escaped),
            None => plain.push(letter),
        }
    }
    plain
}

/// `12.5` of `12.5-rc1`; major and minor only.
fn leading_number(text: &str) -> Option<f64> {
    let mut dots = 0;
    let end = text.find(|letter: char| {
        dots += usize::from(letter == '.');
        !(letter.is_ascii_digit() || (letter == '.' && dots == 1))
    });
    let text = &text[..end.unwrap_or(text.len())];
    text.starts_with(|letter: char| letter.is_ascii_digit()).then(|| text.trim_end_matches('.').parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collector::Readings;

    #[test]
    fn an_upgrade_is_told_by_the_next_poll() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let mut files = Files::new(dir.path(), 2);
        let mut os = Os::default();
        let mut version = || {
            let mut readings = Readings::default();
            let outcome = os.read(&mut files, &mut Out { readings: &mut readings, metric: 0 });
            let version = readings.iter().last().map(|reading| reading.value);
            outcome.map(|()| version).map_err(|trouble| trouble.is_absent())
        };
        assert_eq!(version(), Err(true));
        for number in [12.0, 12.0, 13.0] {
            let new = dir.path().join("etc/new");
            std::fs::write(&new, format!("ID=debian\nVERSION_ID=\"{number}\"\n")).unwrap();
            std::fs::rename(new, dir.path().join("etc/os-release")).unwrap();
            assert_eq!(version(), Ok(Some(number)));
            assert_eq!(version(), Ok(Some(number)));
        }
        std::fs::remove_file(dir.path().join("etc/os-release")).unwrap();
        assert_eq!(version(), Err(true));
    }

    #[test]
    fn values_are_read_as_a_shell_reads_them() {
        for (value, plain) in [
            ("debian", "debian"),
            ("\"a \\\"b\\\" \\$c \\n\"", "a \"b\" $c \\n"),
            ("'a \\\" b'", "a \\\" b"),
            ("\"", "\""),
        ] {
            assert_eq!(unquote(value), plain);
        }
    }

    #[test]
    fn a_version_is_its_major_and_minor_number() {
        for (text, version) in [
            ("12", Some(12.0)),
            ("22.04", Some(22.04)),
            ("3.18.4", Some(3.18)),
            ("7.", Some(7.0)),
            ("rolling", None),
            ("", None),
            (".5", None),
        ] {
            assert_eq!(leading_number(text), version, "{text}");
        }
    }
}
