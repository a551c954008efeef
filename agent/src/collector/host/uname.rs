//! `uname`: which kernel runs, on what, and how the machine is called. Asked of the kernel: no file has all of it.

use super::Out;
use super::files::{Files, Trouble};

#[expect(clippy::unnecessary_wraps, reason = "every part has this shape")]
pub(super) fn read(_: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let uname = rustix::system::uname();
    let labels = [
        ("sysname", uname.sysname().to_string_lossy()),
        ("release", uname.release().to_string_lossy()),
        ("version", uname.version().to_string_lossy()),
        ("machine", uname.machine().to_string_lossy()),
        ("nodename", uname.nodename().to_string_lossy()),
        ("domainname", uname.domainname().to_string_lossy()),
    ];
    let labels = labels.each_ref().map(|(name, text)| (*name, &**text));
    out.gauge("node_uname_info", "", &labels, 1.0);
    Ok(())
}
