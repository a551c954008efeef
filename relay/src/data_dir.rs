//! The folder of everything that the relay keeps on its own disk.
//!
//! It belongs to one user. `sudo satellite-relay lease create` must not leave files there that the service can't open
//! afterwards, nor follow where that user leads: root acts as the folder's owner. Files are swapped whole, by rename.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use satellite_shared::privilege::{self, Gid, Uid};

/// Where the packages keep it.
pub const DEFAULT_PATH: &str = "/var/lib/satellite-relay";

/// Why the folder can't be used, with the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The folder or a file in it can't be read or written.
    #[error(
        "{path}: {source}; let it belong to the user who runs satellite-relay, or name another folder with --data-dir"
    )]
    Denied {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file with a secret is open to others.
    #[error("{path} holds a secret and others may read it (mode {mode:03o}): chmod 600 {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another process holds a lock.
    #[error(
        "{path} is locked: another `satellite-relay serve` runs on this folder; stop it first or name another --data-dir"
    )]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
}

/// The folder; it exists and can be written to.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// Opens the folder, makes it where it is missing, and tries whether it can be written to.
    ///
    /// # Errors
    /// Names the folder and what to do.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let denied = |source| DataDirError::Denied { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(denied)?;
        rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .map_err(|errno| denied(errno.into()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Root becomes the owner of the folder, if there is one, for the rest of the program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn act_as_owner(path: &Path) -> Result<(), DataDirError> {
        let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
        let became = privilege::act_as_owner(Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
        became.map(drop).map_err(|source| DataDirError::Denied { path: path.to_owned(), source })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, for its owner alone.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn folder(&self, name: &str) -> Result<Self, DataDirError> {
        let path = self.path.join(name);
        let made = match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        made.map_err(|source| DataDirError::Denied { path: path.clone(), source })?;
        Ok(Self { path })
    }

    /// A file in it, for its owner alone; made empty where it is missing.
    ///
    /// # Errors
    /// When it can't be made or opened.
    pub fn file(&self, name: &str) -> Result<File, DataDirError> {
        let path = self.path.join(name);
        self.open_file(&path, false).map_err(|source| DataDirError::Denied { path, source })
    }

    /// Waits for a lock and holds it until the file is dropped.
    ///
    /// # Errors
    /// When its file can't be opened.
    pub fn lock(&self, name: &str) -> Result<File, DataDirError> {
        let file = self.file(name)?;
        let locked = rustix::fs::flock(&file, FlockOperation::LockExclusive);
        locked.map_err(|errno| DataDirError::Denied { path: self.path.join(name), source: errno.into() })?;
        Ok(file)
    }

    /// Takes a lock if nobody has it and holds it until the file is dropped.
    ///
    /// # Errors
    /// When another process has it.
    pub fn lock_or_refuse(&self, name: &str) -> Result<File, DataDirError> {
        let file = self.file(name)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| DataDirError::Locked { path: self.path.join(name) })?;
        Ok(file)
    }

    /// A file with a secret, if it is there; refused when others may read it.
    ///
    /// # Errors
    /// When it is open to others or can't be read.
    pub fn read_secret(&self, name: &str) -> Result<Option<String>, DataDirError> {
        let path = self.path.join(name);
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.mode() & 0o777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DataDirError::Denied { path, source }),
        };
        if mode & 0o077 != 0 {
            return Err(DataDirError::Open { path, mode });
        }
        fs::read_to_string(&path).map(Some).map_err(|source| DataDirError::Denied { path, source })
    }

    /// Swaps a whole file for another that is on disk before it has the name.
    ///
    /// # Errors
    /// When it can't be written; what was there stays.
    pub fn replace(&self, name: &str, content: &str) -> Result<(), DataDirError> {
        let path = self.path.join(name);
        self.swap(&path, content).map_err(|source| DataDirError::Denied { path, source })
    }

    fn swap(&self, path: &Path, content: &str) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = self.open_file(&new, true)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(&self.path)?.sync_all()
    }

    fn open_file(&self, path: &Path, empty: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(empty).mode(0o600).open(path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_is_for_its_owner_alone_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(&dir.path().join("a/b")).unwrap();
        let folder = data_dir.folder("authority").unwrap();
        let folder = data_dir.folder("authority").map(|again| (folder, again)).unwrap().1;
        folder.replace("x.pem", "one").unwrap();
        folder.replace("x.pem", "two").unwrap();
        assert_eq!(folder.read_secret("x.pem").unwrap().as_deref(), Some("two"));
        for (path, mode) in [(folder.path().to_owned(), 0o700), (folder.path().join("x.pem"), 0o600)] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(dir.path()).unwrap();
        assert_eq!(data_dir.read_secret("x.pem").unwrap(), None);
        data_dir.replace("x.pem", "one").unwrap();
        fs::set_permissions(dir.path().join("x.pem"), fs::Permissions::from_mode(0o640)).unwrap();
        let error = data_dir.read_secret("x.pem").unwrap_err().to_string();
        assert!(error.contains("mode 640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_folder_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = DataDir::open(&dir.path().join("file")).unwrap_err().to_string();
        assert!(error.contains("--data-dir"), "{error}");
    }

    #[test]
    fn a_lock_is_one_process_s() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(dir.path()).unwrap();
        let held = data_dir.lock_or_refuse("serve.lock").unwrap();
        let error = data_dir.lock_or_refuse("serve.lock").unwrap_err().to_string();
        assert!(error.contains("another `satellite-relay serve`"), "{error}");
        drop(held);
        assert!(data_dir.lock_or_refuse("serve.lock").is_ok());
    }
}
