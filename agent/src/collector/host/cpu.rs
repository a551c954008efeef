//! `cpu`: what each processor spent its time on, and how often heat slowed it.
//!
//! The kernel's idle and iowait counters may step back a little; a counter that does is held, as node_exporter holds
//! it, but for a step of three seconds and more, which is a processor that was away.

use super::files::{Files, Trouble, number};
use super::{Out, Read};

/// The kernel's ticks are of a hundredth of a second for user space, whatever it counts in itself.
const TICKS_PER_SECOND: f64 = 100.0;
const IDLE: usize = 3;
/// Ticks.
const STEP_BACK_MAX: f64 = 3.0 * TICKS_PER_SECOND;
/// In the order of `/proc/stat`.
const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
const GUEST_MODES: [&str; 2] = ["user", "nice"];
const COLUMNS: usize = MODES.len() + GUEST_MODES.len();

/// What was told last.
#[derive(Default)]
pub(super) struct Cpu {
    told: Vec<Told>,
}

struct Told {
    cpu: String,
    ticks: [f64; COLUMNS],
}

impl Read for Cpu {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        let text = files.text("proc/stat")?;
        let mut place = 0;
        for line in text.lines() {
            let Some((cpu, columns)) = line.strip_prefix("cpu").and_then(|rest| rest.split_once(' ')) else { break };
            if cpu.is_empty() {
                continue; // the sum of all
            }
            let mut ticks = [0.0; COLUMNS];
            for (tick, column) in ticks.iter_mut().zip(columns.split_ascii_whitespace()) {
                let Some(read) = number(column) else { return Err(files.malformed("a processor's time is no number")) };
                *tick = read;
            }
            let ticks = self.hold(place, cpu, ticks);
            place += 1;
            for (mode, ticks) in MODES.iter().zip(ticks) {
                let labels = [("cpu", cpu), ("mode", mode)];
                out.counter("node_cpu_seconds_total", "seconds", &labels, ticks / TICKS_PER_SECOND);
            }
            for (mode, ticks) in GUEST_MODES.iter().zip(&ticks[MODES.len()..]) {
                let labels = [("cpu", cpu), ("mode", mode)];
                out.counter("node_cpu_guest_seconds_total", "seconds", &labels, ticks / TICKS_PER_SECOND);
            }
        }
        if place == 0 {
            return Err(files.malformed("it names no processor"));
        }
        throttles(files, out);
        Ok(())
    }
}

impl Cpu {
    fn hold(&mut self, place: usize, cpu: &str, ticks: [f64; COLUMNS]) -> [f64; COLUMNS] {
        let away = |told: &Told| told.cpu != cpu || told.ticks[IDLE] - ticks[IDLE] >= STEP_BACK_MAX;
        match self.told.get_mut(place) {
            None => self.told.push(Told { cpu: cpu.to_owned(), ticks }),
            Some(told) if away(told) => *told = Told { cpu: cpu.to_owned(), ticks },
            Some(told) => {
                for (told, now) in told.ticks.iter_mut().zip(ticks) {
                    *told = told.max(now);
                }
            }
        }
        self.told[place].ticks
    }
}

/// Only Intel's processors have these, each core's and package's at every processor of it.
fn throttles(files: &mut Files, out: &mut Out<'_>) {
    if files.number("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count").is_err() {
        return;
    }
    let mut packages = Vec::new();
    let mut cores = Vec::new();
    for name in files.names("sys/devices/system/cpu").unwrap_or_default() {
        if !name.strip_prefix("cpu").is_some_and(|rest| rest.bytes().next().is_some_and(|b| b.is_ascii_digit())) {
            continue;
        }
        let dir = format!("sys/devices/system/cpu/{name}");
        let Some(package) = files.line_if_any(&format!("{dir}/topology/physical_package_id")) else { continue };
        let Some(core) = files.line_if_any(&format!("{dir}/topology/core_id")) else { continue };
        let core = (package, core);
        if !cores.contains(&core)
            && let Some(count) = files.number_if_any(&format!("{dir}/thermal_throttle/core_throttle_count"))
        {
            let labels = [("package", &*core.0), ("core", &*core.1)];
            out.counter("node_cpu_core_throttles_total", "", &labels, count);
            cores.push(core.clone());
        }
        if !packages.contains(&core.0)
            && let Some(count) = files.number_if_any(&format!("{dir}/thermal_throttle/package_throttle_count"))
        {
            out.counter("node_cpu_package_throttles_total", "", &[("package", &*core.0)], count);
            packages.push(core.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(cpu: &mut Cpu, name: &str, idle: f64) -> f64 {
        let mut ticks = [0.0; COLUMNS];
        ticks[IDLE] = idle;
        cpu.hold(0, name, ticks)[IDLE]
    }

    #[test]
    fn a_counter_that_steps_back_a_little_is_held_and_one_of_a_processor_that_was_away_is_not() {
        let mut cpu = Cpu::default();
        assert_eq!(idle(&mut cpu, "0", 1000.0), 1000.0);
        assert_eq!(idle(&mut cpu, "0", 999.0), 1000.0);
        assert_eq!(idle(&mut cpu, "0", 1001.0), 1001.0);
        assert_eq!(idle(&mut cpu, "0", 700.0), 700.0);
        assert_eq!(idle(&mut cpu, "1", 650.0), 650.0, "another processor stands in its place");
    }
}
