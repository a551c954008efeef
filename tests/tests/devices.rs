//! Devices as homes have them: each collector against the real thing, from the configuration to what is told.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use satellite_tests::house::{House, SOON};
use satellite_tests::journey::{self, journey};
use satellite_tests::modbus::ModbusServer;
use satellite_tests::nut::{self, Nut};
use satellite_tests::peers::Peer;
use satellite_tests::wait;
use serde_json::Value;

/// With what a shell, a protocol or a file could trip over.
const PASSWORD: &str = "pass \"word\" \\ #1";

fn main() -> ExitCode {
    const NUT: &[Peer] = &[Peer::Nut, Peer::Python];
    const MODBUS: &[Peer] = &[Peer::Modbus, Peer::Python];
    journey::run(vec![
        journey("a_ups_is_read_from_a_real_upsd", NUT, ups),
        journey("registers_and_coils_are_read_from_a_real_modbus_server", MODBUS, modbus),
        journey("an_inverter_is_found_in_a_map_that_a_real_modbus_server_has", MODBUS, sunspec),
    ])
}

/// What one poll of a device gives: its series as `name{label="value"}`, or why it gives nothing.
fn probed(house: &House, device: &str) -> Result<Result<BTreeMap<String, f64>, String>> {
    let said = house.satellite.command(&["probe", device, "--json"], "")?;
    let said: Value = serde_json::from_str(&said.stdout).with_context(|| said.all())?;
    let failure = [&said["failure"], &said["missing"][0]].into_iter().find(|failure| !failure.is_null());
    if let Some(failure) = failure {
        return Ok(Err(failure.to_string()));
    }
    let samples = said["samples"].as_array().context("samples")?;
    let mut found = BTreeMap::new();
    for sample in samples {
        let labels = sample["labels"].as_object().context("labels")?;
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let name = sample["name"].as_str().context("a name")?;
        found.insert(format!("{name}{{{}}}", labels.join(",")), sample["value"].as_f64().context("a value")?);
    }
    Ok(Ok(found))
}

fn ups(dir: &Path) -> Result<()> {
    let variables = [
        ("battery.charge", "42"),
        ("battery.runtime", "813"),
        ("input.voltage", "229.7"),
        ("ups.status", "OB DISCHRG LB"),
        ("ups.mfr", "Eaton"),
        ("ups.model", "5E 850i"),
    ];
    let mut nut = Nut::start(&dir.join("nut"), &variables, PASSWORD)?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.allow(&[nut.port])?;
    house.satellite.start()?;
    let address = format!("127.0.0.1:{}", nut.port);
    let device = format!("[[device]]\nname = \"ups\"\ncollector = \"ups\"\naddress = \"{address}\"\nevery = \"1s\"\n");
    let login = format!("{device}user = \"{}\"\nsecret = \"ups\"\n", nut::USER);
    house.configure(&login)?;
    let refused = probed(&house, "ups")?.err().context("a password was sent that nobody gave")?;
    ensure!(refused.contains("no secret `ups`"), "{refused}");

    let set = |host: &str, value: &str| {
        let arguments = ["secrets", "set", "ups", "--host", host, "--protocol", "nut"];
        house.satellite.command(&arguments, value)?.success()
    };
    set("127.0.0.2", PASSWORD)?;
    let refused = probed(&house, "ups")?.err().context("a secret was sent to a host that it is not for")?;
    ensure!(refused.contains("not for 127.0.0.1"), "{refused}");
    set(&address, &format!("{PASSWORD}\n"))?;
    let found = probed(&house, "ups")?.map_err(anyhow::Error::msg)?;
    let value = |series: &str| found.get(series).copied().with_context(|| format!("no {series}: {found:?}"));
    ensure!(value("network_ups_tools_battery_charge{ups=\"rack\"}")? == 42.0);
    ensure!(value("network_ups_tools_battery_runtime{ups=\"rack\"}")? == 813.0);
    ensure!(value("network_ups_tools_input_voltage{ups=\"rack\"}")? == 229.7);
    ensure!(value("network_ups_tools_ups_status{flag=\"LB\",ups=\"rack\"}")? == 1.0);
    ensure!(value("network_ups_tools_ups_status{flag=\"OL\",ups=\"rack\"}")? == 0.0);
    value("network_ups_tools_device_info{mfr=\"Eaton\",model=\"5E 850i\",type=\"ups\",ups=\"rack\"}")?;

    nut.lose_driver()?;
    wait::until_true("upsd to notice", SOON, || {
        Ok(probed(&house, "ups")?.is_err_and(|why| why.contains("lost the UPS") || why.contains("does not run")))
    })?;
    wait::until_true("a gap of it", SOON, || {
        let gaps = house.satellite.gaps()?;
        Ok(gaps["gaps"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|gap| gap["reason"] == "refused" && gap["device"] == "ups"))
    })?;
    house.configure(&device.replace(&format!(":{}", nut.port), ":1"))?;
    wait::until_true("a closed port", SOON, || {
        Ok(probed(&house, "ups")?.is_err_and(|why| why.contains("policy") || why.contains("refused")))
    })?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("refused"), "{:?}", verdict.reasons);
    Ok(())
}

fn modbus(dir: &Path) -> Result<()> {
    // 50.0 as a float whose low word comes first, -2 in two words, and one more.
    let holding = [0, 0x4248, 65_535, 65_534, 7];
    let server = ModbusServer::start(dir, (100, &holding), &[300, 301], &[true, false], &[false, true])?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.allow(&[server.port])?;
    house.satellite.start()?;
    let address = format!("127.0.0.1:{}", server.port);
    let mut device =
        format!("[[device]]\nname = \"plc\"\ncollector = \"modbus\"\naddress = \"{address}\"\nevery = \"1s\"\n");
    for (name, options) in [
        ("level", "register = 100\ntype = \"f32\"\nword_order = \"little\""),
        ("current_amperes", "register = 102\ntype = \"i32\"\nscale = 0.5\nunit = \"amperes\""),
        ("runs_total", "register = 1\ntable = \"input\"\nkind = \"counter\""),
        ("pump_on", "register = 0\ntable = \"coil\""),
        ("door_open", "register = 1\ntable = \"discrete\""),
    ] {
        device.push_str(&format!("[[device.metric]]\nname = \"{name}\"\n{options}\n"));
    }
    house.configure(&device)?;
    let found = probed(&house, "plc")?.map_err(anyhow::Error::msg)?;
    for (series, value) in [
        ("level{}", 50.0),
        ("current_amperes{}", -1.0),
        ("runs_total{}", 301.0),
        ("pump_on{}", 1.0),
        ("door_open{}", 1.0),
    ] {
        ensure!(found.get(series) == Some(&value), "{series} is not {value}: {found:?}");
    }

    house.configure(&format!("{device}[[device.metric]]\nname = \"nowhere\"\nregister = 900\n"))?;
    let refused = probed(&house, "plc")?.err().context("a register that is not there was read")?;
    ensure!(refused.contains("holding 900 to 900: the device does not have these addresses"), "{refused}");
    wait::until_true("a gap of it", SOON, || {
        let gaps = house.satellite.gaps()?;
        Ok(gaps["gaps"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|gap| gap["metric"] == "nowhere" && gap["reason"] == "refused"))
    })?;
    house.configure(&device.replace("every = \"1s\"", "every = \"1s\"\nunit_id = 9"))?;
    wait::until_true("a unit that is not there", SOON, || Ok(probed(&house, "plc")?.is_err()))?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("refused"), "{:?}", verdict.reasons);
    Ok(())
}

fn sunspec(dir: &Path) -> Result<()> {
    // The marker, model 1 with nothing in it, a model that nobody knows, an inverter that makes 2,345.6 W, the end.
    let mut map = vec![0x5375, 0x6e53, 1, 66];
    map.extend([0; 66]);
    map.extend([64_900, 3, 1, 2, 3, 103, 50]);
    let mut inverter = [0xffff; 50];
    (inverter[12], inverter[13], inverter[22], inverter[23], inverter[24]) = (23_456, 0xffff, 12, 0, 1);
    map.extend(inverter);
    map.extend([0xffff, 0]);
    let server = ModbusServer::start(dir, (40_000, &map), &[0], &[false], &[false])?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.allow(&[server.port])?;
    house.satellite.start()?;
    let address = format!("127.0.0.1:{}", server.port);
    let device =
        format!("[[device]]\nname = \"pv\"\ncollector = \"sunspec\"\naddress = \"{address}\"\nevery = \"1s\"\n");
    house.configure(&device)?;
    let found = probed(&house, "pv")?.map_err(anyhow::Error::msg)?;
    ensure!(found.get("sunspec_ac_power_watts{index=\"0\",model=\"103\"}") == Some(&2345.6), "{found:?}");
    let energy = found.get("sunspec_ac_energy_watt_hours_total{index=\"0\",model=\"103\"}");
    ensure!(energy == Some(&7_864_320.0), "{found:?}");
    house.configure(&format!("{device}unit_id = 9\n"))?;
    wait::until_true("a unit that is not there", SOON, || Ok(probed(&house, "pv")?.is_err()))?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0, "{:?}", verdict.reasons);
    Ok(())
}
