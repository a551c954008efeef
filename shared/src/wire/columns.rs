//! Samples as columns: series numbers as runs, times as differences of differences, values as scaled integers.
//!
//! A series' values become integers `n` with one decimal scale `k` for which `n / 10^k` has the same bits as
//! the value; those for which no `k` up to 6 does go into eight byte planes. postcard writes the varints; the
//! frame's zstd does the rest. Lossless by construction: NaN, infinities and -0.0 take the planes.
//!
//! Several polls of the same series, one after the other, are *folded*: their times and values stand together, so that
//! differences run from poll to poll, and *picks* say in which order the polls came. Numbers follow that order.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::wire::block::{Group, InvalidFrame};

const SCALE_MAX: u8 = 6;
const SCALES: [f64; 7] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6];
/// Integers beyond this are not exact in an f64.
const EXACT_MAX: f64 = 9e15;

const SCALE_MASK: u8 = 0x0f;
const CONSTANT: u8 = 0x10;
const SECOND_DIFFERENCE: u8 = 0x20;
const FLOAT: u8 = 0x40;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Columns {
    /// Of each group: runs of series numbers, and times.
    groups: Vec<(u32, u32)>,
    /// Distance from the end of the run before, and length.
    runs: Vec<(u32, u32)>,
    /// Of each group: first time, first difference, differences of differences.
    times: Vec<i64>,
    /// Of each series of each group: scale and flags.
    kinds: Vec<u8>,
    /// Series by series: the first value, then differences.
    ints: Vec<i64>,
    /// The values that are no short decimals: all first bytes, all second bytes, …, high byte first.
    planes: Vec<u8>,
}

/// One of the groups as they came: which folded group has it, and how many of its next times.
type Pick = (u32, u32);

/// The groups, folded; `None` where no two have the same series.
pub(super) fn encode_folded(groups: &[Group]) -> Option<Vec<u8>> {
    let mut found: HashMap<&[u32], u32> = HashMap::new();
    let mut parts: Vec<Vec<&Group>> = Vec::new();
    let mut picks: Vec<Pick> = Vec::with_capacity(groups.len());
    for group in groups {
        let next = u32::try_from(parts.len()).expect("groups are few");
        let at = *found.entry(&group.series).or_insert(next);
        if at == next {
            parts.push(Vec::new());
        }
        parts[at as usize].push(group);
        picks.push((at, u32::try_from(group.times_ms.len()).expect("groups are small")));
    }
    if parts.len() == groups.len() {
        return None;
    }
    let folded: Vec<Group> = parts.iter().map(|parts| fold(parts)).collect();
    let mut payload = encode(&folded);
    payload.extend(postcard::to_stdvec(&picks).expect("plain values always serialise"));
    Some(payload)
}

/// Groups of the same series as one.
fn fold(parts: &[&Group]) -> Group {
    let series = parts.first().map(|group| group.series.clone()).unwrap_or_default();
    let times_ms = parts.iter().flat_map(|group| group.times_ms.iter().copied()).collect();
    let of_series = |at: usize| {
        parts.iter().flat_map(move |group| {
            let times = group.times_ms.len();
            group.values[at * times..(at + 1) * times].iter().copied()
        })
    };
    let values = (0..series.len()).flat_map(of_series).collect();
    Group { series, times_ms, values }
}

/// Folded groups as they came.
pub(super) fn decode_folded(payload: &[u8], count: usize) -> Result<Vec<Group>, InvalidFrame> {
    let error = InvalidFrame::Payload("folded groups");
    let (columns, rest) = postcard::take_from_bytes::<Columns>(payload).map_err(|_| error.clone())?;
    let picks: Vec<Pick> = postcard::from_bytes(rest).map_err(|_| error.clone())?;
    let folded = expand(&columns, count)?;
    let mut taken = vec![0usize; folded.len()];
    let mut groups = Vec::with_capacity(picks.len().min(count));
    for (at, times) in picks {
        let (group, taken) = folded.get(at as usize).zip(taken.get_mut(at as usize)).ok_or_else(|| error.clone())?;
        let from = *taken;
        *taken = from.saturating_add(times as usize);
        // Each pick is of some samples, so that all of them together are no more than the header says.
        if times == 0 || *taken > group.times_ms.len() {
            return Err(error);
        }
        let of_series = group.values.chunks_exact(group.times_ms.len());
        groups.push(Group {
            series: group.series.clone(),
            times_ms: group.times_ms[from..*taken].to_vec(),
            values: of_series.flat_map(|values| values[from..*taken].iter().copied()).collect(),
        });
    }
    let all = folded.iter().zip(&taken).all(|(group, taken)| *taken == group.times_ms.len());
    if all { Ok(groups) } else { Err(error) }
}

pub(super) fn encode(groups: &[Group]) -> Vec<u8> {
    let mut columns = Columns::default();
    let mut floats: Vec<u64> = Vec::new();
    for group in groups {
        debug_assert_eq!(group.values.len(), group.series.len() * group.times_ms.len());
        let runs = push_runs(&mut columns.runs, &group.series);
        push_times(&mut columns.times, &group.times_ms);
        columns.groups.push((runs, u32::try_from(group.times_ms.len()).expect("groups are small")));
        for values in group.values.chunks_exact(group.times_ms.len().max(1)) {
            push_values(&mut columns, &mut floats, values);
        }
    }
    columns.planes.reserve(floats.len() * 8);
    for shift in (0..64).step_by(8).rev() {
        columns.planes.extend(floats.iter().map(|bits| (bits >> shift) as u8));
    }
    postcard::to_stdvec(&columns).expect("plain values always serialise")
}

fn push_runs(runs: &mut Vec<(u32, u32)>, series: &[u32]) -> u32 {
    let before = runs.len();
    let mut end = 0;
    for &number in series {
        match runs.last_mut() {
            Some((_, len)) if number == end && end != 0 => *len += 1,
            Some(_) | None => runs.push((number - end, 1)),
        }
        end = number + 1;
    }
    u32::try_from(runs.len() - before).expect("groups are small")
}

fn push_times(times: &mut Vec<i64>, times_ms: &[i64]) {
    let (mut previous, mut difference) = (0i64, 0i64);
    for (index, &time) in times_ms.iter().enumerate() {
        let step = time.wrapping_sub(previous);
        match index {
            0 => times.push(time),
            1 => times.push(step),
            _ => times.push(step.wrapping_sub(difference)),
        }
        (previous, difference) = (time, step);
    }
}

fn push_values(columns: &mut Columns, floats: &mut Vec<u64>, values: &[f64]) {
    let constant = values.iter().all(|v| v.to_bits() == values[0].to_bits());
    let stored = if constant { &values[..1] } else { values };
    let flag = if constant { CONSTANT } else { 0 };
    let Some(scale) = (0..=SCALE_MAX).find(|&k| stored.iter().all(|&v| scaled(v, k).is_some())) else {
        columns.kinds.push(FLOAT | flag);
        floats.extend(stored.iter().map(|v| v.to_bits()));
        return;
    };
    let ints: Vec<i64> = stored.iter().filter_map(|&v| scaled(v, scale)).collect();
    let first: Vec<i64> = ints.windows(2).map(|w| w[1].wrapping_sub(w[0])).collect();
    let second = first.iter().scan(0i64, |previous, &d| Some(d.wrapping_sub(std::mem::replace(previous, d))));
    let cost = |differences: &[i64]| -> u64 {
        differences.iter().map(|d| 1 + u64::from(64 - d.unsigned_abs().leading_zeros()) / 7).sum()
    };
    let second: Vec<i64> = second.collect();
    columns.ints.push(ints[0]);
    if cost(&second) < cost(&first) {
        columns.kinds.push(scale | flag | SECOND_DIFFERENCE);
        columns.ints.extend(second);
    } else {
        columns.kinds.push(scale | flag);
        columns.ints.extend(first);
    }
}

/// The integer that stands for `value` at this scale, if it does so exactly.
fn scaled(value: f64, scale: u8) -> Option<i64> {
    let factor = SCALES[usize::from(scale)];
    let n = (value * factor).round();
    if n.is_nan() || n.abs() >= EXACT_MAX {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded above, and compared below")]
    let n = n as i64;
    (unscaled(n, scale).to_bits() == value.to_bits()).then_some(n)
}

#[expect(clippy::cast_precision_loss, reason = "integers here are below 2^53; others come only from hostile input")]
fn unscaled(n: i64, scale: u8) -> f64 {
    n as f64 / SCALES[usize::from(scale)]
}

pub(super) fn decode(payload: &[u8], count: usize) -> Result<Vec<Group>, InvalidFrame> {
    let columns: Columns = postcard::from_bytes(payload).map_err(|_| InvalidFrame::Payload("columns"))?;
    expand(&columns, count)
}

fn expand(columns: &Columns, count: usize) -> Result<Vec<Group>, InvalidFrame> {
    let mut reader = Reader {
        runs: columns.runs.iter(),
        times: columns.times.iter(),
        kinds: columns.kinds.iter(),
        ints: columns.ints.iter(),
        planes: &columns.planes,
        float: 0,
        left: count,
    };
    let mut groups = Vec::with_capacity(columns.groups.len().min(count));
    for &(runs, times) in &columns.groups {
        groups.push(reader.group(runs, times)?);
    }
    if reader.left != 0 {
        return Err(InvalidFrame::Payload("fewer samples than the header says"));
    }
    Ok(groups)
}

struct Reader<'a> {
    runs: std::slice::Iter<'a, (u32, u32)>,
    times: std::slice::Iter<'a, i64>,
    kinds: std::slice::Iter<'a, u8>,
    ints: std::slice::Iter<'a, i64>,
    planes: &'a [u8],
    float: usize,
    left: usize,
}

impl Reader<'_> {
    fn group(&mut self, runs: u32, times: u32) -> Result<Group, InvalidFrame> {
        let times_ms = self.times(times as usize)?;
        let series = self.series(runs)?;
        let samples = series.len() * times_ms.len();
        if samples == 0 || samples > self.left {
            return Err(InvalidFrame::Payload("a group is empty or larger than the header says"));
        }
        self.left -= samples;
        let mut values = Vec::with_capacity(samples);
        for _ in &series {
            self.values(times_ms.len(), &mut values)?;
        }
        Ok(Group { series, times_ms, values })
    }

    fn times(&mut self, count: usize) -> Result<Vec<i64>, InvalidFrame> {
        if count == 0 || count > self.left {
            return Err(InvalidFrame::Payload("times"));
        }
        let mut times_ms = Vec::with_capacity(count);
        let (mut previous, mut difference) = (0i64, 0i64);
        for index in 0..count {
            let &n = self.times.next().ok_or(InvalidFrame::Payload("times"))?;
            let time = match index {
                0 => n,
                1 => previous.wrapping_add(n),
                _ => previous.wrapping_add(difference.wrapping_add(n)),
            };
            difference = time.wrapping_sub(previous);
            previous = time;
            times_ms.push(time);
        }
        Ok(times_ms)
    }

    fn series(&mut self, runs: u32) -> Result<Vec<u32>, InvalidFrame> {
        let error = InvalidFrame::Payload("series numbers");
        let mut series = Vec::new();
        let mut end = 0u32;
        for _ in 0..runs {
            let &(gap, len) = self.runs.next().ok_or(error.clone())?;
            let first = end.checked_add(gap).ok_or(error.clone())?;
            end = first.checked_add(len).ok_or(error.clone())?;
            if end as usize > limits::SERIES_PER_EPOCH_MAX || series.len() + len as usize > self.left {
                return Err(error);
            }
            series.extend(first..end);
        }
        Ok(series)
    }

    fn values(&mut self, count: usize, values: &mut Vec<f64>) -> Result<(), InvalidFrame> {
        let error = InvalidFrame::Payload("values");
        let &kind = self.kinds.next().ok_or(error.clone())?;
        let stored = if kind & CONSTANT == 0 { count } else { 1 };
        let scale = kind & SCALE_MASK;
        if scale > SCALE_MAX {
            return Err(error);
        }
        let start = values.len();
        let (mut previous, mut difference) = (0i64, 0i64);
        for index in 0..stored {
            if kind & FLOAT != 0 {
                values.push(self.float()?);
                continue;
            }
            let &n = self.ints.next().ok_or(error.clone())?;
            if index == 0 {
                previous = n;
            } else {
                difference = if kind & SECOND_DIFFERENCE == 0 { n } else { difference.wrapping_add(n) };
                previous = previous.wrapping_add(difference);
            }
            values.push(unscaled(previous, scale));
        }
        let last = values[values.len() - 1];
        values.resize(start + count, last);
        Ok(())
    }

    fn float(&mut self) -> Result<f64, InvalidFrame> {
        let planes = self.planes.len() / 8;
        if self.float >= planes {
            return Err(InvalidFrame::Payload("floats"));
        }
        let bits = (0..8).fold(0u64, |bits, plane| bits << 8 | u64::from(self.planes[plane * planes + self.float]));
        self.float += 1;
        Ok(f64::from_bits(bits))
    }
}
