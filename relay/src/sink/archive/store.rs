//! Where objects lie: a local folder, or a bucket of an S3-compatible server.
//!
//! Three verbs are all that a commit needs: put an object whole, ask how long it is, delete it. A put that succeeded
//! is durable: the local folder syncs the file and its directories before the rename shows it.
//!
//! Another kind of store is one more arm in [`Settings::open`].

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{ClientConfigKey, ClientOptions};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreExt, RetryConfig};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use crate::data_dir::{DataDir, DataDirError};

/// The folder below the data directory where records lie when the settings name no other place.
pub const FOLDER: &str = "records";
/// What the service manager calls a credentials file that it hands over: `LoadCredential=s3-credentials:FILE`.
const CREDENTIAL: &str = "s3-credentials";
/// A credentials file: two short lines.
const CREDENTIALS_BYTES_MAX: u64 = 16 << 10;
/// One request to a bucket; a commit's objects are a few megabytes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the archive lies: the table `[archive]` of the relay's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `s3://bucket/prefix`, or a folder; without it, `records` in the data directory.
    pub url: Option<String>,
    /// The S3-compatible server, where it is not AWS: `https://minio.example:9000`.
    pub endpoint: Option<String>,
    /// The bucket's region; `us-east-1` when unset here and in the environment.
    pub region: Option<String>,
    /// The access key's id; else `AWS_ACCESS_KEY_ID`, the credentials file, or the machine's role.
    pub access_key_id: Option<String>,
    /// The access key; else `AWS_SECRET_ACCESS_KEY`, the credentials file, or the machine's role.
    pub secret_access_key: Option<AccessKey>,
    /// A file with the lines `aws_access_key_id = …` and `aws_secret_access_key = …`.
    pub credentials_file: Option<PathBuf>,
    /// Allow an endpoint without TLS: for tests and for a server on the same machine.
    #[serde(default)]
    pub allow_http: bool,
}

/// The secret half of an access key; `Debug` never shows it.
#[derive(Clone)]
pub struct AccessKey(SecretString);

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessKey(…)")
    }
}

impl From<String> for AccessKey {
    fn from(key: String) -> Self {
        Self(key.into())
    }
}

impl PartialEq for AccessKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose_secret() == other.0.expose_secret()
    }
}

impl Eq for AccessKey {}

impl<'de> Deserialize<'de> for AccessKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

/// Why a place for the archive can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPlace {
    /// The URL is of a kind that this program does not write to.
    #[error("archive url `{0}`: use a folder, file:///folder or s3://bucket/prefix")]
    Scheme(String),
    /// The S3 settings do not fit each other.
    #[error("archive bucket: {0}")]
    Bucket(#[source] object_store::Error),
    /// The endpoint has no TLS and nobody allowed it.
    #[error("archive endpoint `{0}` has no TLS: use https://, or set allow_http = true for a server on this machine")]
    PlainHttp(String),
    /// The key id without the key, or the key without its id.
    #[error("archive access key: set both access_key_id and secret_access_key, or neither")]
    HalfKey,
    /// The credentials file can't be read.
    #[error("archive credentials file {path}: {source}")]
    CredentialsFile {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The credentials file holds something else.
    #[error("archive credentials file {0}: it needs the lines `aws_access_key_id = …` and `aws_secret_access_key = …`")]
    Credentials(PathBuf),
    /// The default folder can't be made.
    #[error(transparent)]
    DataDir(DataDirError),
    /// The folder can't be made or entered.
    #[error("archive folder {path}: {source}")]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The folder can't be used as a store.
    #[error("archive folder {path}: {source}")]
    Local {
        /// Which folder.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: object_store::Error,
    },
}

/// A store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {key}: {source}")]
pub struct StoreError {
    /// What was asked.
    pub verb: &'static str,
    /// Of which object, or below which folder.
    pub key: String,
    /// What it said.
    #[source]
    pub source: object_store::Error,
}

impl StoreError {
    /// Whether the object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.source, object_store::Error::NotFound { .. })
    }
}

/// An object that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
}

/// Where objects lie.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// For people: where to find the records.
    place: String,
}

impl Settings {
    /// Opens the place. No request is made: a bucket that does not answer is found out by the first commit.
    ///
    /// # Errors
    /// Says which setting can't be used, and what to write instead.
    pub fn open(&self, data_dir: &DataDir) -> Result<Store, InvalidPlace> {
        match self.url.as_deref() {
            None => local(data_dir.folder(FOLDER).map_err(InvalidPlace::DataDir)?.path()),
            Some(url) if url.starts_with("s3://") => self.bucket(url),
            Some(url) if url.starts_with("file://") => local(FilePath::new(&url["file://".len()..])),
            Some(url) if url.contains("://") => Err(InvalidPlace::Scheme(url.chars().take(200).collect())),
            Some(folder) => local(&data_dir.path().join(folder)),
        }
    }

    /// Reads the access key now, where it lies in a file that can be read: root may be about to stop being root.
    pub fn hold_credentials(&mut self) {
        if let Ok(Some((id, key))) = self.access_key() {
            (self.access_key_id, self.secret_access_key) = (Some(id), Some(key));
        }
    }

    fn bucket(&self, url: &str) -> Result<Store, InvalidPlace> {
        let rest = url["s3://".len()..].trim_end_matches('/');
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(InvalidPlace::Scheme(url.chars().take(200).collect()));
        }
        // `with_url` is not used: it would take a bucket from a host name of its own choosing.
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_client_options(client_options(self.allow_http))
            .with_retry(retry());
        if let Some(endpoint) = &self.endpoint {
            if endpoint.starts_with("http://") && !self.allow_http {
                return Err(InvalidPlace::PlainHttp(endpoint.chars().take(200).collect()));
            }
            builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        } else if builder.get_config_value(&AmazonS3ConfigKey::Region).is_none() {
            builder = builder.with_region("us-east-1");
        }
        if let Some((id, key)) = self.access_key()? {
            builder = builder.with_access_key_id(id).with_secret_access_key(key.0.expose_secret());
        }
        let objects = builder.build().map_err(InvalidPlace::Bucket)?;
        let prefix = Path::from(prefix);
        let objects: Arc<dyn ObjectStore> = match prefix.as_ref() {
            "" => Arc::new(objects),
            _ => Arc::new(PrefixStore::new(objects, prefix)),
        };
        Ok(Store { objects, place: url.to_owned() })
    }

    fn access_key(&self) -> Result<Option<(String, AccessKey)>, InvalidPlace> {
        match (&self.access_key_id, &self.secret_access_key, &self.credentials_file) {
            (Some(id), Some(key), _) => Ok(Some((id.clone(), key.clone()))),
            (None, None, Some(path)) => credentials(path).map(Some),
            (None, None, None) => {
                let handed = std::env::var_os("CREDENTIALS_DIRECTORY");
                handed_over(handed.as_deref()).map_or(Ok(None), |path| credentials(&path).map(Some))
            }
            (Some(_), None, _) | (None, Some(_), _) => Err(InvalidPlace::HalfKey),
        }
    }
}

impl Store {
    /// A store of any make.
    #[must_use]
    pub fn new(objects: Arc<dyn ObjectStore>, place: String) -> Self {
        Self { objects, place }
    }

    /// Where the objects lie, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Puts an object whole, over whatever stands under its key.
    ///
    /// # Errors
    /// What the store said. The object may be there all the same.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.objects.put(&Path::from(key), bytes.into()).await.map(drop).map_err(|e| error("put", key, e))
    }

    /// How long the object is; `None` where it is not there.
    ///
    /// # Errors
    /// What the store said.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        match self.objects.head(&Path::from(key)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(error("ask for", key, source)),
        }
    }

    /// Deletes an object; one that is not there is deleted already.
    ///
    /// # Errors
    /// What the store said.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.objects.delete(&Path::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(error("delete", key, source)),
        }
    }

    /// An object's bytes.
    ///
    /// # Errors
    /// What the store said.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let path = Path::from(key);
        let got = async { self.objects.get(&path).await?.bytes().await };
        got.await.map_err(|e| error("get", key, e))
    }

    /// An object's last bytes, at most so many.
    ///
    /// # Errors
    /// What the store said.
    pub async fn tail(&self, entry: &Entry, bytes_max: u64) -> Result<Bytes, StoreError> {
        let range = entry.bytes.saturating_sub(bytes_max)..entry.bytes;
        let got = self.objects.get_range(&Path::from(entry.key.as_str()), range).await;
        got.map_err(|e| error("get", &entry.key, e))
    }

    /// The objects in a folder and below it.
    ///
    /// # Errors
    /// What the store said.
    pub async fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let listed = self.objects.list(Some(&Path::from(folder)));
        let entries = listed.map_ok(|meta| Entry { key: meta.location.to_string(), bytes: meta.size });
        entries.try_collect().await.map_err(|e| error("list", folder, e))
    }

    /// The folders directly in a folder.
    ///
    /// # Errors
    /// What the store said.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.objects.list_with_delimiter(Some(&Path::from(folder))).await;
        let listed = listed.map_err(|e| error("list", folder, e))?;
        Ok(listed.common_prefixes.iter().map(ToString::to_string).collect())
    }
}

fn error(verb: &'static str, key: &str, source: object_store::Error) -> StoreError {
    StoreError { verb, key: key.to_owned(), source }
}

fn local(folder: &FilePath) -> Result<Store, InvalidPlace> {
    let failed = |source| InvalidPlace::Folder { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let objects = LocalFileSystem::new_with_prefix(folder)
        .map_err(|source| InvalidPlace::Local { path: folder.to_owned(), source })?;
    Ok(Store { objects: Arc::new(objects.with_fsync(true)), place: folder.display().to_string() })
}

fn client_options(allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(allow_http)
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_config(ClientConfigKey::UserAgent, concat!("satellite-relay/", env!("CARGO_PKG_VERSION")))
}

/// Short, since a commit repeats what failed for as long as it takes.
fn retry() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2. };
    RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(20) }
}

fn handed_over(directory: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    directory.map(|directory| FilePath::new(directory).join(CREDENTIAL)).filter(|path| path.is_file())
}

fn credentials(path: &FilePath) -> Result<(String, AccessKey), InvalidPlace> {
    let failed = |source| InvalidPlace::CredentialsFile { path: path.to_owned(), source };
    let invalid = || InvalidPlace::Credentials(path.to_owned());
    if std::fs::metadata(path).map_err(failed)?.len() > CREDENTIALS_BYTES_MAX {
        return Err(invalid());
    }
    let text = SecretString::from(std::fs::read_to_string(path).map_err(failed)?);
    let line = |name: &str| {
        let values = text.expose_secret().lines().filter_map(|line| line.split_once('='));
        values.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    let id = line("aws_access_key_id").filter(|id| !id.is_empty());
    let key = line("aws_secret_access_key").filter(|key| !key.is_empty());
    Ok((id.ok_or_else(invalid)?, AccessKey::from(key.ok_or_else(invalid)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_the_service_manager_hands_over_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(handed_over(None), None);
        assert_eq!(handed_over(Some(dir.path().as_os_str())), None, "another credential is no key");
        std::fs::write(dir.path().join(CREDENTIAL), "aws_access_key_id = a\naws_secret_access_key = b\n").unwrap();
        let path = handed_over(Some(dir.path().as_os_str())).unwrap();
        let (id, key) = credentials(&path).unwrap();
        assert_eq!((id.as_str(), key), ("a", AccessKey::from("b".to_owned())));
    }

    #[test]
    fn a_key_in_a_file_is_held_by_who_may_read_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "aws_access_key_id = a\naws_secret_access_key = b\n").unwrap();
        let mut settings = Settings { credentials_file: Some(file.path().to_owned()), ..Settings::default() };
        settings.hold_credentials();
        drop(file);
        assert_eq!(settings.access_key().unwrap().unwrap().0, "a");
    }

    fn s3(url: &str) -> Settings {
        Settings { url: Some(url.into()), ..Settings::default() }
    }

    fn refusal(settings: &Settings) -> String {
        let dir = tempfile::tempdir().unwrap();
        settings.open(&DataDir::open(dir.path()).unwrap()).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn settings_that_can_not_be_used_say_what_to_write() {
        assert!(refusal(&s3("ftp://x")).contains("s3://bucket/prefix"));
        assert!(refusal(&s3("s3:///prefix")).contains("s3://bucket/prefix"));
        let plain = Settings { endpoint: Some("http://10.0.0.1:9000".into()), ..s3("s3://b") };
        assert!(refusal(&plain).contains("allow_http"));
        let half = Settings { access_key_id: Some("id".into()), ..s3("s3://b") };
        assert!(refusal(&half).contains("both"));
        let nowhere = Settings { credentials_file: Some("/nonexistent/key".into()), ..s3("s3://b") };
        assert!(refusal(&nowhere).contains("/nonexistent/key"));
    }

    #[test]
    fn a_credentials_file_is_read_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        std::fs::write(&path, "[default]\naws_access_key_id = AKIA\naws_secret_access_key=hush\n").unwrap();
        let (id, key) = credentials(&path).unwrap();
        assert_eq!((id.as_str(), key.0.expose_secret()), ("AKIA", "hush"));
        std::fs::write(&path, "aws_access_key_id = AKIA\nsecret hush\n").unwrap();
        let error = credentials(&path).unwrap_err().to_string();
        assert!(error.contains("aws_secret_access_key") && !error.contains("hush"), "{error}");
        let settings = Settings { secret_access_key: Some("hush".to_owned().into()), ..Settings::default() };
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        assert!(toml::from_str::<Settings>("buckett = 'x'").is_err());
        assert!(toml::from_str::<Settings>("url = 's3://b/p'\nsecret_access_key = 'x'").is_ok());
    }

    #[tokio::test]
    async fn an_object_is_put_measured_listed_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Settings::default().open(&DataDir::open(dir.path()).unwrap()).unwrap();
        assert_eq!(store.size("a/b.parquet").await.unwrap(), None);
        store.put("a/b.parquet", Bytes::from_static(b"12345")).await.unwrap();
        store.put("a/b.parquet", Bytes::from_static(b"123456")).await.unwrap();
        assert_eq!(store.size("a/b.parquet").await.unwrap(), Some(6));
        assert_eq!(store.list("a").await.unwrap(), [Entry { key: "a/b.parquet".into(), bytes: 6 }]);
        assert_eq!(store.folders("").await.unwrap(), ["a"]);
        store.delete("a/b.parquet").await.unwrap();
        store.delete("a/b.parquet").await.unwrap();
        assert!(store.get("a/b.parquet").await.unwrap_err().is_not_found());
        assert_eq!(store.list("nowhere").await.unwrap(), []);
    }
}
