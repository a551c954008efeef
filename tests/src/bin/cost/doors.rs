//! Rows `idle-*`, `handshake` and `handshakes-rate`: what a connection costs the relay that does nothing, and what it
//! costs to make one. Every handshake is a whole one: nobody resumes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use satellite_shared::id::Epoch;
use satellite_tests::relay::Relay;
use tokio::runtime::Runtime;

use crate::Plan;
use crate::clients::Wire;
use crate::crowd::{self, Member};
use crate::ingest::{SETTINGS, satellites_door};
use crate::meter::Meter;
use crate::peer_wires::Server;
use crate::rivals::Rival;
use crate::table::{OURS, Report};

pub(crate) const ROWS: [&str; 4] = ["idle-1000", "idle-5000", "handshake", "handshakes-rate"];

/// Connections, one after another, of one round of `handshake`.
const HANDSHAKES: u64 = 500;
/// At once, so that both cores are at work.
const HANDS: usize = 4;
/// How long idle connections idle before memory is read: longer than two pings.
const SETTLE: Duration = Duration::from_secs(45);
const RIVALS: [Rival; 2] = [Rival::Nats, Rival::Mosquitto];

pub(crate) fn measure(plan: Plan, report: &mut Report, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let crowds: Vec<(&str, u64)> = [("idle-1000", 1_000), ("idle-5000", 5_000)]
        .into_iter()
        .filter(|(row, _)| wanted(row))
        .map(|(row, full)| (row, plan.amount(full)))
        .collect();
    if !crowds.is_empty() {
        idle(plan, &runtime, &crowds, report)?;
    }
    if wanted("handshake") || wanted("handshakes-rate") {
        handshakes(plan, &runtime, report)?;
    }
    if !plan.peers {
        return Ok(());
    }
    for rival in RIVALS {
        if let Err(why) = rival.find() {
            for row in ROWS {
                report.skipped(row, rival.name(), &format!("{why:#}"));
            }
        } else if let Err(error) = peer(plan, rival, &runtime, &crowds, report, wanted) {
            report.failed_for("handshake", rival.name(), &format!("{error:#}"));
        }
    }
    Ok(())
}

/// One loopback address has ports for so many.
fn source(number: usize) -> IpAddr {
    let host = u8::try_from(number / 1_000 + 2).unwrap_or(u8::MAX);
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, host))
}

/// Memory is read once a crowd: a second time in one process would read what the first left behind.
fn idle(plan: Plan, runtime: &Runtime, crowds: &[(&str, u64)], report: &mut Report) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("cost-").tempdir()?;
    let mut relay = Relay::new(dir.path(), SETTINGS)?;
    let most = crowds.iter().map(|(_, count)| *count).max().unwrap_or_default();
    let members = runtime.block_on(crowd::enrol(&relay.data_dir(), usize::try_from(most)?))?;
    for &(row, count) in crowds {
        relay.start()?;
        let address = satellites_door(&relay.data_dir())?;
        let meter = Meter::new(relay.process_id().context("the relay runs")?);
        std::thread::sleep(Duration::from_secs(1));
        let empty = meter.memory()?;
        let idlers = runtime.block_on(idlers(&members[..usize::try_from(count)?], address))?;
        let start = meter.start();
        std::thread::sleep(if plan.quick { Duration::from_secs(3) } else { SETTLE });
        let (cpu_s, wall_s) = meter.since(start);
        let full = meter.memory()?;
        anyhow::ensure!(idlers.len() as u64 == count, "{} of {count} connections stayed", idlers.len());
        let each = (full.rss_kib - empty.rss_kib) / count as f64;
        let how = format!(
            "{count} authenticated connections; RSS {:.1} MiB, empty {:.1}; idle they take {:.1} ms of CPU a second",
            full.rss_kib / 1024.0,
            empty.rss_kib / 1024.0,
            cpu_s * 1e3 / wall_s
        );
        report.add(row, OURS, vec![each], how);
        runtime.block_on(async {
            let mut idlers = idlers;
            idlers.shutdown().await;
        });
        relay.stop()?;
    }
    Ok(())
}

async fn idlers(members: &[Member], address: SocketAddr) -> Result<tokio::task::JoinSet<Result<()>>> {
    let mut idlers = tokio::task::JoinSet::new();
    for (at, hand) in members.chunks(HANDS).enumerate() {
        let mut connecting = tokio::task::JoinSet::new();
        for (offset, member) in hand.iter().cloned().enumerate() {
            let number = at * HANDS + offset;
            connecting
                .spawn(async move { Wire::connect(&member, address, source(number), Epoch(number as u128 + 1)).await });
        }
        while let Some(wire) = connecting.join_next().await {
            idlers.spawn(wire??.idle());
        }
    }
    Ok(idlers)
}

fn handshakes(plan: Plan, runtime: &Runtime, report: &mut Report) -> Result<()> {
    let count = plan.amount(HANDSHAKES);
    let dir = tempfile::Builder::new().prefix("cost-").tempdir()?;
    let mut relay = Relay::new(dir.path(), SETTINGS)?;
    relay.start()?;
    let members = runtime.block_on(crowd::enrol(&relay.data_dir(), 8 * HANDS))?;
    let address = satellites_door(&relay.data_dir())?;
    let meter = Meter::new(relay.process_id().context("the relay runs")?);
    let (mut each, mut rate) = (Vec::new(), Vec::new());
    // The first round also uses each certificate for the first time, which the registry notes.
    for round in 0..=plan.rounds {
        let start = meter.start();
        runtime.block_on(shake(&members, address, count))?;
        std::thread::sleep(Duration::from_millis(500));
        let (cpu_s, _) = meter.since(start);
        if round > 0 {
            each.push(cpu_s * 1e3 / count as f64);
            rate.push(count as f64 / cpu_s);
        }
    }
    let how = format!("{count} a round, X25519MLKEM768, P-256 certificates of both ends, registry asked each time");
    report.add("handshake", OURS, each, how);
    report.add("handshakes-rate", OURS, rate, "");
    relay.stop()
}

async fn shake(members: &[Member], address: SocketAddr, count: u64) -> Result<()> {
    let mut hands = tokio::task::JoinSet::new();
    for (hand, own) in members.chunks(members.len() / HANDS).enumerate() {
        let own = own.to_vec();
        hands.spawn(async move {
            for number in 0..usize::try_from(count)? / HANDS {
                let member = &own[number % own.len()];
                Wire::connect(member, address, source(hand * 1_000), Epoch(1)).await?.close().await;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = hands.join_next().await {
        ended??;
    }
    Ok(())
}

fn peer(
    plan: Plan,
    rival: Rival,
    runtime: &Runtime,
    crowds: &[(&str, u64)],
    report: &mut Report,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<()> {
    for &(row, count) in crowds {
        let dir = tempfile::Builder::new().prefix("cost-").tempdir()?;
        let server = Server::start(rival, dir.path(), 1, runtime)?;
        std::thread::sleep(Duration::from_secs(1));
        let empty = server.running.meter.memory()?;
        let open = (0..usize::try_from(count)?).map(|number| server.connect(number)).collect::<Result<Vec<_>>>()?;
        std::thread::sleep(if plan.quick { Duration::from_secs(1) } else { Duration::from_secs(10) });
        let full = server.running.meter.memory()?;
        let how = format!("{} connections, mutual TLS; {}", open.len(), rival.version());
        report.add(row, rival.name(), vec![(full.rss_kib - empty.rss_kib) / count as f64], how);
    }
    if !wanted("handshake") && !wanted("handshakes-rate") {
        return Ok(());
    }
    let count = usize::try_from(plan.amount(HANDSHAKES))?;
    let dir = tempfile::Builder::new().prefix("cost-").tempdir()?;
    let server = Server::start(rival, dir.path(), 1, runtime)?;
    let (mut each, mut rate) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let start = server.running.meter.start();
        let shaken: Result<()> = std::thread::scope(|scope| {
            let hand = |hand: usize| {
                let server = &server;
                scope.spawn(move || (0..count / HANDS).try_for_each(|at| server.connect(hand * count + at).map(drop)))
            };
            let hands: Vec<_> = (0..HANDS).map(hand).collect();
            hands.into_iter().try_for_each(|hand| hand.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")))
        });
        shaken?;
        std::thread::sleep(Duration::from_millis(500));
        let (cpu_s, _) = server.running.meter.since(start);
        each.push(cpu_s * 1e3 / count as f64);
        rate.push(count as f64 / cpu_s);
    }
    report.add("handshake", rival.name(), each, format!("X25519, with its CONNECT; {}", rival.version()));
    report.add("handshakes-rate", rival.name(), rate, "");
    Ok(())
}
