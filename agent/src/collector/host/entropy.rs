//! `entropy`: what the kernel's random number generator has gathered.

use super::Out;
use super::files::{Files, Trouble};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let available = files.number("proc/sys/kernel/random/entropy_avail")?;
    let pool = files.number("proc/sys/kernel/random/poolsize")?;
    out.gauge("node_entropy_available_bits", "", &[], available);
    out.gauge("node_entropy_pool_size_bits", "", &[], pool);
    Ok(())
}
