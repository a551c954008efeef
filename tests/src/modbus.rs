//! A real Modbus TCP server, pymodbus, with registers that the test chose, on a port of loopback that the kernel chose.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::peers::Peer;
use crate::process::Process;
use crate::wait;

/// Serves unit 1: holding registers from where it is said on, input registers, coils and discrete inputs from 0 on; argv are where to
/// write the port, the four lists, where the first of them
/// begins, and address and port.
const SERVER: &str = r"
import asyncio, json, os, sys
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
holding, inputs, coils, discrete = (json.loads(text) for text in sys.argv[2:6])
block = lambda at, values, kind: [SimData(at, values=values, datatype=kind)]
device = SimDevice(id=1, simdata=(
    block(0, coils, DataType.BITS), block(0, discrete, DataType.BITS),
    block(int(sys.argv[6]), holding, DataType.REGISTERS), block(0, inputs, DataType.REGISTERS)))
async def main():
    server = ModbusTcpServer(device, address=(sys.argv[7], int(sys.argv[8])))
    await server.serve_forever(background=True)
    port = server.transport.sockets[0].getsockname()[1]
    with open(sys.argv[1] + '.new', 'w') as file:
        file.write(str(port))
    os.rename(sys.argv[1] + '.new', sys.argv[1])
    await asyncio.sleep(3600)
asyncio.run(main())
";
const SOON: Duration = Duration::from_secs(60);

/// The server, running.
#[derive(Debug)]
pub struct ModbusServer {
    /// Where it listens.
    pub port: u16,
    _process: Process,
}

impl ModbusServer {
    /// A device with these holding registers, from the first's address on, and these other tables.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        dir: &Path,
        (first, holding): (u16, &[u16]),
        inputs: &[u16],
        coils: &[bool],
        discrete: &[bool],
    ) -> Result<Self> {
        Self::start_at(([127, 0, 0, 1], 0).into(), dir, (first, holding), inputs, coils, discrete)
    }

    /// The same where it is told to listen.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_at(
        at: SocketAddr,
        dir: &Path,
        (first, holding): (u16, &[u16]),
        inputs: &[u16],
        coils: &[bool],
        discrete: &[bool],
    ) -> Result<Self> {
        let python = Peer::Modbus.path().context("pymodbus")?;
        let file = dir.join("modbus.port");
        let mut command = Command::new(python);
        command.arg("-c").arg(SERVER).arg(&file);
        for list in [serde_json::to_string(holding)?, serde_json::to_string(inputs)?] {
            command.arg(list);
        }
        for list in [serde_json::to_string(coils)?, serde_json::to_string(discrete)?] {
            command.arg(list);
        }
        command.arg(first.to_string()).arg(at.ip().to_string()).arg(at.port().to_string());
        let mut process = Process::start("pymodbus", &mut command, &dir.join("pymodbus.log"))?;
        let port = wait::until("the server's port", SOON, || {
            process.check_running()?;
            Ok(std::fs::read_to_string(&file).ok())
        })?;
        Ok(Self { port: port.parse()?, _process: process })
    }
}
