//! Logs go to stderr: with times and colours for a person, with journald's priorities under systemd.

use std::fmt;
use std::io::IsTerminal as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging; later calls change nothing. Libraries tell each step only at `trace`.
pub fn start(level: Level) {
    let of_libraries = if level == Level::TRACE { level } else { level.min(Level::INFO) };
    let targets = Targets::new().with_default(of_libraries).with_target("satellite", level);
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        let format = Priority(tracing_subscriber::fmt::format().compact().without_time().with_level(false));
        drop(builder.with_ansi(false).event_format(format).finish().with(targets).try_init());
        return;
    }
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    drop(builder.with_ansi(colours).compact().finish().with(targets).try_init());
}

/// sd-daemon(3): `<3>` before a line tells journald its priority.
struct Priority(Format<Compact, ()>);

impl<S, N> FormatEvent<S, N> for Priority
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}
