//! The data way over bad links: long, narrow, in crumbs, half-open one way, losing packets, cut at any byte, and with
//! somebody in the middle who loses acknowledgements and repeats and reorders blocks. Each ends in the checker.

use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use satellite_tests::device::Device;
use satellite_tests::house::{CONNECTED_WITHIN, FAST_ARCHIVE, HOST_DOCUMENT, House, document, two_devices};
use satellite_tests::journey::{self, journey};
use satellite_tests::link::Way;
use satellite_tests::middleman::{Middleman, Mischief};
use satellite_tests::netns::journey_inside;
use satellite_tests::peers::Peer;
use satellite_tests::relay::Relay;
use satellite_tests::rounds::{Dice, first_seed, is_long_form, rounds};
use satellite_tests::satellite::Satellite;
use satellite_tests::{network, wait};

/// Cuts in the short form.
const CUTS: u32 = 10;
/// Cuts of an enrolment in the short form.
const ENROLMENT_CUTS: u32 = 6;
/// Moods of the middleman in the short form.
const MOODS: u32 = 6;
/// So many rounds have a house of their own, so that the checker has an end.
const ROUNDS_A_HOUSE: u32 = 200;
/// How long a satellite may be away before a test starts it again: its back-off would cost minutes.
const PATIENCE: Duration = Duration::from_secs(12);

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    const LOSSY: &[Peer] = &[Peer::Python, Peer::Iproute2, Peer::LossyNetwork];
    journey::run(vec![
        journey("a_narrow_link_of_64_kbit_delivers_everything", PYTHON, narrow_link),
        journey("a_link_of_800_ms_delivers_everything", PYTHON, long_link),
        journey("a_link_that_passes_one_byte_at_a_time_delivers_everything", PYTHON, link_in_crumbs),
        journey("a_link_that_answers_no_more_is_left_and_nothing_is_stored_twice", PYTHON, deaf_link),
        journey("a_long_backlog_is_kept_in_large_blocks_and_delivered_once", PYTHON, long_backlog),
        journey("a_session_that_is_cut_at_any_byte_is_made_good", PYTHON, cut_sessions),
        journey("an_enrolment_that_is_cut_at_any_byte_can_be_done_again", PYTHON, cut_enrolments),
        journey("lost_acknowledgements_and_repeated_and_reordered_blocks_do_no_harm", PYTHON, mischief),
        journey_inside("a_link_that_loses_a_third_of_its_packets_delivers_everything", LOSSY, lossy_link),
    ])
}

fn narrow_link(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.relay.session.throttle(8_000);
    house.configure(&format!("{}{}", document(&plug, &page), HOST_DOCUMENT))?;
    house.wait_for_polls(&plug, 10)?;
    // A backlog beside live data, on the same narrow line.
    house.relay.session.cut();
    house.wait_for_polls(&plug, 10)?;
    house.relay.session.mend();
    house.relay.session.throttle(8_000);
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 5)?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "polling went on all the time: {:?}", verdict.reasons);
    Ok(())
}

fn long_link(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    // There and back: as by way of two satellites of the other kind.
    house.relay.session.delay(Duration::from_millis(800));
    house.relay.session.cut_once();
    house.configure(&format!("{}{}", document(&plug, &page), HOST_DOCUMENT))?;
    house.wait_for_polls(&plug, 15)?;
    house.wait_for_link(true)?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "polling went on all the time: {:?}", verdict.reasons);
    Ok(())
}

fn link_in_crumbs(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.relay.session.slice(1);
    // The handshake goes in crumbs too.
    house.relay.session.cut_once();
    house.configure(&document(&plug, &page))?;
    house.wait_for_polls(&plug, 10)?;
    house.finish(&[&plug, &page])?;
    Ok(())
}

fn deaf_link(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    house.wait_for_polls(&plug, 2)?;
    // The relay gets everything and stores it; no acknowledgement comes back.
    let before = house.relay.session.accepted();
    house.relay.session.swallow_one_way(Way::Down);
    wait::until_true("the satellite gives the deaf connection up", CONNECTED_WITHIN, || {
        Ok(house.relay.session.accepted() > before)
    })?;
    house.wait_for_link(true)?;
    // Nor does the relay wait for ever for a satellite that it does not hear.
    let before = house.relay.session.accepted();
    house.relay.session.swallow_one_way(Way::Up);
    wait::until_true("the mute connection is given up", CONNECTED_WITHIN, || {
        Ok(house.relay.session.accepted() > before)
    })?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "polling went on all the time: {:?}", verdict.reasons);
    Ok(())
}

/// Polls of this host while nobody listens, in the short form.
const AWAY_POLLS: u32 = 30;
/// Polls of a host that hardly changes take long to be worth a large block.
const MERGED_WITHIN: Duration = Duration::from_secs(300);

fn long_backlog(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    let twice = HOST_DOCUMENT.replace("\"this\"", "\"again\"");
    ensure!(twice != HOST_DOCUMENT, "the host is there under another name");
    house.configure(&format!("{HOST_DOCUMENT}{twice}{}", plug.as_http("10s")))?;
    house.relay.session.cut();
    house.wait_for_link(false)?;
    let polls = u64::from(rounds(AWAY_POLLS));
    let before = held(&house, "records")?;
    let started = wait::mono_ms();
    wait::until_true("the polls", Duration::from_secs(60 + 2 * polls), || {
        Ok(wait::mono_ms() > started + 1_000 * polls)
    })?;
    // What a poll takes is the day's host's affair; that many share what else a block takes is ours.
    wait::until_true("polls of a host to share their blocks", MERGED_WITHIN, || {
        let polls = (wait::mono_ms() - started) / 1_000;
        Ok(held(&house, "blocks")? < polls * 3 / 4)
    })?;
    let (records, bytes, blocks) = (held(&house, "records")?, held(&house, "bytes")?, held(&house, "blocks")?);
    house.satellite.stop()?;
    let up = house.relay.session.bytes_up();
    house.relay.session.mend();
    house.satellite.start()?;
    house.wait_for_link(true)?;
    wait::until_true("the backlog to be gone", CONNECTED_WITHIN, || Ok(held(&house, "records")? < records / 2))?;
    let sent = house.relay.session.bytes_up() - up;
    report(&format!(
        "{records} records ({before} before) in {blocks} blocks, {:.2} bytes each; at most {:.2} each sent",
        bytes as f64 / records as f64,
        sent as f64 / records as f64
    ));
    ensure!(bytes < 2 * records, "{bytes} bytes for {records} records: are blocks merged?");
    house.finish(&[&plug, &page])?;
    Ok(())
}

/// One of the numbers of what the buffer holds.
fn held(house: &House, number: &str) -> Result<u64> {
    house.satellite.status()?["buffer"][number].as_u64().with_context(|| format!("{number} in the buffer"))
}

#[expect(clippy::print_stderr, reason = "figures, for who looks")]
fn report(figures: &str) {
    eprintln!("{figures}");
}

/// Bytes of one session each way: handshake, configuration, some blocks and their acknowledgements.
fn measure_session(house: &mut House, plug: &Device) -> Result<(u64, u64)> {
    let link = &house.relay.session;
    let (up, down) = (link.bytes_up(), link.bytes_down());
    restart(house)?;
    house.wait_for_link(true)?;
    house.wait_for_polls(plug, 3)?;
    let link = &house.relay.session;
    Ok((link.bytes_up() - up, link.bytes_down() - down))
}

fn restart(house: &mut House) -> Result<()> {
    house.satellite.kill()?;
    house.satellite.start()
}

/// Where the n-th of so many cuts is: in the long form spread evenly, the bytes up and then those down; the seed moves
/// them all.
fn cut_at(n: u64, total: u32, dice: Option<&mut Dice>, up: u64, down: u64) -> (Way, u64) {
    let all = up + down;
    let at = match dice {
        Some(dice) => dice.below(all),
        None => (first_seed() - 1 + n * all / u64::from(total.max(1))) % all,
    };
    if at < up { (Way::Up, at) } else { (Way::Down, at - up) }
}

fn cut_sessions(dir: &Path) -> Result<()> {
    let total = rounds(CUTS);
    let mut dice = (!is_long_form()).then(|| Dice::new(first_seed()));
    let mut done = 0;
    while done < total {
        let house = dir.join(format!("h{done}"));
        std::fs::create_dir_all(&house)?;
        let some = ROUNDS_A_HOUSE.min(total - done);
        cut_some_sessions(&house, done..done + some, total, dice.as_mut())?;
        std::fs::remove_dir_all(&house)?;
        done += some;
    }
    Ok(())
}

fn cut_some_sessions(dir: &Path, cuts: Range<u32>, total: u32, mut dice: Option<&mut Dice>) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    let (up, down) = measure_session(&mut house, &plug)?;
    for n in cuts.clone() {
        let (way, bytes) = cut_at(n.into(), total, dice.as_deref_mut(), up, down);
        let said = || format!("cut {n} of {total}: after {bytes} of {up} bytes up or {down} down, {way:?}");
        house.satellite.kill()?;
        let before = house.relay.session.accepted();
        house.relay.session.cut_way_after(way, bytes);
        house.satellite.start()?;
        wait::until_true("the cut", CONNECTED_WITHIN, || Ok(!house.relay.session.is_cut_pending()))
            .with_context(said)?;
        wait::until_true("a new session", CONNECTED_WITHIN, || {
            Ok(house.relay.session.accepted() >= before + 2 && house.is_linked()?)
        })
        .with_context(said)?;
    }
    house.finish(&[&plug, &page]).with_context(|| format!("after the cuts {cuts:?} of {total}"))?;
    Ok(())
}

fn cut_enrolments(dir: &Path) -> Result<()> {
    let mut relay = Relay::new(dir, FAST_ARCHIVE)?;
    relay.start()?;
    let lease = relay.lease("whole", &[])?;
    let whole = Satellite::new(dir, "whole", &[])?;
    whole.enrol(&lease.join_code)?.success()?;
    let (up, down) = (relay.web.bytes_up(), relay.web.bytes_down());
    let total = rounds(ENROLMENT_CUTS);
    let mut dice = (!is_long_form()).then(|| Dice::new(first_seed()));
    for n in 0..u64::from(total) {
        let (way, bytes) = cut_at(n, total, dice.as_mut(), up, down);
        let name = format!("cut{n}");
        let said = || format!("{name}: after {bytes} of {up} bytes up or {down} down, {way:?}");
        let lease = relay.lease(&name, &[])?;
        let mut satellite = Satellite::new(dir, &name, &[])?;
        relay.web.cut_way_after(way, bytes);
        let first = satellite.enrol(&lease.join_code)?;
        // A cut may come after the last word that matters.
        if first.code != 0 {
            satellite.enrol(&lease.join_code)?.success().with_context(said)?;
        }
        // Whatever the first attempt came to, the identity that is kept is the one that the relay knows.
        let id = satellite.id().with_context(said)?;
        satellite.start()?;
        wait::until_true(
            "the link is up",
            CONNECTED_WITHIN,
            || Ok(satellite.status()?["link"]["state"] == "connected"),
        )
        .with_context(said)?;
        ensure!(relay.satellite(&name)?["id"] == id.as_str(), "{}: {}", said(), relay.satellite(&name)?);
        satellite.stop()?;
        std::fs::remove_dir_all(dir.join(&name))?;
    }
    Ok(())
}

fn mischief(dir: &Path) -> Result<()> {
    let total = rounds(MOODS);
    let mut done = 0;
    while done < total {
        let house = dir.join(format!("h{done}"));
        std::fs::create_dir_all(&house)?;
        let some = ROUNDS_A_HOUSE.min(total - done);
        mischief_of(&house, first_seed() + u64::from(done), some)?;
        std::fs::remove_dir_all(&house)?;
        done += some;
    }
    Ok(())
}

fn mischief_of(dir: &Path, seed: u64, moods: u32) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    let middleman = Middleman::new(
        &house.relay.data_dir(),
        &house.satellite.state_dir(),
        house.relay.satellites_door()?,
        Dice::new(seed),
    )?;
    house.relay.session.lead_to(Some(middleman.address()));
    house.relay.session.cut_once();
    house.configure(&format!("{}{}", document(&plug, &page), HOST_DOCUMENT))?;
    for mood in 0..u64::from(moods) {
        let mut dice = Dice::new(seed + mood);
        let mischief = if is_long_form() { Mischief::drawn(&mut dice) } else { sample_mood(mood) };
        middleman.behave(mischief);
        house.wait_for_polls(&plug, 3).with_context(|| format!("seed {}", seed + mood))?;
        if dice.one_in(3) {
            middleman.cut_once();
        }
        // Who is cut again and again waits longer and longer.
        middleman.behave(Mischief { cut: 0, ..mischief });
        come_back(&mut house).with_context(|| format!("seed {}", seed + mood))?;
    }
    middleman.behave(Mischief::default());
    // What lost its acknowledgement waits for one until the connection ends.
    middleman.cut_once();
    come_back(&mut house)?;
    house.finish(&[&plug, &page]).with_context(|| format!("seeds {seed} to {}", seed + u64::from(moods) - 1))?;
    let deeds = middleman.deeds();
    ensure!(deeds.lost_acks > 0 && deeds.repeated_frames > 0 && deeds.held_frames > 0, "it did little: {deeds:?}");
    Ok(())
}

/// The short form's moods: each kind of mischief for itself, then all.
fn sample_mood(mood: u64) -> Mischief {
    let none = Mischief::default();
    match mood {
        0 => Mischief { lose_ack: 1, ..none },
        1 => Mischief { repeat_frame: 1, ..none },
        2 => Mischief { hold_frame: 2, ..none },
        3 => Mischief { lose_ack: 2, repeat_ack: 1, hold_event: 1, ..none },
        4 => Mischief { repeat_frame: 2, hold_frame: 2, cut: 8, ..none },
        _ => Mischief { lose_ack: 2, repeat_ack: 2, hold_event: 2, repeat_frame: 2, hold_frame: 2, cut: 20 },
    }
}

/// The link is up, if need be by a new start: a back-off of minutes is right for a house and too long for a test.
fn come_back(house: &mut House) -> Result<()> {
    if wait::until_true("the link", PATIENCE, || house.is_linked()).is_err() {
        restart(house)?;
    }
    house.wait_for_link(true)
}

fn lossy_link(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&format!("{}{}", document(&plug, &page), HOST_DOCUMENT))?;
    network::lose(house.relay.session.port(), 30)?;
    // A new connection as well: handshakes lose packets too.
    restart(&mut house)?;
    house.wait_for_polls(&plug, 10)?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 10)?;
    let lost = network::lost()?;
    ensure!(lost >= 5, "{lost} packets were lost");
    house.finish(&[&plug, &page])?;
    Ok(())
}
