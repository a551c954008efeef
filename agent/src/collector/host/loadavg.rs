//! `loadavg`: how many processes ran or wanted to, over one, five and fifteen minutes.

use super::Out;
use super::files::{Files, Trouble, number};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let mut words = files.text("proc/loadavg")?.split_ascii_whitespace().map(number);
    let [Some(Some(one)), Some(Some(five)), Some(Some(fifteen))] = [words.next(), words.next(), words.next()] else {
        return Err(files.malformed("it does not begin with three numbers"));
    };
    out.gauge("node_load1", "", &[], one);
    out.gauge("node_load5", "", &[], five);
    out.gauge("node_load15", "", &[], fifteen);
    Ok(())
}
