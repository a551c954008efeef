//! `ping`: to be written.

use satellite_shared::config::{Device, Problem};

use super::{Built, Collector, CollectorKind, Context, Poll, Readings, whole};

/// `collector = "ping"`.
pub const KIND: CollectorKind = CollectorKind { name: "ping", build };

fn build(device: &Device, _context: &Context) -> Result<Built, Problem> {
    Ok(Built { collector: Box::new(Ping), metrics: whole(device) })
}

struct Ping;

impl Collector for Ping {
    fn poll<'a>(&'a mut self, _due: &'a [usize], _readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(async { Ok(()) })
    }
}
