//! `filefd`: files open on the whole machine, and how many may be.

use super::Out;
use super::files::{Files, Trouble, number};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let mut words = files.line("proc/sys/fs/file-nr")?.split_ascii_whitespace().map(number);
    // Between the two stands what is free, which is 0 since Linux 2.6.
    let [Some(Some(allocated)), Some(_), Some(Some(maximum))] = [words.next(), words.next(), words.next()] else {
        return Err(files.malformed("not three numbers"));
    };
    out.gauge("node_filefd_allocated", "", &[], allocated);
    out.gauge("node_filefd_maximum", "", &[], maximum);
    Ok(())
}
