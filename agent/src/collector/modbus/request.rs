//! One request to a Modbus device and its answer, whatever the device says instead.

use std::io;

use satellite_shared::gap::Reason;
use serde::Deserialize;
use tokio_modbus::client::{self, Client as _};
use tokio_modbus::{ExceptionCode, Request, Response};

use crate::collector::{Failure, probe};

/// Registers of one request (Modbus Application Protocol V1.1b3, 6.3).
pub(in super::super) const REGISTERS_MAX: u16 = 125;
/// Coils of one request (6.1).
const COILS_MAX: u16 = 2_000;
/// A hole of so many registers is read along: a request more costs more than that.
const HOLE_REGISTERS_MAX: u16 = 8;
const HOLE_COILS_MAX: u16 = 64;

/// The four tables of a device, in the order of the functions that read them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum Table {
    Coil,
    Discrete,
    #[default]
    Holding,
    Input,
}

impl Table {
    pub(super) fn is_bits(self) -> bool {
        matches!(self, Self::Coil | Self::Discrete)
    }

    /// The longest request, and the longest hole in it.
    pub(super) fn limits(self) -> (u16, u16) {
        if self.is_bits() { (COILS_MAX, HOLE_COILS_MAX) } else { (REGISTERS_MAX, HOLE_REGISTERS_MAX) }
    }
}

/// That a device refuses a request.
#[derive(Debug, Clone)]
pub(in super::super) struct Refused {
    pub(in super::super) failure: Failure,
    /// Whether it is about the places: it may give some of them.
    pub(super) is_of_places: bool,
}

/// The outer error ends the connection, the inner one concerns this request alone.
pub(super) async fn ask(
    device: &mut client::Context,
    table: Table,
    first: u16,
    count: u16,
) -> Result<Result<Vec<u16>, Refused>, Failure> {
    let request = match table {
        Table::Coil => Request::ReadCoils(first, count),
        Table::Discrete => Request::ReadDiscreteInputs(first, count),
        Table::Holding => Request::ReadHoldingRegisters(first, count),
        Table::Input => Request::ReadInputRegisters(first, count),
    };
    // Not by the library's own readers: they panic where a device answers with another number of registers.
    match device.call(request).await {
        Ok(Ok(Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits))) if table.is_bits() => {
            // They come eight in a byte.
            let is_whole = bits.len() == usize::from(count.next_multiple_of(8));
            checked(bits.into_iter().map(u16::from).collect(), is_whole)
        }
        Ok(Ok(Response::ReadHoldingRegisters(words) | Response::ReadInputRegisters(words))) if !table.is_bits() => {
            let is_whole = words.len() == usize::from(count);
            checked(words, is_whole)
        }
        Ok(Ok(_)) => Err(Failure::new(Reason::BadAnswer, "the answer is to another question")),
        // Said by the gateway and not by the device, so it is so for every request.
        Ok(Err(exception @ (ExceptionCode::GatewayPathUnavailable | ExceptionCode::GatewayTargetDevice))) => {
            let detail = format!("the gateway does not reach this unit_id (exception {})", u8::from(exception));
            Err(Failure::new(Reason::Unreachable, detail))
        }
        Ok(Err(exception)) => Ok(Err(refusal(exception, table, first, count))),
        Err(tokio_modbus::Error::Transport(error)) => Err(ended(&error)),
        // Without what it holds: that is the device's, and for its metrics only.
        Err(tokio_modbus::Error::Protocol(_)) => {
            Err(Failure::new(Reason::BadAnswer, "the answer is to another question or of another unit"))
        }
    }
}

fn checked(words: Vec<u16>, is_whole: bool) -> Result<Result<Vec<u16>, Refused>, Failure> {
    if is_whole {
        return Ok(Ok(words));
    }
    let detail = format!("{} places in the answer, which is not as many as were asked for", words.len());
    Err(Failure::new(Reason::BadAnswer, detail))
}

/// Why a connection that stood is none any more. Where the device just closed it, the library gives whatever error the
/// system had last.
fn ended(error: &io::Error) -> Failure {
    use io::ErrorKind as Io;
    let is_said =
        matches!(error.kind(), Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe | Io::InvalidData);
    if is_said { probe::failure_of_io(error) } else { probe::failure_of_io(&Io::UnexpectedEof.into()) }
}

/// What the device refuses with (Modbus Application Protocol V1.1b3, 7).
fn refusal(exception: ExceptionCode, table: Table, first: u16, count: u16) -> Refused {
    let last = u32::from(first) + u32::from(count) - 1;
    let place = format!("{table:?} {first} to {last}").to_lowercase();
    let what = match exception {
        ExceptionCode::IllegalFunction => "the device does not have this table",
        ExceptionCode::IllegalDataAddress => "the device does not have these addresses",
        ExceptionCode::ServerDeviceBusy | ExceptionCode::Acknowledge => "the device is busy",
        ExceptionCode::IllegalDataValue
        | ExceptionCode::ServerDeviceFailure
        | ExceptionCode::MemoryParityError
        | ExceptionCode::GatewayPathUnavailable
        | ExceptionCode::GatewayTargetDevice
        | ExceptionCode::Custom(_) => "the device refuses",
    };
    // A value that is illegal is the count: the device gives fewer at once.
    let is_of_places = matches!(exception, ExceptionCode::IllegalDataAddress | ExceptionCode::IllegalDataValue);
    let detail = format!("{place}: {what} (exception {})", u8::from(exception));
    Refused { failure: Failure::new(Reason::Refused, detail), is_of_places }
}
