//! `os`: which distribution the machine runs.

use super::Out;
use super::files::{Files, Trouble};

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

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let text = match files.text_up_to("etc/os-release", RELEASE_BYTES_MAX) {
        Err(trouble) if trouble.is_absent() => files.text_up_to("usr/lib/os-release", RELEASE_BYTES_MAX)?,
        Err(trouble) => return Err(trouble),
        Ok(_) => files.text_up_to("etc/os-release", RELEASE_BYTES_MAX)?,
    };
    let mut values = LABELS.map(|_| String::new());
    for line in text.lines() {
        let Some((variable, value)) = line.trim().split_once('=') else { continue };
        if let Some(at) = LABELS.iter().position(|(_, name)| *name == variable) {
            values[at] = unquote(value);
        }
    }
    let mut labels = [("", ""); LABELS.len()];
    for ((label, (name, _)), value) in labels.iter_mut().zip(LABELS).zip(&values) {
        *label = (name, value);
    }
    out.gauge("node_os_info", "", &labels, 1.0);
    let [_, id, id_like, _, _, name, .., version_id] = labels;
    if let Some(version) = leading_number(version_id.1).filter(|version| *version > 0.0) {
        out.gauge("node_os_version", "", &[id, id_like, name], version);
    }
    Ok(())
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
