//! Logs: with times and colours on stderr for a person; under systemd to journald, each value a field of its own.
//!
//! `journalctl -o json -u satellite` shows all fields, `journalctl EPOCH=…` finds what concerns one epoch. Where journald can't
//! be reached by its socket, it gets the lines of stderr.

use std::io::{self, IsTerminal as _};
use std::os::unix::fs::MetadataExt as _;

use tracing::Level;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging; later calls change nothing. Libraries tell each step only at `trace`.
pub fn start(level: Level) {
    let of_libraries = if level == Level::TRACE { level } else { level.min(Level::INFO) };
    let targets = Targets::new().with_default(of_libraries).with_target("satellite", level);
    let in_journal = is_journal();
    if in_journal && let Ok(journal) = tracing_journald::layer() {
        let journal = journal.with_field_prefix(None).with_priority_mappings(priorities());
        drop(tracing_subscriber::registry().with(journal.with_filter(targets)).try_init());
        return;
    }
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr);
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = builder.with_ansi(colours).compact();
    if in_journal {
        drop(builder.without_time().finish().with(targets).try_init());
    } else {
        drop(builder.finish().with(targets).try_init());
    }
}

/// Whether stderr is the journal's own stream, as systemd says: a program that a service starts may have another one.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let own = std::fs::metadata("/proc/self/fd/2").map(|meta| format!("{}:{}", meta.dev(), meta.ino()));
    own.is_ok_and(|own| own == stream)
}

/// As syslog has always had them.
fn priorities() -> PriorityMappings {
    PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    }
}
