//! The way to a device that others share an address with: its turn, a connection, and its requests one after the other.
//!
//! To wait for the turn says nothing about the device, so it has a time of its own, outside of the probe, and ends in a
//! gap. Where others wait behind the same address a request has a third of the time, so that a device that is silent
//! lets the bus go while they still can be asked. The bus rests between any two requests.

use std::sync::Arc;
use std::time::Duration;

use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use tokio_modbus::Slave;
use tokio_modbus::client;

use super::PORT;
use super::request::{self, Refused, Table};
use crate::collector::address::Address;
use crate::collector::gateway::{Gateway, Turn};
use crate::collector::probe::{self, Stopwatch};
use crate::collector::{Context, Failure, options};
use crate::policy::{Gate, Protocol};

const SPACING_MAX: Duration = Duration::from_secs(1);

/// Where a device is, and how long it is given.
pub(in super::super) struct Bus {
    gate: Arc<Gate>,
    gateway: Arc<Gateway>,
    address: Address,
    unit: Slave,
    spacing: Duration,
    limit: Duration,
}

impl Bus {
    /// The bus of a device with these options.
    pub(in super::super) fn parse(
        device: &Device,
        context: &Context,
        address: &str,
        unit_id: u8,
        spacing: Option<&str>,
    ) -> Result<Self, Problem> {
        let at = |key: &str| format!("device.{}.{key}", device.name);
        let address = Address::parse(address, Some(PORT), &at("address"))?;
        let spacing = match spacing {
            None => Duration::ZERO,
            Some(text) => humantime::parse_duration(text)
                .ok()
                .filter(|spacing| *spacing <= SPACING_MAX)
                .ok_or_else(|| options::problem(&at("spacing"), "a duration of at most 1s, such as \"50ms\""))?,
        };
        Ok(Self {
            gate: Arc::clone(&context.gate),
            gateway: context.gateways.at(&address),
            address,
            unit: Slave(unit_id),
            spacing,
            limit: probe::limit(device.timeout),
        })
    }

    /// Waits until the bus is the device's, and says what is left of its time.
    pub(in super::super) async fn turn(&self) -> Result<(Turn<'_>, Duration), Failure> {
        let watch = Stopwatch::start();
        let turn = tokio::time::timeout(self.limit * 2 / 3, self.gateway.turn(self.spacing)).await;
        let turn = turn.map_err(|_| {
            let detail = "other devices at this address held the bus all the time: poll less often, or give the \
                          silent one a shorter timeout";
            Failure::new(Reason::Late, detail)
        })?;
        Ok((turn, watch.left(self.limit)))
    }

    /// A connection, made in so much time at most.
    pub(in super::super) async fn open(&self, left: Duration) -> Result<Connection, Failure> {
        let addresses = self.gate.resolve(Protocol::Modbus, &self.address.host, self.address.port).await?;
        let is_shared = Arc::strong_count(&self.gateway) > 1;
        let patience = if is_shared { left.min(self.limit / 3) } else { left };
        let (_, stream) = probe::within(patience, probe::connect(&addresses, patience)).await?;
        let device = client::tcp::attach_slave(stream, self.unit);
        Ok(Connection { device, spacing: self.spacing, patience, has_asked: false })
    }
}

/// A device that can be asked.
pub(in super::super) struct Connection {
    device: client::Context,
    spacing: Duration,
    patience: Duration,
    has_asked: bool,
}

impl Connection {
    /// One request. The outer error ends the connection, the inner one concerns this request alone.
    pub(in super::super) async fn ask(
        &mut self,
        table: Table,
        first: u16,
        count: u16,
    ) -> Result<Result<Vec<u16>, Refused>, Failure> {
        if std::mem::replace(&mut self.has_asked, true) && !self.spacing.is_zero() {
            tokio::time::sleep(self.spacing).await;
        }
        probe::within(self.patience, request::ask(&mut self.device, table, first, count)).await
    }
}
