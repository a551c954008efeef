//! `processes`: how many processes and threads there are, and what they do. Off unless listed, as in node_exporter:
//! every process has a file that must be read. `sysinfo` reads them.

use std::collections::BTreeMap;

use sysinfo::{Process, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, ThreadKind};

use super::files::{Files, Trouble};
use super::{Out, Read};

#[derive(Default)]
pub(super) struct Processes {
    system: Option<System>,
}

impl Read for Processes {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        files.must_be_real()?;
        let system = match &mut self.system {
            Some(system) => system,
            none => none.insert(System::new().map_err(|error| Trouble::Library(error.to_string()))?),
        };
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, ProcessRefreshKind::nothing().with_tasks());
        let mut states: BTreeMap<&str, f64> = BTreeMap::new();
        let mut thread_states: BTreeMap<&str, f64> = BTreeMap::new();
        let (mut processes, mut threads) = (0.0, 0.0);
        for process in system.processes().values() {
            // A process stands for its first thread; those of the kernel are processes to everyone else.
            *thread_states.entry(letter(process)).or_default() += 1.0;
            threads += 1.0;
            if process.thread_kind() != Some(ThreadKind::Userland) {
                *states.entry(letter(process)).or_default() += 1.0;
                processes += 1.0;
            }
        }
        out.gauge("node_processes_threads", "", &[], threads);
        out.gauge("node_processes_pids", "", &[], processes);
        for (state, count) in &states {
            out.gauge("node_processes_state", "", &[("state", state)], *count);
        }
        for (state, count) in &thread_states {
            out.gauge("node_processes_threads_state", "", &[("thread_state", state)], *count);
        }
        let threads_max = files.number("proc/sys/kernel/threads-max")?;
        out.gauge("node_processes_max_threads", "", &[], threads_max);
        let processes_max = files.number("proc/sys/kernel/pid_max")?;
        out.gauge("node_processes_max_processes", "", &[], processes_max);
        Ok(())
    }
}

/// The letter that ps(1) shows.
#[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum: the other states are of other systems")]
fn letter(process: &Process) -> &'static str {
    match process.status() {
        ProcessStatus::Run => "R",
        ProcessStatus::Sleep => "S",
        ProcessStatus::UninterruptibleDiskSleep => "D",
        ProcessStatus::Idle => "I",
        ProcessStatus::Zombie => "Z",
        ProcessStatus::Stop => "T",
        ProcessStatus::Tracing => "t",
        ProcessStatus::Dead => "X",
        ProcessStatus::Parked => "P",
        _ => "?",
    }
}
