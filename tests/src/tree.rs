//! Whole folders, copied as a backup or a snapshot copies them: with their permissions, links followed.

use std::path::Path;

use anyhow::Result;

/// Copies a folder and all that is in it; what is there already stays where nothing takes its place.
///
/// # Errors
/// When something can't be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    std::fs::set_permissions(to, std::fs::metadata(from)?.permissions())?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
