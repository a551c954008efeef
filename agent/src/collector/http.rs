//! `http`: to be written.

use satellite_shared::config::{Device, Problem};

use super::{Built, Collector, CollectorKind, Context, Poll, Readings, whole};

/// `collector = "http"`.
pub const KIND: CollectorKind = CollectorKind { name: "http", build };

fn build(device: &Device, _context: &Context) -> Result<Built, Problem> {
    Ok(Built { collector: Box::new(Http), metrics: whole(device) })
}

struct Http;

impl Collector for Http {
    fn poll<'a>(&'a mut self, _due: &'a [usize], _readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(async { Ok(()) })
    }
}
