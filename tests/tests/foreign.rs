//! Every parser of foreign bytes reads its corpus and seeded mutations of it: no panic, no hang, no broken promise.
//!
//! The same functions are fuzz targets in `tests/fuzz`, where coverage leads the way; this is the part of it that needs
//! no other tool, and keeps targets and corpus from rotting.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use satellite_tests::foreign::{self, Target};
use satellite_tests::rounds::{Dice, first_seed, rounds};
use satellite_tests::wait;

/// Mutations of each parser in the short form.
const MUTATIONS: u32 = 4_000;
/// Nothing that fits the wire takes so long, not even on a busy machine.
const SLOW_MS: u64 = 10_000;
/// The longest input that is made.
const BYTES_MAX: usize = 8 << 10;
/// Pieces that grammars are made of: more of them pass than random bytes would.
const WORDS: [&[u8]; 28] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\\",
    b"\n",
    b"\r\n",
    b"0",
    b"-1",
    b"18446744073709551615",
    b"1e999",
    b"NaN",
    b"null",
    b"true",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"::ffff:",
    b"/0",
    b"#",
    b"*",
    b"$..",
    b"name",
    b" ",
    b"'",
];

fn main() -> ExitCode {
    let trials = foreign::ALL.iter().map(|target| {
        Trial::test(format!("{}_reads_anything", target.name), move || {
            read_anything(target).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let complete =
        Trial::test("every_parser_has_a_corpus", || complete().map_err(|error| Failed::from(format!("{error:#}"))));
    libtest_mimic::run(&Arguments::from_args(), trials.chain([complete]).collect()).exit_code()
}

fn seeds(target: &Target) -> Result<Vec<Vec<u8>>> {
    let mut seeds = (target.made)();
    let corpus = foreign::corpus(target.name);
    let mut files: Vec<_> = std::fs::read_dir(&corpus)
        .with_context(|| corpus.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    for file in files {
        seeds.push(std::fs::read(file)?);
    }
    ensure!(!seeds.is_empty(), "{} has no seed", target.name);
    Ok(seeds)
}

fn read_anything(target: &Target) -> Result<()> {
    let seeds = seeds(target)?;
    for seed in &seeds {
        read(target, seed)?;
    }
    for round in 0..u64::from((rounds(MUTATIONS) / target.dear).max(1)) {
        let seed = first_seed() + round;
        let mutated = mutated(&seeds, &mut Dice::new(seed));
        read(target, &mutated).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

fn read(target: &Target, bytes: &[u8]) -> Result<()> {
    let started = wait::mono_ms();
    let ended = catch_unwind(AssertUnwindSafe(|| (target.read)(bytes)));
    let took_ms = wait::mono_ms() - started;
    if ended.is_err() || took_ms > SLOW_MS {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(2_000)]);
        let what = if ended.is_err() { "panicked" } else { "took too long" };
        bail!("{} {what} ({took_ms} ms) at {} bytes: {shown:?} {bytes:02x?}", target.name, bytes.len());
    }
    Ok(())
}

/// A seed with some pieces changed, doubled, taken out, or put in from another.
fn mutated(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let at = |dice: &mut Dice, len: usize| usize::try_from(dice.below(len as u64)).unwrap_or(0);
    let mut bytes = seeds[at(dice, seeds.len())].clone();
    for _ in 0..=dice.below(6) {
        let place = at(dice, bytes.len() + 1);
        let end = (place + at(dice, 33)).min(bytes.len());
        match dice.below(6) {
            0 if place < bytes.len() => bytes[place] ^= 1 << dice.below(8),
            1 if place < bytes.len() => bytes[place] = u8::try_from(dice.below(256)).unwrap_or(0),
            2 => drop(bytes.drain(place..end)),
            3 => drop(bytes.splice(place..place, WORDS[at(dice, WORDS.len())].iter().copied())),
            4 => {
                let piece = bytes[place..end].repeat(1 + at(dice, 20));
                drop(bytes.splice(place..place, piece));
            }
            _ => {
                let other = &seeds[at(dice, seeds.len())];
                let from = at(dice, other.len() + 1);
                let to = (from + at(dice, 200)).min(other.len());
                drop(bytes.splice(place..end, other[from..to].iter().copied()));
            }
        }
        bytes.truncate(BYTES_MAX);
    }
    bytes
}

fn complete() -> Result<()> {
    let mut named: Vec<String> = foreign::ALL.iter().map(|target| target.name.to_owned()).collect();
    named.sort();
    ensure!(named.windows(2).all(|pair| pair[0] != pair[1]), "two parsers have one name: {named:?}");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut kept: Vec<String> = std::fs::read_dir(corpus)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    kept.sort();
    ensure!(kept == named, "tests/fuzz/run takes the parsers from the folders of the corpus: {kept:?}, not {named:?}");
    Ok(())
}
