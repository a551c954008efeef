//! The archive against readers and a server that are not ours: pyarrow, DuckDB and Polars read what it writes, value by
//! value, and an S3 server that fails now and then holds every record once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Completion, Trial};
use satellite_relay::data_dir::DataDir;
use satellite_relay::ingest::{self, Block, BlockBody, Committer, Ingest, Outcome};
use satellite_relay::registry::Registry;
use satellite_relay::sink::archive::layout::BatchId;
use satellite_relay::sink::archive::reader::{self, Query};
use satellite_relay::sink::archive::{self, Settings};
use satellite_relay::sink::{Batch, Origin};
use satellite_shared::clock::{Now, SystemClock};
use satellite_shared::gap::{Gap, Lost, Reason};
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::metric::{Kind, Series};
use satellite_shared::wire::block::{ClockQuality, FrameKind, Group, Header};
use satellite_tests::checker::{Verdict, scripts};
use satellite_tests::device::Device;
use satellite_tests::house::{FAST_ARCHIVE, House};
use satellite_tests::journey::{self, journey};
use satellite_tests::link::Link;
use satellite_tests::peers::Peer;
use satellite_tests::{process, wait};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Reads samples and gaps without any option but their place, and prints every row of every reader.
const READERS: &str = r#"
import json, struct, sys
import duckdb, polars
import pyarrow.dataset as dataset

samples, gaps = sys.argv[1] + "/samples", sys.argv[1] + "/gaps"
utc = lambda t: t if isinstance(t, int) else round(t.timestamp() * 1000)
bits = lambda v: struct.pack(">d", v).hex()

def rows(table):
    out = []
    for row in table:
        row.pop("date", None), row.pop("hour", None)
        for name in ("time", "from", "to"):
            if name in row:
                row[name] = utc(row[name])
        if "value" in row:
            row["value"] = bits(row["value"])
        if "labels" in row:
            labels = row["labels"]
            if isinstance(labels, dict) and set(labels) == {"key", "value"} and isinstance(labels["key"], list):
                labels = dict(zip(labels["key"], labels["value"]))
            elif isinstance(labels, list):
                labels = dict((e["key"], e["value"]) if isinstance(e, dict) else tuple(e) for e in labels)
            row["labels"] = labels
        out.append(row)
    return sorted(out, key=lambda r: (r["satellite"], r["epoch"], r["seq"]))

def with_duckdb(folder):
    times = ["time"] if folder.endswith("samples") else ["from", "to"]
    times = ", ".join(f'epoch_ms("{name}") AS "{name}"' for name in times)
    found = duckdb.sql(
        f"SELECT * REPLACE ({times}) FROM read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
    )
    return [dict(zip(found.columns, row)) for row in found.fetchall()]

readers = {
    "pyarrow": lambda folder: dataset.dataset(folder, format="parquet", partitioning="hive").to_table().to_pylist(),
    "duckdb": with_duckdb,
    "polars": lambda folder: polars.read_parquet(folder + "/**/*.parquet", hive_partitioning=True).to_dicts(),
}
json.dump({name: {"samples": rows(read(samples)), "gaps": rows(read(gaps))} for name, read in readers.items()}, sys.stdout)
"#;

const NOW_MS: i64 = 1_795_247_999_999;
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    const BUCKET: &[Peer] = &[Peer::Python, Peer::S3];
    let trials = vec![
        Trial::ignorable_test("other_readers_find_every_value_as_it_was", || {
            let Some(python) = Peer::Python.path() else {
                return Ok(Completion::ignored_with(Peer::Python.missing()));
            };
            readers(&python).map(|()| Completion::Completed).map_err(|error| format!("{error:?}").into())
        }),
        Trial::ignorable_test("an_s3_server_that_fails_now_and_then_holds_every_record_once", || {
            let Some(python) = Peer::S3.path() else {
                return Ok(Completion::ignored_with(Peer::S3.missing()));
            };
            s3(&python).map(|()| Completion::Completed).map_err(|error| format!("{error:?}").into())
        }),
        journey("a_bucket_that_is_away_stalls_and_fails_in_a_put_gets_everything_once", BUCKET, bucket_comes_and_goes),
    ];
    journey::run(trials)
}

fn satellite() -> SatelliteId {
    SatelliteId::from_bits([5; 10])
}

fn series(name: &str, unit: &str, labels: &[(&str, &str)]) -> Arc<Series> {
    Arc::new(Series {
        device: "nas".parse().expect("a name"),
        name: name.into(),
        kind: Kind::Gauge,
        unit: unit.into(),
        labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    })
}

/// Values, times, labels and numbers at their borders, as a batch and as the rows that a reader should find.
fn odd_batch() -> Result<(Batch, Vec<Value>, Vec<Value>)> {
    let described = HashMap::from([
        (0, series("odd", "", &[("text", "quote \" ünï ☃ \n{a=\"b\"},"), ("z", "")])),
        (1, series("node_load1", "seconds", &[])),
    ]);
    let values = [1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 5e-324, f64::MAX, 9_007_199_254_740_993.0];
    let times: Vec<i64> = [0, 1, -3_600_000, 5, 3_600_000, -86_400_000, 7, 8].map(|more| NOW_MS + more).to_vec();
    let first_seq = i64::MAX.unsigned_abs() - 1_000;
    let satellite = satellite();
    let mut batch = Batch::new(BatchId::new(NOW_MS, [1; 10]));
    let epoch = Epoch(u128::MAX - 7);
    let groups = vec![Group {
        series: vec![0, 1],
        times_ms: times.clone(),
        values: values.iter().chain(&values).copied().collect(),
    }];
    let origin = Origin { satellite: &satellite, epoch, first_seq, count: 16, received_ms: NOW_MS };
    batch.add_samples(&origin, groups, &described)?;
    let mut samples = Vec::new();
    for n in 0..16 {
        let of = &described[&(n as u32 / 8)];
        samples.push(json!({
            "time": times[n % 8], "satellite": satellite.as_str(), "device": "nas", "name": of.name,
            "labels": of.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            "value": format!("{:016x}", values[n % 8].to_bits()),
            "kind": "gauge", "unit": of.unit, "epoch": epoch.to_string(), "seq": first_seq + n as u64,
        }));
    }
    let mut gaps = Vec::new();
    for (seq, device, lost) in [(1u64, None, Some(9u64)), (2, Some("nas"), None)] {
        let gap = Gap {
            device: device.map(|name: &str| name.parse()).transpose()?,
            metric: device.map(|_| "load".to_owned()),
            from_ms: NOW_MS - 5,
            to_ms: NOW_MS,
            count: 20,
            reason: Reason::Evicted,
            detail: "full ☃".into(),
            lost: lost.map(|last_seq| Lost { epoch, first_seq: 1, last_seq, due_through: 20 }),
        };
        batch.add_gap(&origin, seq, gap, 7);
        gaps.push(json!({
            "from": NOW_MS - 5, "to": NOW_MS, "satellite": satellite.as_str(), "device": device,
            "metric": device.map(|_| "load"), "count": 7, "reported": 20, "reason": "evicted", "detail": "full ☃",
            "epoch": epoch.to_string(), "seq": seq, "lost_epoch": lost.map(|_| epoch.to_string()),
            "lost_first_seq": lost.map(|_| 1), "lost_last_seq": lost,
        }));
    }
    Ok((batch, samples, gaps))
}

fn readers(python: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (batch, samples, gaps) = odd_batch()?;
    let store = Settings::default().open(&DataDir::open(dir.path())?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for object in archive::encode(&batch, None)? {
            store.put(&object.key, object.bytes).await?;
        }
        anyhow::Ok(())
    })?;
    let said = Command::new(python).args(["-c", READERS, store.place()]).output()?;
    ensure!(said.status.success(), "the readers failed: {}", String::from_utf8_lossy(&said.stderr));
    let found: Value = serde_json::from_slice(&said.stdout)?;
    for reader in ["pyarrow", "duckdb", "polars"] {
        for (table, expect) in [("samples", &samples), ("gaps", &gaps)] {
            let rows = found[reader][table].as_array().context("rows")?;
            ensure!(rows.len() == expect.len(), "{reader} found {} {table} of {}", rows.len(), expect.len());
            for (row, expect) in rows.iter().zip(expect) {
                ensure!(same_row(row, expect), "{reader} found in {table}\n{row}\nwhere there is\n{expect}");
            }
        }
    }
    Ok(())
}

/// Equal, where any NaN is as good as another: Python may have changed its bits.
fn same_row(row: &Value, expect: &Value) -> bool {
    let nan = |row: &Value| {
        let bits = row["value"].as_str().and_then(|hex| u64::from_str_radix(hex, 16).ok());
        bits.is_some_and(|bits| f64::from_bits(bits).is_nan())
    };
    let without = |row: &Value| {
        let mut row = row.clone();
        row["value"] = Value::Null;
        row
    };
    if nan(row) && nan(expect) { without(row) == without(expect) } else { row == expect }
}

/// A server that ends with the test.
struct Moto {
    child: Child,
    address: String,
}

impl Moto {
    fn start(python: &Path) -> Result<Self> {
        let run = "import sys; sys.argv[0] = 'moto_server'; from moto.server import main; main()";
        let mut child = Command::new(python)
            .args(["-u", "-c", run, "-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = BufReader::new(child.stderr.take().context("stderr")?);
        let mut moto = Self { child, address: String::new() };
        let mut lines = stderr.lines();
        for line in lines.by_ref() {
            let line = line?;
            if let Some((_, address)) = line.split_once("Running on http://") {
                moto.address = address.trim().to_owned();
                break;
            }
        }
        ensure!(!moto.address.is_empty(), "moto_server did not start");
        // It stops when nobody reads what it logs.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(moto)
    }

    fn create_bucket(&self, bucket: &str) -> Result<()> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "PUT /{bucket} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            self.address
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}

/// Stands before the server and spoils one connection after the other, in turn: an error for an answer, a cut after
/// the server took the request, a cut before it; then a few that work.
fn spoiler(server: &str) -> Result<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let server = server.to_owned();
    let spoilt = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&spoilt);
    std::thread::spawn(move || {
        for (n, client) in listener.incoming().flatten().enumerate() {
            let (server, count) = (server.clone(), Arc::clone(&count));
            std::thread::spawn(move || {
                let done = match n % 6 {
                    0 => answer_500(client),
                    1 => forward_and_cut(client, &server),
                    2 => client.shutdown(Shutdown::Both),
                    _ => forward_one(client, &server),
                };
                if n % 6 < 3 && done.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    Ok((address, spoilt))
}

/// One whole request.
fn request(client: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut reader = BufReader::new(client);
    let mut bytes = Vec::new();
    let mut length = 0;
    loop {
        let start = bytes.len();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&bytes[start..]).to_ascii_lowercase();
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().unwrap_or(0);
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    bytes.extend(body);
    Ok(bytes)
}

fn answer_500(mut client: TcpStream) -> std::io::Result<()> {
    request(&client)?;
    client.write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

fn exchange(client: &TcpStream, server: &str) -> std::io::Result<Vec<u8>> {
    let mut request = request(client)?;
    let end = request.windows(2).position(|two| two == b"\r\n").unwrap_or(0);
    request.splice(end..end, *b"\r\nconnection: close");
    let mut server = TcpStream::connect(server)?;
    server.write_all(&request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}

fn forward_and_cut(client: TcpStream, server: &str) -> std::io::Result<()> {
    exchange(&client, server)?;
    client.shutdown(Shutdown::Both)
}

fn forward_one(mut client: TcpStream, server: &str) -> std::io::Result<()> {
    let answer = exchange(&client, server)?;
    client.write_all(&answer)?;
    client.shutdown(Shutdown::Both)
}

fn s3(python: &Path) -> Result<()> {
    let moto = Moto::start(python)?;
    moto.create_bucket("records")?;
    let (spoiled, spoilt) = spoiler(&moto.address)?;
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let place = |address: &str| Settings {
            url: Some("s3://records/home/lab".into()),
            endpoint: Some(format!("http://{address}")),
            access_key_id: Some("test".into()),
            secret_access_key: Some("test".to_owned().into()),
            allow_http: true,
            ..Settings::default()
        };
        let registry = Registry::open(dir.path()).await?;
        let mut relay = Relay::start(dir.path(), &registry, &place(&spoiled))?;
        for round in 0..12u64 {
            if round % 4 == 3 {
                // It dies with a batch on its way; everything is sent again.
                relay.send(round * 10 + 1).await;
                relay.task.abort();
                relay.task.await.map_or_else(|_| Ok(()), |ended| ended.context("the committer ended"))?;
                relay = Relay::start(dir.path(), &registry, &place(&spoiled))?;
            }
            relay.send(round * 10 + 1).await;
            relay.acknowledged(round * 10 + 1).await?;
        }
        ensure!(spoilt.load(Ordering::Relaxed) >= 3, "the server never failed");
        let store = place(&moto.address).open(&DataDir::open(dir.path())?)?;
        let query = Query { satellite: None, metric: None, since_ms: i64::MIN, limit: usize::MAX };
        let found = reader::samples(&store, &query).await?;
        let seqs: BTreeSet<u64> = found.rows.iter().map(|sample| sample.seq).collect();
        ensure!(found.rows.len() == 120 && found.unreadable.is_empty(), "{} rows", found.rows.len());
        ensure!(seqs.into_iter().eq(1..=120), "every record is there once");
        let tally = registry.stream(&satellite(), Epoch(1)).await?.context("a stream")?.tally;
        ensure!((tally.due, tally.stored, tally.is_balanced()) == (120, 120, true), "{tally:?}");
        Ok(())
    })
}

/// A committer and one session's end of the replies.
struct Relay {
    ingest: Ingest,
    task: tokio::task::JoinHandle<Result<(), ingest::IngestError>>,
    to: mpsc::UnboundedSender<Outcome>,
    replies: mpsc::UnboundedReceiver<Outcome>,
}

impl Relay {
    #[expect(clippy::disallowed_methods, reason = "the test is the wiring")]
    fn start(data_dir: &Path, registry: &Registry, place: &Settings) -> Result<Self> {
        let data_dir = DataDir::open(data_dir)?;
        let settings = ingest::Settings { commit_every: Duration::from_millis(5), ..ingest::Settings::default() };
        let store = place.open(&data_dir)?;
        let (ingest, committer) =
            Committer::open(&data_dir, "relay-test".into(), registry.clone(), store, Arc::new(SystemClock), settings)?;
        let (to, replies) = mpsc::unbounded_channel();
        Ok(Self { ingest, task: tokio::spawn(committer.run(CancellationToken::new())), to, replies })
    }

    /// Ten samples, spread over two hours.
    async fn send(&self, first_seq: u64) {
        let header = Header {
            kind: FrameKind::Samples,
            quality: ClockQuality::Unknown,
            epoch: Epoch(1),
            first_seq,
            count: 10,
            due: 10,
            due_before: first_seq - 1,
            made: Now { wall_ms: NOW_MS, mono_ms: 0 },
        };
        let groups = vec![Group {
            series: vec![0],
            times_ms: (0..10).map(|n| NOW_MS - 3_600_000 * (n % 2)).collect(),
            values: (first_seq..first_seq + 10).map(|seq| seq as f64).collect(),
        }];
        let series = Arc::new(HashMap::from([(0, series("x", "", &[("a", "b")]))]));
        let body = BlockBody::Samples { groups, series };
        let frame = vec![0; 100].into();
        self.ingest.submit(Block { satellite: satellite(), header, body, frame, reply: self.to.clone() }).await;
    }

    async fn acknowledged(&mut self, expect: u64) -> Result<()> {
        match tokio::time::timeout(DEADLINE, self.replies.recv()).await.context("no answer in time")? {
            Some(Outcome::Stored { first_seq, .. }) if first_seq == expect => Ok(()),
            other => bail!("{other:?}"),
        }
    }
}

/// The whole way with the store behind a line that fails: refused, stalled, cut in the middle of a put, and errors for
/// answers. Polling goes on, the satellite buffers, and what was put twice is there once.
fn bucket_comes_and_goes(dir: &Path) -> Result<()> {
    let python = Peer::S3.path().context("moto")?;
    let moto = Moto::start(&python)?;
    moto.create_bucket("house")?;
    let (spoiled, spoilt) = spoiler(&moto.address)?;
    let line = Link::new()?;
    line.lead_to(Some(moto.address.parse()?));
    let settings = format!(
        "{FAST_ARCHIVE}[archive]\nurl = \"s3://house/records\"\nendpoint = \"http://127.0.0.1:{}\"\nallow_http = true\n\
         region = \"us-east-1\"\naccess_key_id = \"test\"\nsecret_access_key = \"test\"\n",
        line.port()
    );
    let plug = Device::new("plug")?;
    let mut house = House::with_settings(dir, &[&plug], &settings, None)?;
    house.configure(&plug.as_http("1s"))?;
    let stored = |house: &House| -> Result<u64> { Ok(house.relay.account(&house.id)?.stored) };
    let goes_on = |house: &House| -> Result<()> {
        let before = stored(house)?;
        wait::until_true("more is stored", DEADLINE * 3, || Ok(stored(house)? > before))
    };
    goes_on(&house)?;
    line.cut();
    house.wait_for_polls(&plug, 4)?;
    line.mend();
    goes_on(&house)?;
    line.freeze();
    house.wait_for_polls(&plug, 4)?;
    line.cut_once();
    line.mend();
    goes_on(&house)?;
    for bytes in [300, 1_500, 3_000] {
        line.cut_after(bytes);
        house.wait_for_polls(&plug, 2)?;
    }
    goes_on(&house)?;
    line.lead_to(Some(spoiled.parse()?));
    let before = spoilt.load(Ordering::Relaxed);
    wait::until_true("errors for answers", DEADLINE, || Ok(spoilt.load(Ordering::Relaxed) > before + 3))?;
    // It dies while the store fails, and the next one finds what was put.
    house.relay.kill()?;
    house.relay.start()?;
    line.lead_to(Some(moto.address.parse()?));
    goes_on(&house)?;
    house.settle()?;
    let account = house.relay.account(&house.id)?;
    let fetched = dir.join("fetched");
    let mut command = Command::new(&python);
    command.arg(scripts().join("s3.py")).arg(format!("http://{}", moto.address)).args(["fetch", "house"]).arg(&fetched);
    process::run(&mut command, "")?.success()?;
    let verdict = Verdict::of(&fetched.join("records"), &[&plug])?;
    verdict.must_be_whole()?;
    verdict.must_agree(&house.id, &account)?;
    ensure!(verdict.polled_all_the_time(), "the satellite lost nothing: {:?}", verdict.reasons);
    Ok(())
}
