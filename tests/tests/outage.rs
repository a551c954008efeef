//! The data way while things break: either end killed, the link cut, stalled and garbled, the relay away for longer
//! than the buffer holds. Each journey ends in the checker: stored + explained = due, nothing twice, nothing made up.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use satellite_tests::device::{Device, Manner};
use satellite_tests::house::{CONNECTED_WITHIN, FAST_ARCHIVE, HOST_DOCUMENT, House, document, two_devices};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::rounds::{Dice, first_seed, rounds};
use satellite_tests::wait;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("a_satellite_that_is_killed_again_and_again_loses_nothing_silently", PYTHON, killed_satellite),
        journey("a_relay_that_is_killed_again_and_again_stores_nothing_twice", PYTHON, killed_relay),
        journey("both_ends_killed_at_random_moments_agree_in_the_end", PYTHON, killed_both),
        journey("a_link_that_is_cut_in_the_middle_of_frames_delivers_everything", PYTHON, cut_link),
        journey("a_link_that_flips_bits_delivers_everything_unaltered", PYTHON, garbled_link),
        journey("a_link_that_stalls_and_goes_on_delivers_everything", PYTHON, frozen_link),
        journey("a_half_open_link_is_noticed_and_replaced", PYTHON, half_open_link),
        journey("a_slow_link_delivers_everything", PYTHON, slow_link),
        journey("a_relay_that_is_away_gets_everything_when_it_comes_back", PYTHON, relay_away),
        journey("what_a_full_buffer_evicts_is_explained", PYTHON, evicting_buffer),
        journey("what_a_full_buffer_evicts_is_explained_once_over_restarts", PYTHON, evicting_buffer_with_restarts),
        journey("a_satellite_that_is_stopped_explains_the_time_it_did_not_run", PYTHON, stopped_satellite),
    ])
}

fn killed_satellite(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    for round in 0..8_u32 {
        // Not always at the same moment between two commits.
        house.wait_for_polls(&plug, 1 + round as usize % 3)?;
        std::thread::sleep(Duration::from_millis(u64::from(round * 37 % 250)));
        house.satellite.kill()?;
        house.satellite.start()?;
    }
    house.wait_for_polls(&plug, 2)?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.satellites[&house.id].epochs >= 8, "each start opened an epoch: {:?}", verdict.satellites);
    Ok(())
}

fn killed_relay(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&format!("{}{}", document(&plug, &page), HOST_DOCUMENT))?;
    // Each makes the satellite wait longer before it tries again.
    for round in 0..5_u32 {
        house.wait_for_polls(&plug, 2)?;
        std::thread::sleep(Duration::from_millis(u64::from(round * 61 % 400)));
        house.relay.kill()?;
        house.relay.start()?;
        house.wait_for_link(true)?;
    }
    house.wait_for_polls(&plug, 2)?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "the satellite ran all the time and lost nothing: {:?}", verdict.reasons);
    Ok(())
}

/// Either end, or both, at any moment of any commit; the link is not always up again before the next.
fn killed_both(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    let (first, count) = (first_seed(), rounds(4));
    for seed in first..first + u64::from(count) {
        kill_round(&mut house, &plug, &mut Dice::new(seed)).with_context(|| format!("the round of seed {seed}"))?;
    }
    house.wait_for_polls(&plug, 2)?;
    house.wait_for_link(true)?;
    let verdict = house.finish(&[&plug, &page])?;
    tell(&format!(
        "{count} rounds from seed {first}: {} stored, {} explained {:?}, {} epochs; lost 0, doubled 0, unexpected 0, altered 0",
        verdict.stored, verdict.explained, verdict.reasons, verdict.satellites[&house.id].epochs
    ));
    Ok(())
}

fn kill_round(house: &mut House, plug: &Device, dice: &mut Dice) -> Result<()> {
    house.wait_for_polls(plug, 1 + usize::try_from(dice.below(2))?)?;
    // Where between two commits is what the dice are for; nothing waits for it.
    std::thread::sleep(Duration::from_millis(dice.below(1_000)));
    let (relay, satellite) = match dice.below(3) {
        0 => (true, false),
        1 => (false, true),
        _ => (true, true),
    };
    if relay {
        house.relay.kill()?;
    }
    if satellite {
        std::thread::sleep(Duration::from_millis(dice.below(300)));
        house.satellite.kill()?;
    }
    let relay_first = dice.one_in(2);
    if relay && relay_first {
        house.relay.start()?;
    }
    if satellite {
        house.satellite.start()?;
    }
    if relay && !relay_first {
        house.relay.start()?;
    }
    // A satellite that lost its relay waits longer each time; a fresh one comes at once.
    if dice.one_in(4) { house.wait_for_link(true) } else { Ok(()) }
}

#[expect(clippy::print_stdout, reason = "the figures of a long form")]
fn tell(figures: &str) {
    println!("{figures}");
}

fn cut_link(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&format!("{}{}", document(&plug, &page), HOST_DOCUMENT))?;
    for round in 0..5_u64 {
        let before = house.relay.session.accepted();
        house.relay.session.cut_after(500 + round * 4_111 % 20_000);
        wait::until_true("the cut and a new connection", CONNECTED_WITHIN, || {
            Ok(house.relay.session.accepted() > before)
        })?;
        house.wait_for_link(true)?;
    }
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "the satellite ran all the time and lost nothing: {:?}", verdict.reasons);
    Ok(())
}

fn garbled_link(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    for round in 0..4_u64 {
        let before = house.relay.session.accepted();
        house.relay.session.flip_after(300 + round * 1_777);
        wait::until_true("the end of the garbled connection and a new one", CONNECTED_WITHIN, || {
            Ok(house.relay.session.accepted() > before)
        })?;
        house.wait_for_link(true)?;
    }
    house.finish(&[&plug, &page])?;
    Ok(())
}

fn frozen_link(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    for _ in 0..3 {
        house.wait_for_polls(&plug, 2)?;
        house.relay.session.freeze();
        house.wait_for_polls(&plug, 5)?;
        house.relay.session.mend();
    }
    house.finish(&[&plug, &page])?;
    Ok(())
}

fn half_open_link(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    house.wait_for_polls(&plug, 2)?;
    let before = house.relay.session.accepted();
    house.relay.session.swallow();
    // Both ends have to find out by themselves: nothing arrives any more, nothing is closed.
    wait::until_true("the satellite gives the dead connection up", CONNECTED_WITHIN, || {
        Ok(house.relay.session.accepted() > before)
    })?;
    house.relay.session.mend();
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "polling went on all the time: {:?}", verdict.reasons);
    Ok(())
}

fn slow_link(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.relay.session.throttle(4_000);
    house.configure(&format!("{}{}", document(&plug, &page), HOST_DOCUMENT))?;
    house.wait_for_polls(&plug, 20)?;
    house.relay.session.mend();
    house.finish(&[&plug, &page])?;
    Ok(())
}

fn relay_away(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&format!("{}{}", document(&plug, &page), HOST_DOCUMENT))?;
    house.wait_for_polls(&plug, 3)?;
    house.relay.stop()?;
    house.wait_for_link(false)?;
    house.wait_for_polls(&plug, 20)?;
    page.behave(Manner::Silent);
    house.wait_for_polls(&plug, 8)?;
    page.behave(Manner::Answers);
    // Restarted in the middle of it: what was buffered is still there.
    house.satellite.stop()?;
    house.satellite.start()?;
    house.wait_for_polls(&plug, 5)?;
    house.relay.start()?;
    house.wait_for_link(true)?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.reasons.contains_key("timeout"), "a silent device is a gap: {:?}", verdict.reasons);
    Ok(())
}

/// The smallest buffer that the settings allow.
const SMALL_BUFFER: &str = "[buffer]\ncommit_every = \"200ms\"\nfree_mib_min = 0\nfree_percent_min = 0\nmib_max = 1\n";

fn wait_for_eviction(house: &House) -> Result<()> {
    wait::until_true("the buffer evicts", Duration::from_secs(300), || {
        Ok(house.satellite.status()?["buffer"]["evicted"].as_u64().unwrap_or_default() > 0)
    })
}

fn evicting_buffer(dir: &Path) -> Result<()> {
    let (plug, noise) = (Device::new("plug")?, Device::new("noise")?);
    noise.behave(Manner::Noise(3_000));
    let mut house = House::with_settings(dir, &[&plug, &noise], FAST_ARCHIVE, Some(SMALL_BUFFER))?;
    house.configure(&document(&plug, &noise))?;
    house.wait_for_polls(&plug, 3)?;
    house.relay.session.cut();
    wait_for_eviction(&house)?;
    house.wait_for_polls(&plug, 15)?;
    house.relay.session.mend();
    house.wait_for_link(true)?;
    let verdict = house.finish(&[&plug, &noise])?;
    ensure!(verdict.reasons.get("evicted").is_some_and(|count| *count > 0), "{:?}", verdict.reasons);
    Ok(())
}

fn evicting_buffer_with_restarts(dir: &Path) -> Result<()> {
    let (plug, noise) = (Device::new("plug")?, Device::new("noise")?);
    noise.behave(Manner::Noise(3_000));
    let mut house = House::with_settings(dir, &[&plug, &noise], FAST_ARCHIVE, Some(SMALL_BUFFER))?;
    house.configure(&document(&plug, &noise))?;
    house.wait_for_polls(&plug, 3)?;
    house.relay.session.cut();
    wait_for_eviction(&house)?;
    // The gaps that explain the eviction are themselves in the buffer, and are evicted in turn.
    for _ in 0..3 {
        house.wait_for_polls(&plug, 8)?;
        house.satellite.kill()?;
        house.satellite.start()?;
    }
    house.wait_for_polls(&plug, 40)?;
    house.relay.session.mend();
    house.wait_for_link(true)?;
    let verdict = house.finish(&[&plug, &noise])?;
    ensure!(verdict.reasons.get("evicted").is_some_and(|count| *count > 0), "{:?}", verdict.reasons);
    Ok(())
}

fn stopped_satellite(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    house.wait_for_polls(&plug, 3)?;
    house.satellite.stop()?;
    let stopped_at = wait::mono_ms();
    wait::until_true("six slots pass", Duration::from_secs(30), || Ok(wait::mono_ms() > stopped_at + 6_000))?;
    house.satellite.start()?;
    house.wait_for_polls(&plug, 2)?;
    let verdict = house.finish(&[&plug, &page])?;
    let stopped = verdict.reasons.get("stopped").copied().unwrap_or_default();
    // Two devices, one of them with two metrics: at least five slots each.
    ensure!(stopped >= 10, "the slots while it was stopped are explained: {:?}", verdict.reasons);
    Ok(())
}
