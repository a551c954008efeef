//! The usual scene of a journey: one relay, one enrolled satellite, some devices; and its usual end, the checker.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::checker::Verdict;
use crate::device::Device;
use crate::relay::Relay;
use crate::satellite::Satellite;
use crate::wait;

/// How long anything may take that takes a moment: machines that test are slow.
pub const SOON: Duration = Duration::from_secs(45);
/// How long everything buffered may take to be stored.
pub const BALANCED_WITHIN: Duration = Duration::from_secs(120);

/// How long the satellite may take to connect again: its longest back-off is five minutes.
pub const CONNECTED_WITHIN: Duration = Duration::from_secs(330);

/// A document without devices: nothing is due any more.
pub const EMPTY_DOCUMENT: &str = "device = []\n";

/// This machine as a device that gives much: for links and buffers that have to hold something.
pub const HOST_DOCUMENT: &str = "[[device]]\nname = \"this\"\ncollector = \"host\"\nevery = \"1s\"\n";

/// Two devices, for [`document`].
///
/// # Errors
/// When no port is to be had.
pub fn two_devices() -> Result<(Device, Device)> {
    Ok((Device::new("plug")?, Device::new("page")?))
}

/// Both, polled every second, in the two ways that take numbers.
#[must_use]
pub fn document(plug: &Device, page: &Device) -> String {
    format!("{}{}", plug.as_http("1s"), page.as_prometheus("1s"))
}

/// The scene.
#[derive(Debug)]
pub struct House {
    /// The relay, running.
    pub relay: Relay,
    /// The satellite, enrolled and running.
    pub satellite: Satellite,
    /// The satellite's id.
    pub id: String,
}

impl House {
    /// A relay, a satellite that has joined it and may poll these devices; it has no configuration yet.
    ///
    /// # Errors
    /// With what did not start.
    pub fn new(dir: &Path, devices: &[&Device]) -> Result<Self> {
        Self::with_settings(dir, devices, FAST_ARCHIVE, None)
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// With what did not start.
    pub fn with_settings(dir: &Path, devices: &[&Device], relay: &str, satellite: Option<&str>) -> Result<Self> {
        Self::around(dir, devices, Relay::new(dir, relay)?, satellite)
    }

    /// The same with a relay that was made and not started.
    ///
    /// # Errors
    /// With what did not start.
    pub fn around(dir: &Path, devices: &[&Device], mut relay: Relay, satellite: Option<&str>) -> Result<Self> {
        relay.start()?;
        let ports: Vec<u16> = devices.iter().map(|device| device.port()).collect();
        let mut own = Satellite::new(dir, "attic", &ports)?;
        if let Some(settings) = satellite {
            own.set(settings)?;
        }
        let id = own.join(&relay)?;
        Ok(Self { relay, satellite: own, id })
    }

    /// Hands over a document and waits until the satellite says that it applied it.
    ///
    /// # Errors
    /// When it is refused or not applied in time.
    pub fn configure(&self, document: &str) -> Result<()> {
        let before = self.config_version();
        self.relay.configure(&self.id, document)?.success().context("config set")?;
        wait::until_true("the configuration is applied", SOON, || Ok(self.config_version() > before))
    }

    /// The version of the configuration that the satellite says it runs; 0 for none.
    #[must_use]
    pub fn config_version(&self) -> u64 {
        let status = self.satellite.status().unwrap_or_default();
        status["config_version"].as_u64().unwrap_or_default()
    }

    /// Waits until a device was polled so often since now.
    ///
    /// # Errors
    /// When it was not.
    pub fn wait_for_polls(&self, device: &Device, more: usize) -> Result<()> {
        let wanted = device.requests() + more;
        let what = format!("{more} polls of {}", device.name());
        let within = SOON + Duration::from_secs(2) * u32::try_from(more)?;
        wait::until_true(&what, within, || Ok(device.requests() >= wanted))
    }

    /// Waits until the satellite says that its link is up, or down.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for_link(&self, up: bool) -> Result<()> {
        let what = if up { "the link is up" } else { "the link is down" };
        wait::until_true(what, CONNECTED_WITHIN, || Ok(self.is_linked()? == up))
    }

    /// Whether the satellite says that its link is up.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn is_linked(&self) -> Result<bool> {
        Ok(self.satellite.status()?["link"]["state"] == "connected")
    }

    /// Lets nothing be due any more, waits until all is stored or explained, and has the files checked.
    ///
    /// # Errors
    /// When anything is lost, doubled, altered, made up or unexplained.
    pub fn finish(&mut self, devices: &[&Device]) -> Result<Verdict> {
        self.settle()?;
        self.check(devices)
    }

    /// Lets nothing be due any more, waits until all is stored or explained, and stops the satellite.
    ///
    /// # Errors
    /// When that does not come about in time.
    pub fn settle(&mut self) -> Result<()> {
        self.configure(EMPTY_DOCUMENT)?;
        wait::until_true(
            "an empty buffer",
            BALANCED_WITHIN,
            || Ok(self.satellite.status()?["buffer"]["records"] == 0),
        )?;
        self.satellite.stop()?;
        self.relay.wait_until_balanced(&self.id, BALANCED_WITHIN)?;
        Ok(())
    }

    /// Has the files checked as they are.
    ///
    /// # Errors
    /// When anything is lost, doubled, altered, made up or unexplained.
    pub fn check(&self, devices: &[&Device]) -> Result<Verdict> {
        let account = self.relay.account(&self.id)?;
        let verdict = Verdict::of(&self.relay.records(), devices)?;
        verdict.must_be_whole()?;
        verdict.must_agree(&self.id, &account)?;
        Ok(verdict)
    }
}

/// A relay that commits often, so that tests need not wait.
pub const FAST_ARCHIVE: &str = "commit_every = \"1s\"\n";
