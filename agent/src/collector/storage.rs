//! `storage`: whether mounts of this machine are there and answer, and how old and large the newest backup is.
//!
//! What `host` tells of file systems, ZFS, RAID and NFS it tells; here is what it can't know: which mounts should be there.
//! Each mount and each file is a metric with gaps of its own; `up` tells of all mounts with 1 or 0. Everything is looked
//! at on threads that may hang, one for each mount, however many files and devices ask for it. Only paths in the policy's
//! directories are looked at, and no link leads out of them. Deliberately absent: what a file says, and looking into
//! directories of directories.

mod mounts;
mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use satellite_shared::clock::{Clock as _, SystemClock};
use satellite_shared::config::{Device, Metric, Problem};
use satellite_shared::gap::Reason;
use satellite_shared::limits;
use satellite_shared::metric::is_metric_name;
use serde::Deserialize;

pub use self::mounts::Mounts;
use self::mounts::Turn;
use self::place::{Deadline, Found, Pattern, Place, What};
use super::host::aside::{Aside, Errand};
use super::host::filesystem::unescape;
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::Gate;

/// `collector = "storage"`.
pub const KIND: CollectorKind = CollectorKind { name: "storage", build };

/// Mounts of one device.
const MOUNTS_MAX: usize = 64;
/// The kernel's list of mounts.
const TABLE_BYTES_MAX: u64 = 1 << 20;
/// What the longest of a file's series puts behind its name.
const SUFFIX: &str = "_mtime_seconds";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Where something should be mounted.
    #[serde(default)]
    mounts: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricOptions {
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    newest_in: Option<PathBuf>,
    #[serde(default)]
    pattern: Option<String>,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let (storage, metrics) = parse(device, context)?;
    Ok(Built { collector: Box::new(storage), metrics })
}

fn parse(device: &Device, context: &Context) -> Result<(Storage, Vec<Metric>), Problem> {
    let path = format!("device.{}", device.name);
    let wrong = |key: &str, reason: String| options::problem(&format!("{path}.{key}"), reason);
    let Options { mounts } = options::read(&device.options, &path)?;
    if mounts.len() > MOUNTS_MAX {
        return Err(wrong("mounts", format!("{} mounts, more than {MOUNTS_MAX}", mounts.len())));
    }
    let mut asks = Vec::new();
    let mut metrics = Vec::new();
    for mount in mounts {
        let mount = plain(&mount).map_err(|reason| wrong("mounts", reason))?;
        if asks.iter().any(|ask: &Ask| ask.path == mount) {
            return Err(wrong("mounts", format!("{} stands twice", mount.display())));
        }
        let mut metric = whole(device).remove(0);
        metric.name = mount.display().to_string();
        metrics.push(metric);
        asks.push(Ask { path: mount, what: What::Mount });
    }
    for metric in &device.metrics {
        asks.push(Ask::parse(metric, &path)?);
        metrics.push(metric.clone());
    }
    if asks.is_empty() {
        let reason = "nothing to look at: give `mounts = [\"/mnt/nas\"]`, or [[device.metric]] tables with `file` or `newest_in`";
        return Err(options::problem(&path, reason));
    }
    if asks.iter().any(|ask| ask.what == What::Mount) {
        let mut metric = whole(device).remove(0);
        metric.name = "up".into();
        metrics.push(metric);
    }
    let storage = Storage {
        gate: Arc::clone(&context.gate),
        table: context.root.join("proc/self/mounts"),
        names: metrics.iter().map(|metric| metric.name.clone()).collect(),
        asks,
        mounts: Arc::clone(&context.mounts),
        aside: Aside::default(),
        limit: probe::limit(device.timeout),
    };
    Ok((storage, metrics))
}

/// A path from the root, without what would lead elsewhere, and without a slash at its end.
fn plain(path: &Path) -> Result<PathBuf, String> {
    use std::path::Component;
    let is_plain = path.is_absolute()
        && path.as_os_str().len() <= limits::NAME_BYTES_MAX
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let shown: String = path.display().to_string().chars().take(80).collect();
    if is_plain {
        Ok(path.components().collect())
    } else {
        Err(format!("`{}` is not a path from the root without `..`, of at most 256 bytes", shown.escape_debug()))
    }
}

/// What one metric looks at.
#[derive(Debug, Clone)]
struct Ask {
    path: PathBuf,
    what: What,
}

impl Ask {
    fn parse(metric: &Metric, device: &str) -> Result<Self, Problem> {
        let shown: String = metric.name.chars().take(80).collect();
        let at = format!("{device}.metric.{shown}");
        let wrong = |key: &str, reason: String| options::problem(&format!("{at}.{key}"), reason);
        if !is_metric_name(&metric.name) || metric.name.len() > limits::NAME_BYTES_MAX - SUFFIX.len() {
            let reason = "a metric's name is letters, digits, `_` and `:`, and begins with no digit".to_owned();
            return Err(wrong("name", reason));
        }
        if metric.name == "up" {
            return Err(wrong("name", "`up` is the metric that tells of the mounts: take another name".into()));
        }
        let MetricOptions { file, newest_in, pattern } = options::read(&metric.options, &at)?;
        match (file, newest_in) {
            (Some(file), None) if pattern.is_none() => {
                Ok(Self { path: plain(&file).map_err(|reason| wrong("file", reason))?, what: What::File })
            }
            (Some(_), None) => {
                Err(wrong("pattern", "one file needs none: use `newest_in` for the newest of many".into()))
            }
            (None, Some(folder)) => {
                let path = plain(&folder).map_err(|reason| wrong("newest_in", reason))?;
                let pattern = Pattern::parse(pattern.as_deref().unwrap_or("*"));
                Ok(Self { path, what: What::Newest(pattern.map_err(|reason| wrong("pattern", reason))?) })
            }
            (None, None) => Err(options::problem(&at, "needs `file`, or `newest_in` with a `pattern`")),
            (Some(_), Some(_)) => Err(wrong("newest_in", "both `file` and `newest_in`: give one".into())),
        }
    }
}

struct Storage {
    gate: Arc<Gate>,
    table: PathBuf,
    asks: Vec<Ask>,
    /// What each of them is called.
    names: Vec<String>,
    mounts: Arc<Mounts>,
    aside: Aside<Visit>,
    limit: Duration,
}

/// All that is asked for on one mount, by one thread.
struct Visit {
    questions: Vec<(usize, Place, What)>,
    /// Of the poll that asks: each answer is there as soon as it is known, whatever the next question takes.
    answers: Answers,
    deadline: Deadline,
    turn: Option<Turn>,
}

type Answer = Result<Found, Failure>;
type Answers = Arc<Mutex<BTreeMap<usize, Answer>>>;
/// What is to be looked at on each mount.
type Asked = BTreeMap<PathBuf, Vec<(usize, Place, What)>>;

impl Errand for Visit {
    fn run(&mut self) {
        for (at, place, what) in self.questions.drain(..) {
            let answer = place.look(&what, &self.deadline);
            self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(at, answer);
        }
        self.turn = None;
    }
}

impl Storage {
    /// Index of the metric that tells of all mounts, where there are any.
    fn up(&self) -> usize {
        self.asks.len()
    }

    /// What each metric gave that is due, or whose mount `up` has to tell of.
    async fn look(&mut self, due: &[usize]) -> Result<BTreeMap<usize, Answer>, Failure> {
        // What came too late for the poll before is of no use to this one.
        drop(self.aside.settle());
        let watch = Stopwatch::start();
        // A directory that takes long is given up before its mount is.
        let deadline = Deadline::after(self.limit * 3 / 4);
        let (mut answers, asked) = self.ask(due)?;
        let found = Answers::default();
        let (mounts, patience) = (&self.mounts, self.limit / 4);
        let turns = asked.into_iter().map(|(mount, questions)| {
            let found = Arc::clone(&found);
            async move {
                let turn = tokio::time::timeout(patience, mounts.turn(&mount)).await.ok()?;
                let visit = Visit { questions, answers: found, deadline, turn: Some(turn) };
                Some((mount.to_string_lossy().into_owned(), visit))
            }
        });
        let visits = futures_util::future::join_all(turns).await;
        self.aside.send(visits.into_iter().flatten());
        drop(self.aside.gather(watch.left(self.limit)).await);
        answers.append(&mut found.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(answers)
    }

    /// What is to be asked on each mount; and what is known without, or will be true of what does not come back.
    fn ask(&self, due: &[usize]) -> Result<(BTreeMap<usize, Answer>, Asked), Failure> {
        let mounted = mounted(&self.table)?;
        let (mut answers, mut asked) = (BTreeMap::new(), Asked::new());
        for (at, ask) in self.asks.iter().enumerate() {
            let wanted = due.contains(&at) || (ask.what == What::Mount && due.contains(&self.up()));
            if !wanted {
                continue;
            }
            let place = match self.place(&ask.path) {
                Ok(place) => place,
                Err(failure) => {
                    answers.insert(at, Err(failure));
                    continue;
                }
            };
            let mount =
                mounted.iter().filter(|mount| ask.path.starts_with(mount)).max_by_key(|mount| mount.as_os_str().len());
            let mount = mount.cloned().unwrap_or_else(|| "/".into());
            if ask.what == What::Mount && mount != ask.path {
                let why = format!("nothing is mounted at {}", ask.path.display());
                answers.insert(at, Err(Failure::new(Reason::Unreachable, why)));
                continue;
            }
            let late = if self.aside.hangs(&mount.to_string_lossy()) {
                format!("{} has not answered since an earlier poll", mount.display())
            } else {
                let limit = humantime::format_duration(self.limit);
                let late =
                    format!("{} does not answer within {limit}: its server or its disk is away", mount.display());
                asked.entry(mount).or_default().push((at, place, ask.what.clone()));
                late
            };
            answers.insert(at, Err(Failure::new(Reason::Timeout, late)));
        }
        Ok((answers, asked))
    }

    /// A path within the directory that permits it.
    fn place(&self, path: &Path) -> Result<Place, Failure> {
        self.gate.path(path)?;
        let above: Vec<&Path> = path.ancestors().collect();
        let directory = above.into_iter().rev().find(|directory| self.gate.path(directory).is_ok()).unwrap_or(path);
        Ok(Place::new(directory, path))
    }

    async fn poll_all(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let answers = self.look(due).await?;
        let now_seconds = SystemClock.now().wall_ms as f64 / 1000.0;
        if due.contains(&self.up()) {
            self.tell_up(&answers, readings);
        }
        for (at, answer) in answers.iter().filter(|(at, _)| due.contains(at)) {
            match answer {
                Ok(found) => self.tell(*at, found, now_seconds, readings),
                Err(failure) => readings.missing(*at, failure.clone()),
            }
        }
        Ok(())
    }

    /// Which mounts are up. One that may not be looked at is none that is down, but a gap.
    fn tell_up(&self, answers: &BTreeMap<usize, Answer>, readings: &mut Readings) {
        let mut untried = None;
        for (at, answer) in answers.iter().filter(|(at, _)| self.asks[**at].what == What::Mount) {
            match answer {
                Err(failure) if probe::was_not_tried(failure) => untried = Some(failure),
                Ok(_) | Err(_) => {
                    let (path, up) = (self.asks[*at].path.to_string_lossy(), f64::from(u8::from(answer.is_ok())));
                    readings.sample(self.up(), Family::gauge("storage_mount_up", ""), &[("mountpoint", &path)], up);
                }
            }
        }
        if let Some(failure) = untried {
            readings.missing(self.up(), failure.clone());
        }
    }

    fn tell(&self, at: usize, found: &Found, now_seconds: f64, readings: &mut Readings) {
        let path = self.asks[at].path.to_string_lossy();
        let (newest, files) = match found {
            Found::Mount { seconds } => {
                let family = Family::gauge("storage_mount_answer_seconds", "seconds");
                return readings.sample(at, family, &[("mountpoint", &path)], *seconds);
            }
            Found::File(file) => (Some(file), None),
            Found::Newest { newest, files } => (newest.as_ref(), Some(*files)),
        };
        let name = &self.names[at];
        let mut add = |what: &str, unit: &str, value: f64| {
            readings.sample(at, Family::gauge(&format!("{name}_{what}"), unit), &[("path", &path)], value);
        };
        if let Some(file) = newest {
            add("age_seconds", "seconds", now_seconds - file.mtime_seconds);
            add("mtime_seconds", "seconds", file.mtime_seconds);
            add("size_bytes", "bytes", file.bytes);
        }
        if let Some(files) = files {
            add("files", "", f64::from(files));
        }
    }
}

impl Collector for Storage {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

/// Where something is mounted. The kernel answers that by itself, whatever is away.
fn mounted(table: &Path) -> Result<Vec<PathBuf>, Failure> {
    use std::io::Read as _;
    let unreadable = |error: std::io::Error| Failure::new(Reason::Unsupported, format!("{}: {error}", table.display()));
    let mut text = Vec::new();
    let file = std::fs::File::open(table).map_err(unreadable)?;
    file.take(TABLE_BYTES_MAX).read_to_end(&mut text).map_err(unreadable)?;
    let points = String::from_utf8_lossy(&text);
    Ok(points.lines().filter_map(|line| line.split(' ').nth(1)).map(|point| unescape(point).into()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::SystemTime;

    use satellite_shared::config::Document;

    use super::super::stage::{Polled, Stage, problem};
    use super::*;
    use crate::policy::Policy;
    use crate::secrets::Keyring;

    /// Directories that may be looked at, and one beside them.
    struct Scene {
        dir: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("backup/old")).unwrap();
            std::fs::create_dir(dir.path().join("private")).unwrap();
            Self { dir }
        }

        fn path(&self, rest: &str) -> String {
            self.dir.path().join(rest).display().to_string()
        }

        /// A file of so many bytes, so many seconds old.
        fn file(&self, rest: &str, bytes: usize, age_seconds: u64) {
            let path = self.dir.path().join(rest);
            std::fs::write(&path, vec![0; bytes]).unwrap();
            #[expect(clippy::disallowed_methods, reason = "the file system's clock is the wall clock")]
            let time = SystemTime::now() - Duration::from_secs(age_seconds);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }

        async fn poll(&self, options: &str) -> Polled {
            let policy = format!("directories = [\"{}\"]", self.path("backup"));
            let device = format!("collector = \"storage\"\n{options}");
            Stage::with_policy(&device, &policy).unwrap().poll_all().await
        }

        async fn metric(&self, options: &str) -> Polled {
            self.poll(&format!("[[device.metric]]\nname = \"backup\"\n{options}")).await
        }
    }

    #[tokio::test]
    async fn age_and_size_of_a_file_are_told() {
        let scene = Scene::new();
        scene.file("backup/last.tar", 1234, 3600);
        let path = scene.path("backup/last.tar");
        let polled = scene.metric(&format!("file = \"{path}\"")).await;
        assert_eq!(polled.labelled("backup_size_bytes"), [(format!("path={path}"), 1234.0)]);
        let age = polled.value("backup_age_seconds").unwrap();
        assert!((3599.0..3700.0).contains(&age), "{age}");
        assert!(polled.value("backup_mtime_seconds").unwrap() > 1.7e9);
        assert_eq!((polled.samples.len(), polled.missing.len()), (3, 0));
    }

    #[tokio::test]
    async fn the_newest_of_those_that_the_pattern_names_is_told_and_how_many_there_are() {
        let scene = Scene::new();
        for (name, bytes, age) in
            [("a.tar.zst", 1, 500), ("b.tar.zst", 22, 100), ("c.tar.zst.part", 3, 1), (".d.tar.zst", 4, 1)]
        {
            scene.file(&format!("backup/{name}"), bytes, age);
        }
        std::fs::create_dir(scene.dir.path().join("backup/e.tar.zst")).unwrap();
        symlink("/etc/passwd", scene.dir.path().join("backup/f.tar.zst")).unwrap();
        let folder = scene.path("backup");
        let polled = scene.metric(&format!("newest_in = \"{folder}/\"\npattern = \"*.tar.zst\"")).await;
        assert_eq!((polled.value("backup_size_bytes"), polled.value("backup_files")), (Some(22.0), Some(2.0)));
        assert!((99.0..199.0).contains(&polled.value("backup_age_seconds").unwrap()));
        let none = scene.metric(&format!("newest_in = \"{folder}/old\"")).await;
        assert_eq!((none.value("backup_files"), none.samples.len(), none.missing.len()), (Some(0.0), 1, 0));
    }

    #[tokio::test]
    async fn a_link_that_stays_inside_is_followed_and_one_that_leads_out_is_not() {
        let scene = Scene::new();
        scene.file("backup/old/1.tar", 7, 1);
        scene.file("private/diary", 8, 1);
        symlink("old/1.tar", scene.dir.path().join("backup/inside")).unwrap();
        symlink("../private/diary", scene.dir.path().join("backup/outside")).unwrap();
        symlink(scene.path("private"), scene.dir.path().join("backup/folder")).unwrap();
        symlink("/proc/self/root", scene.dir.path().join("backup/magic")).unwrap();
        let look = async |rest: &str| scene.metric(&format!("file = \"{}\"", scene.path(rest))).await;
        assert_eq!(look("backup/inside").await.value("backup_size_bytes"), Some(7.0));
        for rest in ["backup/outside", "backup/folder/diary", "backup/magic/etc/passwd"] {
            let polled = look(rest).await;
            let (_, why) = &polled.missing[0];
            assert!(why.reason == Reason::Policy && why.detail.contains("leads out of"), "{rest}: {why}");
            assert_eq!(polled.samples.len(), 0);
        }
        let (_, why) = &look("private/diary").await.missing[0];
        assert!(why.reason == Reason::Policy && why.detail.contains("to `directories`"), "{why}");
    }

    #[tokio::test]
    async fn what_is_not_there_or_no_file_is_said() {
        let scene = Scene::new();
        for (options, said) in [
            ("file = \"BACKUP/gone.tar\"", "gone.tar is not there"),
            ("file = \"BACKUP/old\"", "is no file: `newest_in`"),
            ("newest_in = \"BACKUP/gone\"", "gone is not there"),
        ] {
            let polled = scene.metric(&options.replace("BACKUP", &scene.path("backup"))).await;
            assert!(polled.missing[0].1.detail.contains(said), "{options}: {:?}", polled.missing);
        }
    }

    #[tokio::test]
    async fn a_mount_that_is_there_answers_and_one_that_is_not_is_down() {
        // `/proc` is mounted wherever tests run.
        let device = "collector = \"storage\"\nmounts = [\"/proc/\", \"/proc/self\"]";
        let polled = Stage::with_policy(device, "directories = [\"/proc\"]").unwrap().poll_all().await;
        let up = [("mountpoint=/proc".to_owned(), 1.0), ("mountpoint=/proc/self".to_owned(), 0.0)];
        assert_eq!(polled.labelled("storage_mount_up"), up);
        assert!(polled.labelled("storage_mount_answer_seconds")[0].1 < 5.0);
        let (metric, why) = &polled.missing[0];
        assert_eq!((metric.as_str(), why.reason), ("/proc/self", Reason::Unreachable));
        assert!(why.detail.contains("nothing is mounted at /proc/self"), "{why}");
    }

    #[tokio::test]
    async fn a_mount_outside_the_policy_is_a_gap_and_not_down() {
        let polled = Stage::with_policy("collector = \"storage\"\nmounts = [\"/proc\"]", "").unwrap().poll_all().await;
        assert_eq!((polled.samples.len(), polled.missing.len()), (0, 2));
        assert!(polled.missing.iter().all(|(_, why)| why.reason == Reason::Policy));
    }

    /// `/proc`, which is mounted wherever tests run, and what its device shares with others.
    fn proc() -> (Device, Context) {
        let device = "[[device]]\nname = \"it\"\ncollector = \"storage\"\nmounts = [\"/proc\"]\ntimeout = \"400ms\"";
        let device = Document::parse_text(device).unwrap().1.devices.remove(0);
        let gate = Gate::new(Policy::parse("directories = [\"/proc\"]").unwrap(), Arc::new(SystemClock));
        (device, Context::new(Arc::new(gate), Keyring::of([]), "/"))
    }

    #[test]
    fn a_mount_that_this_user_may_not_look_at_is_a_gap_and_not_down() {
        let (device, context) = proc();
        let (storage, _) = parse(&device, &context).unwrap();
        let mut readings = Readings::default();
        let forbidden = Failure::new(Reason::Unsupported, "the satellite's user may not look at it");
        storage.tell_up(&BTreeMap::from([(0, Err(forbidden.clone()))]), &mut readings);
        assert_eq!((readings.len(), readings.failures()), (0, &[(1, forbidden)][..]));
    }

    #[test]
    fn a_directory_that_takes_too_long_costs_no_answer_of_its_mount() {
        let place = |path: &str| Place::new(Path::new(path), Path::new(path));
        let questions =
            vec![(0, place("/proc"), What::Mount), (1, place("/proc"), What::Newest(Pattern::parse("*").unwrap()))];
        let answers = Answers::default();
        let (deadline, turn) = (Deadline::after(Duration::ZERO), None);
        Visit { questions, answers: Arc::clone(&answers), deadline, turn }.run();
        let answers = answers.lock().unwrap();
        assert!(matches!(answers[&0], Ok(Found::Mount { .. })));
        assert_eq!(answers[&1].as_ref().unwrap_err().reason, Reason::Timeout);
    }

    #[tokio::test]
    async fn a_mount_that_one_devices_thread_hangs_at_takes_no_thread_of_another() {
        let (device, context) = proc();
        let built = build(&device, &context).unwrap();
        let mut stage = Stage { device, built };
        let held = context.mounts.turn(Path::new("/proc")).await;
        let polled = stage.poll_all().await;
        assert_eq!((polled.missing[0].1.reason, polled.value("storage_mount_up")), (Reason::Timeout, Some(0.0)));
        drop(held);
        assert_eq!(stage.poll_all().await.value("storage_mount_up"), Some(1.0));
    }

    #[test]
    fn options_that_are_wrong_are_named() {
        for (options, said) in [
            ("", "device.it: nothing to look at"),
            ("mounts = [\"mnt\"]", "device.it.mounts: `mnt` is not a path from the root"),
            ("mounts = [\"/mnt/../etc\"]", "device.it.mounts: `/mnt/../etc` is not a path"),
            ("mounts = [\"/mnt/a\", \"/mnt/a/\"]", "device.it.mounts: /mnt/a stands twice"),
            ("mount = \"/mnt\"", "device.it.mount: unknown field"),
            ("[[device.metric]]\nname = \"a b\"\nfile = \"/a\"", "device.it.metric.a b.name: "),
            ("[[device.metric]]\nname = \"up\"\nfile = \"/a\"", "device.it.metric.up.name: "),
            ("[[device.metric]]\nname = \"a\"", "device.it.metric.a: needs `file`"),
            ("[[device.metric]]\nname = \"a\"\nfile = \"b\"", "device.it.metric.a.file: "),
            ("[[device.metric]]\nname = \"a\"\nfile = \"/b\"\npattern = \"x\"", "device.it.metric.a.pattern: "),
            ("[[device.metric]]\nname = \"a\"\nfile = \"/b\"\nnewest_in = \"/b\"", "device.it.metric.a.newest_in: "),
            ("[[device.metric]]\nname = \"a\"\nnewest_in = \"/b\"\npattern = \"x/y\"", "device.it.metric.a.pattern: "),
            ("[[device.metric]]\nname = \"a\"\nfiles = \"/b\"", "device.it.metric.a.files: unknown field"),
        ] {
            let problem = problem(&format!("collector = \"storage\"\n{options}"));
            assert!(problem.starts_with(said), "{options}: {problem}");
        }
    }
}
