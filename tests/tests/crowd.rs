//! A crowd of satellites that lost one relay and comes back: each with the agent's own back-off, over real mutual TLS,
//! to a relay that was killed or that stopped in order. All are back, nobody is refused for good, and the log stays quiet.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use satellite_agent::uplink::backoff::{Backoff, Ending};
use satellite_shared::wire::to_satellite::ToSatellite;
use satellite_tests::journey::{self, journey};
use satellite_tests::load::{Client, Fleet, Member, Target};
use satellite_tests::programs::programs;
use satellite_tests::rounds::{Dice, first_seed, rounds};
use satellite_tests::wait;
use tokio::task::JoinSet;

/// The longest back-off is five minutes, and machines that test are slow.
const BACK_WITHIN: Duration = Duration::from_secs(600);
/// What one satellite may try in vain while the relay is away and while it is its turn.
const FAILED_EACH_MAX: u64 = 20;

fn main() -> ExitCode {
    journey::run(vec![journey("a_crowd_of_satellites_is_back_after_a_restart_of_the_relay", &[], crowd)])
}

#[derive(Debug, Default)]
struct Crowd {
    address: Mutex<Option<SocketAddr>>,
    inside: AtomicUsize,
    failed: AtomicU64,
    refused: AtomicU64,
}

impl Crowd {
    fn lead_to(&self, address: Option<SocketAddr>) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    fn address(&self) -> Option<SocketAddr> {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_for(&self, count: usize, within: Duration) -> Result<u64> {
        let started_ms = wait::mono_ms();
        let deadline = wait::Deadline::after(within);
        while self.inside.load(Ordering::Relaxed) != count {
            ensure!(!deadline.has_passed(), "{} of {count} are inside: {self:?}", self.inside.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(wait::mono_ms() - started_ms)
    }
}

/// What a satellite does about its link, and nothing else.
async fn live(member: Member, crowd: Arc<Crowd>, seed: u64) {
    let (mut backoff, mut dice) = (Backoff::default(), Dice::new(seed));
    loop {
        let ending = match crowd.address() {
            Some(address) => visit(&member, address, &crowd).await,
            None => Ending::Lost { authenticated: Duration::ZERO },
        };
        let share = dice.below(1 << 20) as f64 / (1 << 20) as f64;
        tokio::time::sleep(backoff.after(ending, share)).await;
    }
}

async fn visit(member: &Member, address: SocketAddr, crowd: &Crowd) -> Ending {
    let mut client = match Client::connect(member, address, Vec::new()).await {
        Ok(client) => client,
        Err(error) => {
            crowd.failed.fetch_add(1, Ordering::Relaxed);
            crowd.refused.fetch_add(u64::from(format!("{error:#}").contains("not let in: Refused")), Ordering::Relaxed);
            return Ending::Lost { authenticated: Duration::ZERO };
        }
    };
    let since_ms = wait::mono_ms();
    crowd.inside.fetch_add(1, Ordering::Relaxed);
    let mut ending = None;
    while let Ok(event) = client.event().await {
        if let ToSatellite::Drain(drain) = event {
            let after = Duration::from_millis(drain.reconnect_after_ms);
            ending = Some(Ending::Drained { after, spread: Duration::from_millis(drain.spread_ms) });
        }
    }
    crowd.inside.fetch_sub(1, Ordering::Relaxed);
    ending.unwrap_or(Ending::Lost { authenticated: Duration::from_millis(wait::mono_ms() - since_ms) })
}

fn crowd(dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(come_back(dir))
}

async fn come_back(dir: &Path) -> Result<()> {
    let count = usize::try_from(rounds(200))?;
    let relay = &programs()?.relay;
    let mut target = Target::start(relay, dir, "")?;
    let fleet = Fleet::enrol(target.data_dir(), target.address(), count).await?;
    let crowd = Arc::new(Crowd::default());
    crowd.lead_to(Some(target.address()));
    let mut lives = JoinSet::new();
    for (seed, member) in (first_seed()..).zip(fleet.members.clone()) {
        lives.spawn(live(member, Arc::clone(&crowd), seed));
    }
    let first_ms = crowd.wait_for(count, BACK_WITHIN).await.context("all come")?;
    let mut figures = format!("{count} satellites: all inside in {first_ms} ms");
    for kill in [true, false] {
        let (failed, told) = (crowd.failed.load(Ordering::Relaxed), complaints(&target)?);
        crowd.lead_to(None);
        if kill {
            drop(target);
        } else {
            target.stop()?;
        }
        crowd.wait_for(0, BACK_WITHIN).await.context("all are out")?;
        target = Target::start(relay, dir, "")?;
        crowd.lead_to(Some(target.address()));
        let back_ms = crowd.wait_for(count, BACK_WITHIN).await.context("all come back")?;
        let failed = crowd.failed.load(Ordering::Relaxed) - failed;
        let told = complaints(&target)? - told;
        let how = if kill { "killed" } else { "stopped" };
        figures
            .push_str(&format!("; relay {how}: all back in {back_ms} ms, {failed} attempts failed, {told} warnings"));
        ensure!(failed <= FAILED_EACH_MAX * count as u64, "{figures}");
        ensure!(told <= 20 + count / 10, "a crowd that comes back is no news for the log: {figures}");
    }
    let refused = crowd.refused.load(Ordering::Relaxed);
    lives.shutdown().await;
    tell(&format!("{figures}; {refused} refusals in all"));
    target.stop()
}

/// Lines of the relay's log that an operator is to look at.
fn complaints(target: &Target) -> Result<usize> {
    let log = std::fs::read_to_string(target.log())?;
    Ok(log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).count())
}

#[expect(clippy::print_stdout, reason = "the figures of a long form")]
fn tell(figures: &str) {
    println!("{figures}");
}
