//! Row `lateness`: 200 devices with ten metrics each, polled every 1 s to 60 s by a satellite that has one core.
//!
//! The devices are one web server that writes down when each was asked. A device's slots follow from its name, so that
//! the lateness of every poll is known without asking the satellite: the request's arrival less its slot.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use satellite_agent::scheduler::timetable::Timetable;
use satellite_shared::config::Schedule;
use satellite_tests::house::House;
use satellite_tests::{process, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::Plan;
use crate::meter::Meter;
use crate::table::{OURS, Report};

pub(crate) const ROWS: [&str; 1] = ["lateness"];

const DEVICES: usize = 200;
const METRICS: usize = 10;
/// Seconds between polls; a device has one of them.
const INTERVALS: [u64; 6] = [1, 2, 5, 10, 30, 60];
/// How long is watched, after everything was polled for the first time.
const WATCHED_S: u64 = 150;

type Arrivals = Arc<Mutex<HashMap<usize, Vec<i64>>>>;

fn every_s(device: usize) -> u64 {
    INTERVALS[device % INTERVALS.len()]
}

pub(crate) fn measure(plan: Plan, report: &mut Report, _: &dyn Fn(&str) -> bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let arrivals = Arrivals::default();
    let port = serve(&runtime, Arc::clone(&arrivals))?;
    let dir = tempfile::Builder::new().prefix("cost-").tempdir()?;
    let mut house = House::with_settings(
        dir.path(),
        &[],
        "log = \"info\"\n",
        Some("log = \"info\"\n[buffer]\nfree_mib_min = 0\nfree_percent_min = 0\n"),
    )?;
    house.satellite.stop()?;
    house.satellite.set_policy(&format!("loopback_ports = [{port}]\nrequests_per_second_max = 1000\n"))?;
    house.satellite.start()?;
    let pid = house.satellite.process_id().context("the satellite runs")?;
    let core = on_one_core(pid)?;
    house.configure(&document(port)?)?;
    std::thread::sleep(Duration::from_secs(5));
    let (meter, watched_ms) = (Meter::new(pid), wait::wall_ms());
    let (mut p99, mut notes) = (Vec::new(), String::new());
    for _ in 0..plan.rounds {
        arrivals.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let (start, sleeps) = (meter.start(), meter.sleeps()?);
        std::thread::sleep(Duration::from_secs(plan.amount(WATCHED_S) / u64::from(plan.rounds)));
        let (cpu_s, wall_s) = meter.since(start);
        let wakes = meter.sleeps()?.saturating_sub(sleeps) as f64;
        let seen = std::mem::take(&mut *arrivals.lock().unwrap_or_else(PoisonError::into_inner));
        let late = lateness(&seen)?;
        let at = |share: f64| late[((late.len() - 1) as f64 * share) as usize] as f64;
        p99.push(at(0.99));
        let rate = late.len() as f64 / wall_s;
        notes = format!(
            "{} polls, {rate:.0} a second: half ≤ {:.0} ms, worst {:.0} ms; core {core} used {:.0} %, {:.0} µs a sample over HTTP; \
             {:.0} wake-ups a second, {:.1} a poll",
            late.len(),
            at(0.5),
            at(1.0),
            cpu_s / wall_s * 100.0,
            cpu_s * 1e6 / (late.len() * METRICS) as f64,
            wakes / wall_s,
            wakes / late.len() as f64
        );
    }
    let gaps = house.satellite.gaps()?;
    // A first poll may be under way when the first slot comes; it is after that that nothing may be missed.
    let missed = |gap: &serde_json::Value| gap["to_ms"].as_i64().is_some_and(|to_ms| to_ms > watched_ms);
    let missed: Vec<_> = gaps["gaps"].as_array().into_iter().flatten().filter(|gap| missed(gap)).collect();
    notes.push_str(&format!("; {} gaps meanwhile", missed.len()));
    report.add("lateness", OURS, p99, notes);
    house.satellite.stop()?;
    house.relay.stop()
}

/// Ascending; of every poll of every device.
fn lateness(seen: &HashMap<usize, Vec<i64>>) -> Result<Vec<i64>> {
    let mut late = Vec::new();
    for (device, arrivals) in seen {
        let every_ms = i64::try_from(every_s(*device) * 1_000)?;
        let schedule = Schedule::Every(Duration::from_secs(every_s(*device)));
        let Timetable::Every { phase_ms, .. } = Timetable::parse(&schedule, &name(*device))? else { continue };
        late.extend(arrivals.iter().map(|at_ms| (at_ms - phase_ms).rem_euclid(every_ms)));
    }
    late.sort_unstable();
    anyhow::ensure!(!late.is_empty(), "nothing was polled");
    Ok(late)
}

fn name(device: usize) -> String {
    format!("device-{device}")
}

fn document(port: u16) -> Result<String> {
    let mut text = String::new();
    for device in 0..DEVICES {
        write!(
            text,
            "[[device]]\nname = \"{}\"\ncollector = \"http\"\nurl = \"http://127.0.0.1:{port}/{device}\"\nevery = \"{}s\"\n",
            name(device),
            every_s(device)
        )?;
        for metric in 0..METRICS {
            write!(text, "[[device.metric]]\nname = \"m{metric}\"\npath = \"$.m{metric}\"\n")?;
        }
    }
    Ok(text)
}

/// Keeps a process and all it starts on the last core there is; `taskset` is part of every Debian.
fn on_one_core(pid: u32) -> Result<usize> {
    let core = std::thread::available_parallelism()?.get() - 1;
    let (core_text, pid_text) = (core.to_string(), pid.to_string());
    let mut command = Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", core_text.as_str(), pid_text.as_str()]);
    process::run(&mut command, "")?.success()?;
    Ok(core)
}

fn serve(runtime: &Runtime, arrivals: Arrivals) -> Result<u16> {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let port = listener.local_addr()?.port();
    runtime.spawn(async move {
        let mut visitors = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            // A visitor that leaves in the middle is the satellite's affair: it has a gap, which is looked for.
            visitors.spawn(answer(stream, Arc::clone(&arrivals)));
            while visitors.try_join_next().is_some() {}
        }
    });
    Ok(port)
}

async fn answer(mut stream: TcpStream, arrivals: Arrivals) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut request, mut chunk, mut tick) = (Vec::new(), [0; 4096], 0_u64);
    loop {
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut chunk).await? {
                0 => return Ok(()),
                read => request.extend_from_slice(&chunk[..read]),
            }
        }
        let at_ms = wait::wall_ms();
        let text = String::from_utf8_lossy(&request);
        let path = text.split(' ').nth(1).unwrap_or_default();
        let device: usize = path.trim_start_matches('/').parse().context("a device's number")?;
        arrivals.lock().unwrap_or_else(PoisonError::into_inner).entry(device).or_default().push(at_ms);
        request.clear();
        tick += 1;
        let fields: Vec<String> =
            (0..METRICS).map(|metric| format!("\"m{metric}\":{}", tick + metric as u64)).collect();
        let body = format!("{{{}}}", fields.join(","));
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
    }
}
