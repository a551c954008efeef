//! `host`: to be written.

use satellite_shared::config::{Device, Problem};

use super::{Built, Collector, CollectorKind, Context, Poll, Readings, whole};

/// `collector = "host"`.
pub const KIND: CollectorKind = CollectorKind { name: "host", build };

fn build(device: &Device, _context: &Context) -> Result<Built, Problem> {
    Ok(Built { collector: Box::new(Host), metrics: whole(device) })
}

struct Host;

impl Collector for Host {
    fn poll<'a>(&'a mut self, _due: &'a [usize], _readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(async { Ok(()) })
    }
}
