//! `tcp`: to be written.

use satellite_shared::config::{Device, Problem};

use super::{Built, Collector, CollectorKind, Context, Poll, Readings, whole};

/// `collector = "tcp"`.
pub const KIND: CollectorKind = CollectorKind { name: "tcp", build };

fn build(device: &Device, _context: &Context) -> Result<Built, Problem> {
    Ok(Built { collector: Box::new(Tcp), metrics: whole(device) })
}

struct Tcp;

impl Collector for Tcp {
    fn poll<'a>(&'a mut self, _due: &'a [usize], _readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(async { Ok(()) })
    }
}
