//! `mdadm`: software RAIDs: their state, their disks, and how far a rebuild is.

use super::Out;
use super::files::{Files, Trouble, number};

/// A RAID, as three or four lines of `/proc/mdstat` tell it.
#[derive(Debug, Default, PartialEq)]
struct Raid {
    state: &'static str,
    active: f64,
    total: f64,
    failed: f64,
    spare: f64,
    down: f64,
    blocks: f64,
    synced: f64,
}

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let text = files.text("proc/mdstat")?;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.is_empty()
            || line.starts_with([' ', '\t'])
            || ["Personalities", "unused"].iter().any(|w| line.starts_with(w))
        {
            continue;
        }
        let device = line.split_ascii_whitespace().next().unwrap_or_default();
        let mut rest = Vec::new();
        while let Some(line) = lines.next_if(|line| line.starts_with([' ', '\t'])) {
            rest.push(line);
        }
        let Some(raid) = raid(line, &rest) else {
            return Err(files.malformed("a RAID is not told as the kernel does"));
        };
        tell(device, &raid, out);
    }
    Ok(())
}

fn tell(device: &str, raid: &Raid, out: &mut Out<'_>) {
    for (state, raid_state) in [
        ("active", "active"),
        ("inactive", "inactive"),
        ("recovering", "recovering"),
        ("resync", "resyncing"),
        ("check", "checking"),
    ] {
        let holds = if raid.state == raid_state { 1.0 } else { 0.0 };
        out.gauge("node_md_state", "", &[("device", device), ("state", state)], holds);
    }
    for (state, count) in [("active", raid.active), ("failed", raid.failed), ("spare", raid.spare)] {
        out.gauge("node_md_disks", "", &[("device", device), ("state", state)], count);
    }
    out.gauge("node_md_disks_required", "", &[("device", device)], raid.total);
    out.gauge("node_md_blocks", "", &[("device", device)], raid.blocks);
    out.gauge("node_md_blocks_synced", "", &[("device", device)], raid.synced);
}

fn raid(head: &str, rest: &[&str]) -> Option<Raid> {
    let mut raid = Raid::default();
    let inactive = match head.split_ascii_whitespace().nth(2)? {
        "active" => false,
        "inactive" => true,
        _ => return None,
    };
    let count = |what: &str| head.matches(what).count() as f64;
    (raid.failed, raid.spare) = (count("(F)"), count("(S)"));
    let status = rest.first()?;
    raid.blocks = number(status.split_ascii_whitespace().next()?)?;
    if head.contains("raid0") || head.contains("linear") {
        raid.total = count("[");
        raid.active = raid.total;
    } else if !inactive {
        // `[3/2] [UU_]`
        let (before, disks) = status.rsplit_once("] [")?;
        let (total, active) = before.rsplit_once('[')?.1.split_once('/')?;
        (raid.total, raid.active) = (number(total)?, number(active)?);
        raid.down = disks.matches('_').count() as f64;
    }
    raid.synced = raid.blocks;
    raid.state = if inactive { "inactive" } else { "active" };
    for line in &rest[1..] {
        let Some(state) = [("recovery", "recovering"), ("resync", "resyncing"), ("check", "checking")]
            .into_iter()
            .find_map(|(word, state)| line.contains(word).then_some(state))
        else {
            continue;
        };
        raid.state = state;
        raid.synced = if line.contains("PENDING") || line.contains("DELAYED") {
            0.0
        } else {
            number(line.split_once('(')?.1.split_once('/')?.0)?
        };
    }
    Some(raid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raid_that_is_rebuilt_says_how_far() {
        let head = "md1 : active raid5 sdd1[3] sdc1[2](F) sdb1[1](S) sda1[0]";
        let status = "      200 blocks super 1.2 level 5, 64k chunk, algorithm 2 [3/2] [UU_]";
        let line = "      [=>......]  recovery =  5.0% (10/100) finish=1.0min speed=1K/sec";
        let raid = raid(head, &[status, line, "      bitmap: 1/1 pages [4KB], 65536KB chunk"]).unwrap();
        assert_eq!((raid.state, raid.blocks, raid.synced), ("recovering", 200.0, 10.0));
        assert_eq!((raid.active, raid.total, raid.failed, raid.spare, raid.down), (2.0, 3.0, 1.0, 1.0, 1.0));
    }

    #[test]
    fn what_is_no_raid_is_refused() {
        for (head, rest) in [
            ("md1", &[][..]),
            ("md1 : active raid1 a[0]", &[]),
            ("md1 : active raid1 a[0]", &["  x blocks [2/2] [UU]"]),
            ("md1 : active raid1 a[0]", &["  1 blocks"]),
            ("md1 : broken raid1 a[0]", &["  1 blocks [2/2] [UU]"]),
            ("md1 : active raid1 a[0]", &["  1 blocks [2/2] [UU]", " resync = 5%"]),
        ] {
            assert_eq!(raid(head, rest), None, "{head} {rest:?}");
        }
    }
}
