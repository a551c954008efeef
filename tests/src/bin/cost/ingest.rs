//! Rows `relay-cpu` and `relay-ceiling`: polls of 1,000 samples, encoded before the clock runs, from four satellites at
//! once, until the last is acknowledged. Peers get the same samples in their own form.
//!
//! The databases parse and index every sample, as the relay does; the message servers pass an opaque text on. Only the
//! relay's acknowledgement means that the samples are on the disk.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use satellite_shared::clock::Now;
use satellite_shared::id::Epoch;
use satellite_shared::wire::block::Encoder;
use satellite_tests::relay::Relay;
use satellite_tests::rounds::Dice;
use satellite_tests::wait;
use tokio_tungstenite::tungstenite::Bytes;

use crate::Plan;
use crate::clients::Wire;
use crate::crowd::{self, Member};
use crate::meter::Meter;
use crate::peer_wires::{self, Target};
use crate::rivals::Rival;
use crate::table::{OURS, Report};
use crate::workload::{self, SERIES, Workload};

pub(crate) const ROWS: [&str; 2] = ["relay-cpu", "relay-ceiling"];

/// Satellites that send at once.
pub(crate) const SENDERS: usize = 4;
/// Polls that each sends in a round.
const POLLS: u64 = 500;

/// A relay without bounds on strangers, as all of these come from here.
pub(crate) const SETTINGS: &str = "log = \"info\"\n[limits]\nconnections = 100000\nconnections_per_address = 100000\n";

pub(crate) fn measure(plan: Plan, report: &mut Report, _: &dyn Fn(&str) -> bool) -> Result<()> {
    let polls = plan.amount(POLLS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    ours(plan, polls, &runtime, report)?;
    if plan.peers {
        for rival in [Rival::VictoriaMetrics, Rival::Nats, Rival::Mosquitto] {
            peer_wires::measure_ingest(plan, polls, rival, &runtime, report);
        }
    }
    Ok(())
}

fn ours(plan: Plan, polls: u64, runtime: &tokio::runtime::Runtime, report: &mut Report) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("cost-").tempdir()?;
    let mut relay = Relay::new(dir.path(), SETTINGS)?;
    relay.start()?;
    let members = runtime.block_on(crowd::enrol(&relay.data_dir(), SENDERS))?;
    let address = satellites_door(&relay.data_dir())?;
    let meter = Meter::new(relay.process_id().context("the relay runs")?);
    let (mut cpu, mut rate) = (Vec::new(), Vec::new());
    // The first round also pays for what is done once; it is not shown.
    for round in 0..=plan.rounds {
        let loads: Vec<Load> = (0..SENDERS).map(|sender| Load::new(polls, u64::from(round), sender)).collect();
        let start = meter.start();
        runtime.block_on(send(&members, address, loads))?;
        let (cpu_s, wall_s) = meter.since(start);
        if round > 0 {
            let samples = (polls * SENDERS as u64 * SERIES as u64) as f64;
            cpu.push(cpu_s * 1e6 / samples);
            rate.push(samples / wall_s);
        }
    }
    let memory = meter.memory()?;
    let how = format!(
        "{SENDERS} satellites, {} blocks of {SERIES} each, 2 worker threads, Parquet on this disk, fsynced before the \
         ack; {:.0} MiB RSS after",
        polls,
        memory.rss_kib / 1024.0
    );
    report.add("relay-cpu", OURS, cpu, how);
    report.add("relay-ceiling", OURS, rate, "wall time, the sender on the same cores");
    relay.stop()
}

/// Where the relay takes satellites, without the harness's link between.
pub(crate) fn satellites_door(data_dir: &Path) -> Result<SocketAddr> {
    let text = std::fs::read_to_string(data_dir.join("addresses.json"))?;
    let addresses: serde_json::Value = serde_json::from_str(&text)?;
    Ok(addresses["satellites"].as_str().context("the satellites' door")?.parse()?)
}

struct Load {
    epoch: Epoch,
    series: Vec<Vec<u8>>,
    blocks: Vec<(u64, u64, Bytes)>,
}

impl Load {
    fn new(polls: u64, round: u64, sender: usize) -> Self {
        let now = Now { wall_ms: wait::wall_ms(), mono_ms: wait::mono_ms() };
        let mut dice = Dice::new(now.mono_ms ^ (round << 32) ^ ((sender as u64) << 40));
        let epoch = Epoch(u128::from(dice.roll()) << 64 | u128::from(dice.roll()));
        let mut encoder = Encoder::default();
        let series = workload::series_frames(&mut encoder, epoch, now);
        let mut workload = Workload::ending_at(now.wall_ms, polls, dice.roll());
        let mut blocks = Vec::new();
        for poll in 0..polls {
            let before = poll * SERIES as u64;
            let frame = workload::frame(&mut encoder, epoch, before, workload.poll(), now.mono_ms);
            blocks.push((before + 1, SERIES as u64, Bytes::from(frame)));
        }
        Self { epoch, series, blocks }
    }
}

async fn send(members: &[Member], address: SocketAddr, loads: Vec<Load>) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (member, load) in members.iter().cloned().zip(loads) {
        tasks.spawn(async move {
            let mut wire = Wire::connect(&member, address, IpAddr::V4(Ipv4Addr::LOCALHOST), load.epoch).await?;
            wire.announce(load.series).await?;
            wire.stream(load.blocks).await?;
            wire.close().await;
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// What the peers are sent: for each sender its messages.
pub(crate) fn peer_loads(polls: u64, round: u64, target: Target) -> Vec<Vec<Vec<u8>>> {
    let now_ms = wait::wall_ms();
    let load = |sender: usize| {
        // Each round goes on where the one before ended, so that no series stands still.
        let mut workload = Workload::ending_at(now_ms, polls, sender as u64 + 1 + (round << 8));
        (0..polls).map(|_| target.message(sender, &workload.poll())).collect()
    };
    (0..SENDERS).map(load).collect()
}
