//! Devices that say of themselves that they are there: a real mDNS responder (zeroconf) and a real UPnP device
//! (async-upnp-client), each on an address of a network of the test's own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::peers::Peer;
use crate::process::Process;
use crate::wait;

/// Offers the services of `argv[2]`, a JSON list of type, name, address, port and properties; writes `argv[1]` when it does.
const MDNS: &str = r"
import json, socket, sys, time
from zeroconf import ServiceInfo, Zeroconf
services = json.loads(sys.argv[2])
responder = Zeroconf(interfaces=[sys.argv[3]])
for kind, name, address, port, properties in services:
    responder.register_service(ServiceInfo(
        kind + '.local.', name + '.' + kind + '.local.', port=port, properties=properties,
        addresses=[socket.inet_aton(address)], server=name.replace(' ', '-') + '.local.'))
open(sys.argv[1], 'w').close()
time.sleep(3600)
";

/// A root device at the address of `argv[2]`.
const UPNP: &str = r"
import asyncio, sys
from async_upnp_client.const import DeviceInfo, ServiceInfo
from async_upnp_client.server import UpnpServer, UpnpServerDevice
import xml.etree.ElementTree as ET
class Box(UpnpServerDevice):
    DEVICE_DEFINITION = DeviceInfo(
        device_type=':urn:schemas-upnp-org:device:Basic:1', friendly_name='Box', manufacturer='Nobody',
        manufacturer_url=None, model_name='Box', model_url=None, udn='uuid:00000000-0000-0000-0000-000000000001',
        upc=None, model_description='Box', model_number='1', serial_number='1', presentation_url=None,
        url='/device.xml', icons=[], xml=ET.Element('root'))
    SERVICES = []
    EMBEDDED_DEVICES = []
    ROUTES = None
async def main():
    server = UpnpServer(Box, (sys.argv[2], 0), http_port=49000)
    await server.async_start()
    open(sys.argv[1], 'w').close()
    await asyncio.sleep(3600)
asyncio.run(main())
";
const SOON: Duration = Duration::from_secs(60);

/// One of them, running.
#[derive(Debug)]
pub struct Neighbour {
    _process: Process,
}

impl Neighbour {
    /// Offers services by mDNS from this address: type, name, address, port and properties.
    ///
    /// # Errors
    /// When it does not start.
    pub fn mdns(dir: &Path, own: &str, services: &serde_json::Value) -> Result<Self> {
        Self::start(dir, "mdns", MDNS, &[&services.to_string(), own])
    }

    /// A UPnP root device.
    ///
    /// # Errors
    /// When it does not start.
    pub fn upnp(dir: &Path, own: &str) -> Result<Self> {
        Self::start(dir, "upnp", UPNP, &[own])
    }

    fn start(dir: &Path, name: &str, program: &str, arguments: &[&str]) -> Result<Self> {
        let python = Peer::Neighbours.path().context("zeroconf and async-upnp-client")?;
        let ready = dir.join(name).with_extension("ready");
        let mut command = Command::new(python);
        command.arg("-c").arg(program).arg(&ready).args(arguments);
        let mut process = Process::start(name, &mut command, &dir.join(name).with_extension("log"))?;
        wait::until_true(name, SOON, || {
            process.check_running()?;
            Ok(ready.exists())
        })?;
        Ok(Self { _process: process })
    }
}
