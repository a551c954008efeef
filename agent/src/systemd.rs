//! What the service manager is told: ready, how things stand, reading settings anew, stopping; and the watchdog's food.
//!
//! The food is given only while every task takes its turns ([`satellite_shared::heartbeat`]), the buffer's thread
//! included: it answers a question. Ready means that each has taken its first one. Without a service manager nothing is
//! said to nobody. Deliberately absent: what the unit may do, which stands in the unit.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::clock::Clock;
use satellite_shared::heartbeat::{Beat, Heartbeats, one_line};
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::buffer::{Buffer, BufferState, Health};
use crate::uplink::{LinkState, Standing};

/// The longest that opening a buffer may take: one that was damaged is read through and written again.
const OPENING: Duration = Duration::from_secs(600);
/// What a stop takes beside its grace period: the last commit, closing the buffer.
const CLOSING: Duration = Duration::from_secs(30);
/// How often the tasks and the figures are looked at where no watchdog asks for more.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is asked whether all have begun.
const BEGIN: Duration = Duration::from_millis(20);

/// The service manager, if there is one.
#[derive(Debug, Clone, Copy)]
pub struct ServiceManager {
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// As the environment says it (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).
    #[must_use]
    pub fn of_environment() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled() }
    }

    /// What a satellite's tasks are watched with.
    #[must_use]
    pub fn heartbeats(self) -> Heartbeats {
        Heartbeats::new(self.watchdog)
    }

    /// The buffer is about to be opened: nothing else happens until it is.
    pub fn opening(self) {
        tell(&[NotifyState::ExtendTimeoutUsec(micros(OPENING)), NotifyState::Status("opening the buffer")]);
        if self.watchdog.is_some() {
            tell(&[NotifyState::WatchdogUsec(micros(OPENING)), NotifyState::Watchdog]);
        }
    }

    /// The settings are about to be read anew, and the satellite to begin again with them.
    pub fn reloading(self, grace: Duration) {
        // systemd asks for the time, so that no word of readiness from before is taken for this one.
        let now = NotifyState::monotonic_usec_now().ok();
        let mut states = vec![NotifyState::Reloading, NotifyState::Status("reading the settings anew")];
        states.extend(now);
        states.push(NotifyState::ExtendTimeoutUsec(micros(grace + CLOSING)));
        tell(&states);
    }

    /// The satellite is about to stop.
    pub fn stopping(self, grace: Duration) {
        let status = NotifyState::Status("stopping: committing, sending what fits");
        tell(&[NotifyState::Stopping, status, NotifyState::ExtendTimeoutUsec(micros(grace + CLOSING))]);
    }

    /// It is running, with the settings that count.
    pub fn ready(self) {
        if let Some(watchdog) = self.watchdog {
            tell(&[NotifyState::WatchdogUsec(micros(watchdog))]);
        }
        tell(&[NotifyState::Ready]);
    }
}

/// Feeds the watchdog and says how things stand, for as long as a satellite lives.
pub struct Supervisor {
    manager: ServiceManager,
    heartbeats: Heartbeats,
    clock: Arc<dyn Clock>,
    buffer: Buffer,
    link: watch::Receiver<LinkState>,
    said: String,
    stuck: Vec<&'static str>,
}

impl Supervisor {
    /// Of a satellite's tasks, all of which `heartbeats` knows.
    #[must_use]
    pub fn new(
        manager: ServiceManager,
        heartbeats: Heartbeats,
        clock: Arc<dyn Clock>,
        buffer: Buffer,
        link: watch::Receiver<LinkState>,
    ) -> Self {
        Self { manager, heartbeats, clock, buffer, link, said: String::new(), stuck: Vec::new() }
    }

    /// Goes on until it is dropped.
    pub async fn run(mut self) -> Infallible {
        let beat = self.heartbeats.task("buffer");
        let answers = answers(self.buffer.clone(), beat);
        tokio::select! {
            never = answers => never,
            never = self.watch() => never,
        }
    }

    async fn watch(&mut self) -> Infallible {
        while !self.heartbeats.have_begun() {
            tokio::time::sleep(BEGIN).await;
        }
        self.manager.ready();
        let every = self.manager.watchdog.map_or(LOOK, |watchdog| LOOK.min(watchdog / 4));
        loop {
            self.look();
            let next = Instant::now() + every;
            let mut standing = std::mem::discriminant(&self.link.borrow_and_update().standing);
            // In between, only another state of the link is news; figures change with every look.
            while let Ok(changed) = tokio::time::timeout_at(next, self.link.changed()).await {
                if changed.is_err() {
                    tokio::time::sleep_until(next).await;
                    break;
                }
                let now = std::mem::discriminant(&self.link.borrow_and_update().standing);
                if now != standing {
                    standing = now;
                    self.say();
                }
            }
        }
    }

    fn look(&mut self) {
        let stuck = self.heartbeats.stuck(self.clock.now().mono_ms);
        if stuck != self.stuck {
            match stuck.as_slice() {
                [] => tracing::warn!("every task goes on again"),
                tasks => tracing::error!(tasks = tasks.join(", "), "stuck: the watchdog is not fed until they go on"),
            }
            self.stuck = stuck;
        }
        if self.stuck.is_empty() && self.manager.watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        self.say();
    }

    fn say(&mut self) {
        let text = match self.stuck.as_slice() {
            [] => status(&self.link.borrow(), &self.buffer.state().borrow()),
            tasks => format!("stuck: {}", tasks.join(", ")),
        };
        if text != self.said {
            tell(&[NotifyState::Status(&text)]);
            self.said = text;
        }
    }
}

/// The buffer's thread is alive while it answers.
async fn answers(buffer: Buffer, beat: Beat) -> Infallible {
    loop {
        buffer.answer().await;
        beat.beat();
        tokio::time::sleep(beat.every()).await;
    }
}

/// How things stand, in a line that `systemctl status` shows. Part of it was said by the relay.
fn status(link: &LinkState, buffer: &BufferState) -> String {
    let records = buffer.records;
    let line = match &link.standing {
        Standing::NoLease { why } => why.clone(),
        Standing::Connecting { .. } => format!("connecting, {records} records buffered"),
        Standing::Disconnected { why, .. } => format!("offline, {records} records buffered: {why}"),
        Standing::Connected { relay, .. } => format!("connected to {relay}"),
    };
    match &buffer.health {
        Health::Healthy => one_line(&line),
        Health::Degraded { why, .. } => one_line(&format!("{line}; the buffer is degraded: {why}")),
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::id::Epoch;

    use super::*;
    use crate::buffer::Place;

    fn buffer(health: Health) -> BufferState {
        BufferState {
            last: Place::default(),
            store_opened: 1,
            epoch: Epoch(1),
            last_seq: 0,
            due: 0,
            waiting: 0,
            records: 7,
            payload_bytes: 0,
            blocks: 0,
            oldest_ms: None,
            evicted_total: 0,
            bytes_written: 0,
            health,
        }
    }

    fn said(standing: Standing, health: Health) -> String {
        status(&LinkState { standing, ..LinkState::new() }, &buffer(health))
    }

    #[test]
    fn the_status_is_a_line_that_says_what_matters() {
        let needs = Standing::NoLease { why: crate::uplink::NO_LEASE.to_owned() };
        assert_eq!(said(needs, Health::Healthy), "needs a lease: run sudo satellite lease set");
        let away = Standing::Disconnected { since_ms: 0, why: "no route".into(), next_try_ms: 1 };
        assert_eq!(said(away.clone(), Health::Healthy), "offline, 7 records buffered: no route");
        let degraded = Health::Degraded { since_ms: 0, why: "disk full".into() };
        assert!(said(away, degraded).ends_with("; the buffer is degraded: disk full"));
    }

    #[test]
    fn a_relay_can_say_nothing_to_the_service_manager_by_its_name() {
        let standing = Standing::Connected { since_ms: 0, relay: "r\nMAINPID=1".into(), session: "s".into() };
        assert_eq!(said(standing, Health::Healthy), "connected to r MAINPID=1");
    }
}
