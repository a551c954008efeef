//! Root that gives up being root, for good.
//!
//! `sudo satellite lease set` works in a directory that belongs to the service's user. What root makes there the service
//! could not open afterwards, and what root opens there that user may have led elsewhere by a link. So the command acts
//! as the owner from its beginning: no file needs to be given away, and no link leads further than the owner himself.

use std::io;

use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

pub use rustix::fs::{Gid, Uid};

/// Where root works in a directory of this owner, it becomes the owner; says whether it did. To be called while the
/// program has one thread: those that it starts later are the owner's too.
///
/// # Errors
/// When the kernel refuses. What follows must then not be done.
pub fn act_as_owner(user: Uid, group: Gid) -> io::Result<bool> {
    if !rustix::process::geteuid().is_root() || user.is_root() {
        return Ok(false);
    }
    set_thread_groups(&[group])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    // The kernel has its own idea of who may look into a program that changed its user.
    crate::secret::keep_memory_private()?;
    Ok(true)
}
