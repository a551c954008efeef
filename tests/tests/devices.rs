//! Devices as homes have them: each collector against the real thing, from the configuration to what is told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use satellite_tests::automount::Automount;
use satellite_tests::dnsmasq::Dnsmasq;
use satellite_tests::hanging_mount::HangingMount;
use satellite_tests::house::{House, SOON};
use satellite_tests::journey::{self, journey};
use satellite_tests::lighttpd::{self, Door, Lighttpd};
use satellite_tests::message_bus::MessageBus;
use satellite_tests::modbus::ModbusServer;
use satellite_tests::mosquitto::{self, Mosquitto};
use satellite_tests::netns::journey_inside;
use satellite_tests::nut::{self, Nut};
use satellite_tests::openssl::Openssl;
use satellite_tests::peers::Peer;
use satellite_tests::podman::{self, Podman};
use satellite_tests::smart::{self, SmartReport};
use satellite_tests::snmp::{self, Secrets, Snmpd};
use satellite_tests::wait;
use satellite_tests::wireguard::Tunnel;
use serde_json::{Value, json};

/// With what a shell, a protocol or a file could trip over.
const PASSWORD: &str = "pass \"word\" \\ #1";

const SHELLY: &str = include_str!("../../agent/src/collector/http/fixtures/shelly-gen2.json");

fn main() -> ExitCode {
    const NUT: &[Peer] = &[Peer::Nut, Peer::Python];
    const MODBUS: &[Peer] = &[Peer::Modbus, Peer::Python];
    const SNMP: &[Peer] = &[Peer::Snmpd, Peer::Python];
    const DNS: &[Peer] = &[Peer::Dnsmasq, Peer::Python];
    const MQTT: &[Peer] = &[Peer::Mosquitto, Peer::MosquittoClients, Peer::Python];
    const BUS: &[Peer] = &[Peer::MessageBus, Peer::Python];
    const PODMAN: &[Peer] = &[Peer::Podman, Peer::Python];
    const SMART: &[Peer] = &[Peer::Smartctl, Peer::SocketActivate, Peer::Python];
    const STORAGE: &[Peer] = &[Peer::HangingMount, Peer::Python];
    const AUTOMOUNT: &[Peer] = &[Peer::Automount, Peer::Python];
    const WIREGUARD: &[Peer] = &[Peer::WireGuard, Peer::WireGuardGo, Peer::Python];
    const LIGHTTPD: &[Peer] = &[Peer::Lighttpd, Peer::Python];
    const OPENSSL: &[Peer] = &[Peer::Openssl, Peer::Python];
    journey::run(vec![
        journey("a_ups_is_read_from_a_real_upsd", NUT, ups),
        journey("a_certificate_is_told_as_a_real_tls_server_shows_it", OPENSSL, certificate),
        journey("registers_and_coils_are_read_from_a_real_modbus_server", MODBUS, modbus),
        journey("an_inverter_is_found_in_a_map_that_a_real_modbus_server_has", MODBUS, sunspec),
        journey("a_switch_a_ups_and_a_printer_are_read_from_a_real_snmpd", SNMP, snmp),
        journey("a_real_name_server_is_asked_and_its_answers_are_compared", DNS, dns),
        journey("what_devices_publish_is_heard_at_a_real_broker", MQTT, mqtt),
        journey("zigbee2mqtt_tasmota_and_home_assistants_discovery_are_known_by_themselves", MQTT, mqtt_profiles),
        journey("services_are_read_over_a_real_message_bus", BUS, systemd),
        journey("containers_are_read_from_a_real_podman", PODMAN, docker),
        journey("disks_are_told_by_a_report_that_has_the_rights_to_ask_them", SMART, disks),
        journey("a_mount_that_hangs_costs_its_own_gap_and_nothing_else", STORAGE, storage),
        journey("an_automount_is_up_where_it_can_be_mounted", AUTOMOUNT, automount),
        journey_inside("the_peers_of_a_wireguard_tunnel_are_told", WIREGUARD, wireguard),
        journey("a_profile_is_read_behind_the_digest_of_a_real_web_server", LIGHTTPD, profile_behind_digest),
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
    series(&said).map(Ok)
}

/// The same, whatever of it is missing.
fn shown(house: &House, device: &str) -> Result<BTreeMap<String, f64>> {
    let said = house.satellite.command(&["probe", device, "--json"], "")?;
    series(&serde_json::from_str(&said.stdout).with_context(|| said.all())?)
}

fn series(said: &Value) -> Result<BTreeMap<String, f64>> {
    let samples = said["samples"].as_array().context("samples")?;
    let mut found = BTreeMap::new();
    for sample in samples {
        let labels = sample["labels"].as_object().context("labels")?;
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let name = sample["name"].as_str().context("a name")?;
        found.insert(format!("{name}{{{}}}", labels.join(",")), sample["value"].as_f64().context("a value")?);
    }
    Ok(found)
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
    // One beside the others, in one request with them: it is refused, and they are read.
    house.configure(&format!("{device}[[device.metric]]\nname = \"beside\"\nregister = 105\n"))?;
    let refused = probed(&house, "plc")?.err().context("a register that is not there was read")?;
    ensure!(refused.contains("holding 105 to 105: the device does not have these addresses"), "{refused}");
    house.configure(&device.replace("every = \"1s\"", "every = \"1s\"\nunit_id = 9"))?;
    wait::until_true("a unit that is not there", SOON, || Ok(probed(&house, "plc")?.is_err()))?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("refused"), "{:?}", verdict.reasons);
    Ok(())
}

fn sunspec(dir: &Path) -> Result<()> {
    // The marker, model 1 with nothing in it, a model that nobody knows, an inverter that makes 2,345.6 W, the same in the
    // newer models with a port that has 500 V and has taken in 5 GWh, the end.
    let mut map = vec![0x5375, 0x6e53, 1, 66];
    map.extend([0; 66]);
    map.extend([64_900, 3, 1, 2, 3, 103, 50]);
    let mut inverter = [0xffff; 50];
    (inverter[12], inverter[13], inverter[22], inverter[23], inverter[24]) = (23_456, 0xffff, 12, 0, 1);
    map.extend(inverter);
    map.extend([701, 153]);
    let mut grid = [0xffff; 153];
    (grid[8], grid[114]) = (23_456, 0xffff);
    map.extend(grid);
    map.extend([714, 43]);
    let mut port = [0xffff; 43];
    (port[14], port[16], port[29]) = (0xfffe, 3, 50_000);
    port[31..35].copy_from_slice(&[0, 0, 76, 19_264]);
    map.extend(port);
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
    for (series, value) in [
        ("sunspec_ac_power_watts{index=\"0\",model=\"701\"}", 2345.6),
        ("sunspec_port_voltage_volts{index=\"0\",model=\"714\",port=\"1\"}", 500.0),
        ("sunspec_port_injected_watt_hours_total{index=\"0\",model=\"714\",port=\"1\"}", 5e9),
    ] {
        ensure!(found.get(series) == Some(&value), "{series} is not {value}: {found:?}");
    }
    house.configure(&format!("{device}unit_id = 9\n"))?;
    wait::until_true("a unit that is not there", SOON, || Ok(probed(&house, "pv")?.is_err()))?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0, "{:?}", verdict.reasons);
    Ok(())
}

/// A UPS and a printer, as `snmpd` takes them; everything else of it is this machine.
const SNMP_OBJECTS: [&str; 16] = [
    "1.3.6.1.2.1.33.1.1.1.0 octet_str \"Eaton\"",
    "1.3.6.1.2.1.33.1.2.3.0 integer 42",
    "1.3.6.1.2.1.33.1.2.4.0 integer 97",
    "1.3.6.1.2.1.33.1.2.5.0 integer 274",
    "1.3.6.1.2.1.33.1.3.3.1.3.1 integer 231",
    "1.3.6.1.2.1.33.1.3.3.1.3.2 integer 229",
    "1.3.6.1.2.1.33.1.4.4.1.5.1 integer 18",
    "1.3.6.1.2.1.43.5.1.1.17.1 octet_str \"SN-1\"",
    "1.3.6.1.2.1.43.8.2.1.10.1.1 integer -3",
    "1.3.6.1.2.1.43.8.2.1.13.1.1 octet_str \"Tray \\\"1\\\" #\"",
    "1.3.6.1.2.1.43.10.2.1.4.1.1 counter 4711",
    "1.3.6.1.2.1.43.11.1.1.5.1.1 integer 3",
    "1.3.6.1.2.1.43.11.1.1.6.1.1 octet_str \"Black Toner\"",
    "1.3.6.1.2.1.43.11.1.1.8.1.1 integer 2500",
    "1.3.6.1.2.1.43.11.1.1.9.1.1 integer 1250",
    "1.3.6.1.4.1.99999.1.0 integer 215",
];

/// What is found of it.
const SNMP_FOUND: [(&str, f64); 10] = [
    ("sysLocation{sysLocation=\"The attic\"}", 1.0),
    ("upsEstimatedMinutesRemaining{}", 42.0),
    ("upsBatteryVoltage{}", 274.0),
    ("upsInputVoltage{upsInputLineIndex=\"2\"}", 229.0),
    ("prtMarkerLifeCount{hrDeviceIndex=\"1\",prtMarkerIndex=\"1\"}", 4711.0),
    ("prtInputCurrentLevel{hrDeviceIndex=\"1\",prtInputIndex=\"1\",prtInputName=\"Tray \\\"1\\\" #\"}", -3.0),
    ("prtMarkerSuppliesLevel{hrDeviceIndex=\"1\",prtMarkerSuppliesIndex=\"1\",prtMarkerSuppliesType=\"3\"}", 1250.0),
    ("room_celsius{}", 21.5),
    ("probe_success{}", 1.0),
    ("snmp_scrape_packets_retried{}", 0.0),
];

fn snmp(dir: &Path) -> Result<()> {
    // Passwords have at least eight letters, and snmpd.conf its own idea of a backslash.
    let secrets = Secrets { community: "com#munity", password: "signs $this 1", privacy: "seals (this #2" };
    let agent = Snmpd::start(&dir.join("snmpd"), secrets, &SNMP_OBJECTS)?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.allow(&[agent.port])?;
    house.satellite.start()?;
    let address = format!("127.0.0.1:{}", agent.port);
    for (name, value) in [
        ("community", secrets.community),
        ("password", secrets.password),
        ("privacy", secrets.privacy),
        ("wrong", "wrong password"),
    ] {
        let arguments = ["secrets", "set", name, "--host", &address, "--protocol", "snmp"];
        house.satellite.command(&arguments, value)?.success()?;
    }
    let device = |login: &str, more: &str| {
        format!(
            "[[device]]\nname = \"it\"\ncollector = \"snmp\"\naddress = \"{address}\"\ntimeout = \"4s\"\nevery = \"5s\"\n{login}\n{more}"
        )
    };
    let all = "modules = [\"system\", \"if_mib\", \"host_resources\", \"ups_mib\", \"printer\"]";
    let sealed = format!(
        "user = \"{}\"\nauth = {{ protocol = \"sha256\", secret = \"password\" }}\nprivacy = {{ protocol = \"aes128\", secret = \"privacy\" }}",
        snmp::sealed("sha256", "aes128")
    );
    let signed = format!("user = \"{}\"\nauth = {{ protocol = \"sha1\", secret = \"password\" }}", snmp::SIGNED);
    let own = "[[device.metric]]\nname = \"room_celsius\"\noid = \"1.3.6.1.4.1.99999.1.0\"\nscale = 0.1\nunit = \"celsius\"\n\
               [[device.metric]]\nname = \"load\"\noid = \"1.3.6.1.4.1.2021.10.1.6\"\nindex = \"laIndex\"\n";
    for login in ["secret = \"community\"", &signed, &sealed] {
        house.configure(&device(login, &format!("{all}\n{own}")))?;
        let found = probed(&house, "it")?.map_err(anyhow::Error::msg).with_context(|| login.to_owned())?;
        for (series, value) in SNMP_FOUND {
            ensure!(found.get(series) == Some(&value), "{login}: {series} is not {value}: {found:?}");
        }
        let has =
            |start: &str, part: &str| found.keys().any(|series| series.starts_with(start) && series.contains(part));
        ensure!(has("ifHCInOctets{", "ifDescr=\"lo\",ifIndex=\"1\",ifName=\"lo\""), "{login}: {found:?}");
        ensure!(
            has("hrStorageUsed{", "hrStorageDescr=\"Physical memory\"") && has("hrDeviceStatus{", "hrDeviceIndex=")
        );
        ensure!(has("load{", "laIndex=\"1\"") && has("sysUpTime{", ""), "{login}: {found:?}");
    }
    // A user's keys cost a megabyte of hashing each: the session stands from poll to poll.
    let before = agent.heard()?.len();
    house.configure(&device(&sealed, "modules = [\"system\"]").replace("4s", "2s").replace("5s", "2s"))?;
    wait::until_true("polls by one socket", SOON, || {
        let heard = agent.heard()?;
        let last = heard.last().cloned().unwrap_or_default();
        Ok(heard.iter().skip(before).filter(|from| **from == last).count() >= 5)
    })?;
    every_way_to_sign_and_seal(&house, &address)?;
    refusals(&mut house, &device, &sealed, &signed)?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("refused"), "{:?}", verdict.reasons);
    Ok(())
}

fn every_way_to_sign_and_seal(house: &House, address: &str) -> Result<()> {
    let mut devices = String::new();
    for (auth, _) in snmp::AUTH {
        for (cipher, _) in snmp::PRIVACY {
            let name = snmp::sealed(auth, cipher);
            write!(
                devices,
                "[[device]]\nname = \"{name}\"\ncollector = \"snmp\"\naddress = \"{address}\"\nevery = \"20s\"\n\
                 timeout = \"15s\"\nuser = \"{name}\"\nauth = {{ protocol = \"{auth}\", secret = \"password\" }}\n\
                 privacy = {{ protocol = \"{cipher}\", secret = \"privacy\" }}\nmodules = [\"system\"]\n"
            )?;
        }
    }
    let polls = house.satellite.command(&["probe", "--config", "-", "--json"], &devices)?;
    let polls: Value = serde_json::from_str(&polls.stdout).with_context(|| polls.all())?;
    let polls = polls.as_array().context("polls")?;
    ensure!(polls.len() == snmp::AUTH.len() * snmp::PRIVACY.len(), "{} polls", polls.len());
    for poll in polls {
        ensure!(poll["failure"].is_null() && poll["missing"] == json!([]), "{poll}");
        ensure!(series(poll)?.keys().any(|series| series.starts_with("sysUpTime{")), "{poll}");
    }
    Ok(())
}

fn refusals(house: &mut House, device: &dyn Fn(&str, &str) -> String, sealed: &str, signed: &str) -> Result<()> {
    let system = "modules = [\"system\"]";
    let wrong = |login: &str, which: &str| login.replace(&format!("secret = \"{which}\""), "secret = \"wrong\"");
    for (login, modules, said) in [
        ("", system, "the community right? A wrong one is met with silence"),
        (&*wrong(sealed, "password"), system, "refuses the user, a password or a protocol"),
        (&wrong(sealed, "privacy"), system, "\"reason\":\"timeout\""),
        (&wrong(signed, "password"), system, "refuses the user, its password or their protocol"),
        (&signed.replace("sha1", "sha512"), system, "refuses the user, its password or their protocol"),
        (&signed.replace(snmp::SIGNED, "nobody"), system, "refuses the user"),
        (&signed.replace("secret = \"password\"", "secret = \"none\""), system, "no secret `none`"),
        ("user = \"signed\"", system, "refuses"),
        (
            signed,
            "[[device.metric]]\nname = \"x\"\noid = \"1.3.6.1.4.1.99999.7.0\"",
            "nothing at 1.3.6.1.4.1.99999.7.0",
        ),
    ] {
        house.configure(&device(login, modules))?;
        let refused = probed(house, "it")?.err().with_context(|| format!("{login}: it was answered"))?;
        ensure!(refused.contains(said), "{login}: {refused}");
        ensure!(!refused.contains("signs $this") && !refused.contains("com#munity"), "a secret is told: {refused}");
    }
    wait::until_true("a gap of it", SOON, || {
        let gaps = house.satellite.gaps()?;
        Ok(gaps["gaps"].as_array().into_iter().flatten().any(|gap| gap["device"] == "it" && gap["reason"] == "refused"))
    })
}

fn dns(dir: &Path) -> Result<()> {
    let lines = [
        "host-record=nas.lan,10.0.0.7,fd00::7",
        "cname=files.lan,nas.lan",
        "mx-host=lan,mail.lan,10",
        "txt-record=lan,\"v=spf1 -all\"",
        "srv-host=_http._tcp.lan,nas.lan,80,1,2",
        "caa-record=lan,0,issue,nobody",
    ];
    let server = Dnsmasq::start(dir, &lines)?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.allow(&[server.port])?;
    house.satellite.start()?;
    let device = |port: u16, more: &str| {
        let server = format!("server = \"127.0.0.1:{port}\"\nevery = \"1s\"\ntimeout = \"1s\"");
        format!("[[device]]\nname = \"it\"\ncollector = \"dns\"\n{server}\n{more}\n")
    };
    for (asked, expect) in [
        ("query = \"nas.lan\"", "\"10.0.0.7\""),
        ("query = \"NAS.lan.\"\ntype = \"AAAA\"\ntransport = \"tcp\"", "\"fd00:0::7\""),
        ("query = \"files.lan\"\ntype = \"CNAME\"", "\"nas.lan\""),
        ("query = \"lan\"\ntype = \"MX\"", "\"10 mail.lan\""),
        ("query = \"lan\"\ntype = \"TXT\"", "\"v=spf1 -all\""),
        ("query = \"_http._tcp.lan\"\ntype = \"SRV\"", "\"1 2 80 nas.lan\""),
        ("query = \"lan\"\ntype = \"CAA\"", "'0 issue \"nobody\"'"),
        ("query = \"10.0.0.7\"\ntype = \"PTR\"", "\"nas.lan\""),
    ] {
        house.configure(&device(server.port, &format!("{asked}\nexpect = [{expect}]")))?;
        let found = probed(&house, "it")?.map_err(anyhow::Error::msg).with_context(|| asked.to_owned())?;
        for series in ["probe_success{}", "probe_dns_query_succeeded{}", "probe_dns_expected{}"] {
            ensure!(found.get(series) == Some(&1.0), "{asked}: {series} is not 1: {found:?}");
        }
        ensure!(found.get("probe_dns_answer_rrs{}").is_some_and(|rrs| *rrs >= 1.0), "{asked}: {found:?}");
    }
    for (asked, said) in [
        ("query = \"nas.lan\"\nexpect = [\"10.0.0.8\"]", "another answer than expected: `10.0.0.7`"),
        ("query = \"gone.lan\"\nexpect = [\"10.0.0.8\"]", "Non-Existent Domain (3)"),
        ("query = \"example.com\"\nexpect = [\"10.0.0.8\"]", "Query Refused (5)"),
    ] {
        house.configure(&device(server.port, asked))?;
        let refused = probed(&house, "it")?.err().with_context(|| format!("{asked}: it was as expected"))?;
        ensure!(refused.contains(said), "{asked}: {refused}");
    }
    wait::until_true("a gap of it", SOON, || {
        let gaps = house.satellite.gaps()?;
        let mut gaps = gaps["gaps"].as_array().into_iter().flatten();
        Ok(gaps.any(|gap| gap["metric"] == "expect" && gap["reason"] == "refused"))
    })?;
    house.configure(&device(1, "query = \"nas.lan\""))?;
    let refused = probed(&house, "it")?.err().context("a port was asked that no policy opens")?;
    ensure!(refused.contains("policy"), "{refused}");
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0, "{:?}", verdict.reasons);
    Ok(())
}

fn mqtt(dir: &Path) -> Result<()> {
    let mut broker = Mosquitto::start(&dir.join("mosquitto"), PASSWORD)?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.allow(&[broker.port, broker.tls_port])?;
    house.satellite.start()?;
    let login = format!("user = \"{}\"\nsecret = \"mqtt\"\n", mosquitto::USER);
    broker.publish("door", "ON", true)?;
    let refused_for = |what: &str, said: &str| {
        wait::until_true(what, SOON, || Ok(probed(&house, "home")?.is_err_and(|why| why.contains(said))))
    };
    house.configure(&mqtt_device(broker.port, ""))?;
    refused_for("a broker that wants a user", "wants a user and a password")?;
    house.configure(&mqtt_device(broker.port, &login))?;
    refused_for("a secret that nobody set", "no secret `mqtt`")?;
    let set = |value: &str| {
        let arguments = ["secrets", "set", "mqtt", "--host", "127.0.0.1", "--protocol", "mqtt"];
        house.satellite.command(&arguments, value)?.success()
    };
    set("wrong")?;
    refused_for("a wrong password", "satellite secrets set mqtt")?;
    set(PASSWORD)?;

    // What runs already tries again by itself, within its pauses.
    let outcome = || -> Result<(String, String)> {
        let status = house.satellite.status()?;
        let device = &status["devices"][0];
        Ok((device["outcome"].to_string(), device["detail"].to_string()))
    };
    let speaks = || -> Result<bool> {
        broker_says(&broker, "42.5")?;
        Ok(outcome()?.0.contains("ok"))
    };
    wait::until_true("values of both topics", SOON * 3, speaks)?;
    wait::until_true("silence", SOON, || Ok(outcome()?.1.contains("is silent since")))?;
    wait::until_true("the values again", SOON, speaks)?;

    broker.kill()?;
    let is_gap = |reason: &str, detail: &str| -> Result<bool> {
        let gaps = house.satellite.gaps()?;
        let is_it = |gap: &Value| gap["reason"] == reason && gap["detail"].to_string().contains(detail);
        Ok(gaps["gaps"].as_array().into_iter().flatten().any(is_it))
    };
    wait::until_true("a gap of the lost broker", SOON, || is_gap("refused", "nothing listens there"))?;
    broker.restart()?;
    broker.publish("door", "OFF", true)?;
    wait::until_true("values of the broker that is back", SOON * 3, || {
        broker_says(&broker, "43.5")?;
        Ok(outcome()?.0.contains("ok"))
    })?;
    ensure!(is_gap("timeout", "is silent since")?, "no gap of the silence: {}", house.satellite.gaps()?);

    mqtt_over_tls(&house, &broker)?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("refused"), "{:?}", verdict.reasons);
    let records = house.relay.read_records(&["--satellite", &house.id, "--metric", "power_watts"])?.to_string();
    ensure!(records.contains("42.5") && records.contains("43.5") && records.contains("\"tv\""), "{records}");
    Ok(())
}

fn mqtt_over_tls(house: &House, broker: &Mosquitto) -> Result<()> {
    let login = format!("user = \"{}\"\nsecret = \"mqtt\"\nretained = true\n", mosquitto::USER);
    house.configure(&mqtt_device(broker.tls_port, &format!("{login}tls = \"verify\"\n")))?;
    let refused = probed(house, "home")?.err().context("a certificate that signs for itself was trusted")?;
    let pin = refused.split("pin:").nth(1).and_then(|rest| rest.get(..64)).with_context(|| refused.clone())?;
    house.configure(&mqtt_device(broker.tls_port, &format!("{login}tls = \"pin:{pin}\"\n")))?;
    broker.publish("tele/tv/SENSOR", "{\"ENERGY\": {\"Power\": 44.5}}", true)?;
    let found = probed(house, "home")?.map_err(anyhow::Error::msg)?;
    for (series, value) in [("power_watts{plug=\"tv\"}", 44.5), ("door_open{}", 0.0), ("probe_success{}", 1.0)] {
        ensure!(found.get(series) == Some(&value), "{series} is not {value}: {found:?}");
    }
    Ok(())
}

fn mqtt_device(port: u16, more: &str) -> String {
    format!(
        "[[device]]\nname = \"home\"\ncollector = \"mqtt\"\naddress = \"127.0.0.1:{port}\"\nevery = \"1s\"\n{more}\
         [[device.metric]]\nname = \"power_watts\"\ntopic = \"tele/+/SENSOR\"\npath = \"$.ENERGY.Power\"\n\
         labels_from = [\"plug\"]\nunit = \"watts\"\nsilent_after = \"4s\"\n\
         [[device.metric]]\nname = \"door_open\"\ntopic = \"door\"\nretained = true\n"
    )
}

fn broker_says(broker: &Mosquitto, power: &str) -> Result<()> {
    broker.publish("tele/tv/SENSOR", &format!("{{\"ENERGY\": {{\"Power\": {power}}}}}"), false)
}

/// Messages shaped as the three projects document theirs.
fn profile_messages() -> Vec<(&'static str, String)> {
    let devices = serde_json::json!([
        {"ieee_address": "0x00124b00120144ae", "type": "Coordinator", "friendly_name": "Coordinator", "definition": null},
        {"ieee_address": "0x00158d00018255df", "type": "EndDevice", "friendly_name": "attic/climate", "supported": true,
         "power_source": "Battery", "model_id": "lumi.weather", "manufacturer": "LUMI", "definition": {"model": "WSDCGQ11LM",
         "vendor": "Aqara", "exposes": [
            {"type": "numeric", "property": "temperature", "unit": "°C", "access": 1},
            {"type": "numeric", "property": "battery", "unit": "%", "access": 1}]}},
    ]);
    let entity = serde_json::json!({"name": "Energy", "stat_t": "boiler/state", "unit_of_meas": "kWh", "dev_cla": "energy",
        "stat_cla": "total_increasing", "val_tpl": "{{ value_json.energy }}", "uniq_id": "boiler_energy",
        "avty_t": "boiler/status", "dev": {"ids": ["boiler"], "name": "Boiler"}});
    let (devices, entity) = (devices.to_string(), entity.to_string());
    let messages = [
        ("zigbee2mqtt/bridge/state", "{\"state\": \"online\"}"),
        ("zigbee2mqtt/bridge/devices", devices.as_str()),
        ("zigbee2mqtt/attic/climate", "{\"temperature\": 21.5, \"battery\": 97, \"linkquality\": 120}"),
        ("zigbee2mqtt/attic/climate/availability", "{\"state\": \"online\"}"),
        ("tele/tv/LWT", "Online"),
        (
            "tele/tv/SENSOR",
            "{\"Time\": \"2026-11-22T15:00:00\", \"ENERGY\": {\"Total\": 12.5, \"Power\": 42, \"Voltage\": 230}}",
        ),
        ("tele/tv/STATE", "{\"POWER\": \"ON\", \"UptimeSec\": 3600, \"Wifi\": {\"RSSI\": 80, \"Signal\": -60}}"),
        ("homeassistant/sensor/boiler_energy/config", entity.as_str()),
        ("boiler/state", "{\"energy\": 7.25}"),
        ("boiler/status", "online"),
    ];
    messages.map(|(topic, message)| (topic, message.to_owned())).to_vec()
}

/// What each profile makes of them.
const PROFILE_SERIES: [(&str, &[(&str, f64)]); 3] = [
    (
        "zigbee2mqtt",
        &[
            ("zigbee2mqtt_device_temperature{device=\"attic/climate\"}", 21.5),
            ("zigbee2mqtt_device_battery{device=\"attic/climate\"}", 97.0),
            ("zigbee2mqtt_device_link_quality{device=\"attic/climate\"}", 120.0),
            ("zigbee2mqtt_device_up{device=\"attic/climate\"}", 1.0),
            ("zigbee2mqtt_bridge_state{}", 1.0),
        ],
    ),
    (
        "tasmota",
        &[
            ("tasmota_up{device=\"tv\"}", 1.0),
            ("tasmota_power_watts{device=\"tv\"}", 42.0),
            ("tasmota_kwh_total{device=\"tv\"}", 12.5),
            ("tasmota_on{device=\"tv\"}", 1.0),
            ("tasmota_wifi_signal_dbm{device=\"tv\"}", -60.0),
        ],
    ),
    (
        "homeassistant",
        &[(
            "homeassistant_sensor_energy_kwh{device=\"Boiler\",domain=\"sensor\",entity=\"sensor.boiler_energy\",friendly_name=\"Boiler Energy\"}",
            7.25,
        )],
    ),
];

fn mqtt_profiles(dir: &Path) -> Result<()> {
    let broker = Mosquitto::start(&dir.join("mosquitto"), PASSWORD)?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.allow(&[broker.port])?;
    house.satellite.start()?;
    let arguments = ["secrets", "set", "mqtt", "--host", "127.0.0.1", "--protocol", "mqtt"];
    house.satellite.command(&arguments, PASSWORD)?.success()?;
    for (topic, message) in profile_messages() {
        broker.publish(topic, &message, true)?;
    }
    let device = |profile: &str| {
        format!(
            "[[device]]\nname = \"{profile}\"\ncollector = \"mqtt\"\naddress = \"127.0.0.1:{}\"\nevery = \"1s\"\n\
             user = \"{}\"\nsecret = \"mqtt\"\nprofile = \"{profile}\"\nretained = true\n",
            broker.port,
            mosquitto::USER
        )
    };
    house.configure(&PROFILE_SERIES.map(|(profile, _)| device(profile)).concat())?;
    for (profile, expected) in PROFILE_SERIES {
        let found = probed(&house, profile)?.map_err(anyhow::Error::msg)?;
        for (series, value) in expected {
            ensure!(found.get(*series) == Some(value), "{series} is not {value}: {found:?}");
        }
        ensure!(found.get("probe_success{}") == Some(&1.0), "{found:?}");
    }
    let info = probed(&house, "zigbee2mqtt")?.map_err(anyhow::Error::msg)?;
    ensure!(
        info.keys().any(|series| series.contains("device_info") && series.contains("model=\"WSDCGQ11LM\"")),
        "{info:?}"
    );

    // Whoever is gone has no values, and the rest of its profile goes on.
    broker.publish("zigbee2mqtt/attic/climate/availability", "{\"state\": \"offline\"}", true)?;
    broker.publish("tele/tv/LWT", "Offline", true)?;
    broker.publish("boiler/status", "offline", true)?;
    let is_told = |device: &str, series: &str, value: f64| -> Result<bool> {
        Ok(probed(&house, device)?.is_ok_and(|found| {
            let is_it = |(name, other): (&String, &f64)| name.starts_with(series) && *other == value;
            found.iter().any(is_it)
        }))
    };
    // Though the broker still has what each said last, and says that and the absence in any order.
    for (device, presence, series, value) in [
        ("zigbee2mqtt", "zigbee2mqtt_device_up", "zigbee2mqtt_device_temperature", 21.5),
        ("tasmota", "tasmota_up", "tasmota_power_watts", 42.0),
        ("homeassistant", "homeassistant_entity_available", "homeassistant_sensor_energy_kwh", 7.25),
    ] {
        wait::until_true(presence, SOON, || is_told(device, presence, 0.0))?;
        wait::until_true(series, SOON, || Ok(!is_told(device, series, value)?))?;
    }
    broker.publish("boiler/status", "online", true)?;
    wait::until_true("one that is back", SOON, || is_told("homeassistant", "homeassistant_sensor_energy", 7.25))?;
    let has_samples = |device: &Value| device["polls_ok"].as_u64() > Some(0) && device["samples"].as_u64() > Some(5);
    wait::until_true("polls of all three by the schedule", SOON, || {
        let status = house.satellite.status()?;
        Ok(status["devices"].as_array().is_some_and(|devices| devices.len() == 3 && devices.iter().all(has_samples)))
    })?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0, "{:?}", verdict.reasons);
    Ok(())
}

fn systemd(dir: &Path) -> Result<()> {
    let mut bus = MessageBus::start(dir)?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.set_environment("DBUS_SYSTEM_BUS_ADDRESS", &bus.address());
    house.satellite.start()?;
    let device = "[[device]]\nname = \"units\"\ncollector = \"systemd\"\nevery = \"5s\"\n";
    house.configure(device)?;
    let refused = probed(&house, "units")?.err().context("nobody answered")?;
    ensure!(refused.contains("nobody on the bus is systemd"), "{refused}");

    let service = |n: usize, state: &str| {
        let properties = json!({
            "Type": ["s", "simple"], "NRestarts": ["u", 4], "Result": ["s", "signal"], "TasksMax": ["t", 4915],
            "TasksCurrent": ["t", 2], "MemoryCurrent": ["t", 8192], "CPUUsageNSec": ["t", 1_500_000_000_u64],
            "ActiveEnterTimestamp": ["t", 1_700_000_000_000_000_u64],
        });
        json!({ "name": format!("s{n}.service"), "state": state, "properties": properties })
    };
    let timer = json!({ "name": "backup.timer", "state": "active", "properties": {
        "LastTriggerUSec": ["t", 1_700_000_060_000_000_u64], "Result": ["s", "success"],
        "ActiveEnterTimestamp": ["t", 0],
    } });
    let broken = json!({ "name": "broken.service", "state": "active", "properties": { "NRestarts": ["s", "many"] } });
    let mut units: Vec<Value> = (0..100).map(|n| service(n, if n == 0 { "active" } else { "inactive" })).collect();
    units.extend([timer, broken]);
    let systemd = bus.systemd(&Value::Array(units.clone()))?;
    wait::until_true("systemd on the bus", SOON, || Ok(probed(&house, "units")?.is_ok()))?;
    let found = probed(&house, "units")?.map_err(anyhow::Error::msg)?;
    for (series, value) in [
        ("node_systemd_unit_state{name=\"s0.service\",state=\"active\",type=\"simple\"}", 1.0),
        ("node_systemd_unit_state{name=\"s99.service\",state=\"inactive\",type=\"simple\"}", 1.0),
        ("node_systemd_unit_state{name=\"broken.service\",state=\"active\",type=\"\"}", 1.0),
        ("node_systemd_units{state=\"inactive\"}", 99.0),
        ("node_systemd_system_running{}", 0.0),
        ("node_systemd_service_restart_total{name=\"s99.service\"}", 4.0),
        ("node_systemd_timer_last_trigger_seconds{name=\"backup.timer\"}", 1_700_000_060.0),
        ("systemd_unit_cpu_seconds_total{name=\"s0.service\",type=\"service\"}", 1.5),
        ("systemd_unit_result{name=\"s0.service\",result=\"signal\",type=\"service\"}", 1.0),
    ] {
        ensure!(found.get(series) == Some(&value), "{series} is not {value}: {found:?}");
    }

    let polls = |outcome: &str| -> Result<u64> {
        house.satellite.status()?["devices"][0][outcome].as_u64().with_context(|| outcome.to_owned())
    };
    wait::until_true("a poll by the schedule", SOON, || Ok(polls("polls_ok")? > 0))?;
    let failed = polls("polls_failed")?;
    bus.restart()?;
    drop(systemd);
    wait::until_true("polls that fail", SOON, || Ok(polls("polls_failed")? > failed))?;
    ensure!(house.satellite.gaps()?.to_string().contains("nobody on the bus is systemd"), "no gap of it");
    let _systemd = bus.systemd(&Value::Array(units))?;
    wait::until_true("systemd again", SOON, || Ok(probed(&house, "units")?.is_ok()))?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0, "{:?}", verdict.reasons);
    Ok(())
}

fn docker(dir: &Path) -> Result<()> {
    let podman = Podman::start(&dir.join("podman"))?;
    let mut house = House::new(dir, &[])?;
    let socket = podman.socket.display();
    let device =
        format!("[[device]]\nname = \"engine\"\ncollector = \"docker\"\nsocket = \"{socket}\"\nevery = \"1s\"\n");
    house.configure(&device)?;
    let refused = probed(&house, "engine")?.err().context("a socket was read that the policy does not list")?;
    ensure!(refused.contains("to `sockets`"), "{refused}");
    house.satellite.stop()?;
    house.satellite.set_policy(&format!("sockets = [\"{socket}\"]\n"))?;
    house.satellite.start()?;

    let made = podman.container("create", "made", &[])?;
    let web = podman.container("run", "web", &["--memory", "64m", "--env", "PASSWORD=of-nobodys-business"]);
    let runs = web.as_ref().is_ok();
    journey::note(&format!("{}: containers {} here", podman.version()?, if runs { "run" } else { "can't run" }));
    // Slow where the machine is: an engine asks its runtime for each.
    let slow = device.replace("\"1s\"", "\"10s\"\ntimeout = \"9s\"");
    house.configure(&slow)?;
    let said = house.satellite.command(&["probe", "engine", "--json"], "")?.all();
    ensure!(!said.contains("of-nobodys-business"), "{said}");
    let found = probed(&house, "engine")?.map_err(anyhow::Error::msg)?;
    let labels = |id: &str, name: &str| format!("id=\"{id}\",image=\"{}\",name=\"{name}\"", podman::IMAGE);
    let value = |name: &str, labels: &str| {
        let series = format!("{name}{{{labels}}}");
        found.get(&series).copied().with_context(|| format!("no {series}: {found:?}"))
    };
    let of_made = labels(&made, "made");
    ensure!(value("container_state_status", &format!("{of_made},status=\"created\""))? == 1.0);
    ensure!(value("container_state_health_status", &format!("{of_made},status=\"none\""))? == 1.0);
    ensure!(value("container_restartcount", &of_made)? == 0.0);
    ensure!(value("container_memory_usage_bytes", &of_made).is_err(), "it does not run");
    if let Ok(web) = web {
        let of_web = labels(&web, "web");
        ensure!(value("container_state_status", &format!("{of_web},status=\"running\""))? == 1.0);
        ensure!(value("container_spec_memory_limit_bytes", &of_web)? == f64::from(64 << 20));
        ensure!(value("container_memory_usage_bytes", &of_web)? > 0.0);
        ensure!(value("container_cpu_usage_seconds_total", &format!("cpu=\"total\",{of_web}"))? > 0.0);
        ensure!(value("container_threads", &of_web)? >= 1.0);
        let (seen, started) = (value("container_last_seen", &of_web)?, value("container_start_time_seconds", &of_web)?);
        ensure!(seen >= started && started > 1.7e9, "seen {seen}, started {started}");
        podman.remove("web")?;
        let left = probed(&house, "engine")?.map_err(anyhow::Error::msg)?;
        ensure!(!left.keys().any(|series| series.contains(&web)), "{left:?}");
    }
    let excluded = format!("{slow}exclude = [\"ma*\"]\n");
    house.configure(&excluded)?;
    let none = probed(&house, "engine")?.map_err(anyhow::Error::msg)?;
    ensure!(!none.keys().any(|series| series.starts_with("container_")), "{none:?}");
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("policy"), "{:?}", verdict.reasons);
    Ok(())
}

fn disks(dir: &Path) -> Result<()> {
    let mut house = House::new(dir, &[])?;
    let real = house.satellite.command(&["smart-report"], "")?.success()?;
    let first: Value = serde_json::from_str(real.lines().next().unwrap_or_default()).with_context(|| real.clone())?;
    let count = first["disks"].as_array().with_context(|| real.clone())?.len();
    ensure!(real.lines().count() == 1 + count, "one line for each of this machine's disks: {real}");

    let print = |disk: &str, name: &str| format!("*{disk}) exec cat {};;", smart::document(name).display());
    let listed = ["/dev/sda", "/dev/nvme0", "/dev/sdb", "/dev/satellite-nowhere"];
    let listed = listed.map(|disk| format!("{{\"name\": \"{disk}\", \"type\": \"scsi\"}}")).join(", ");
    let cases = [
        format!("*--scan*) echo '{{\"devices\": [{listed}]}}';;"),
        print("/dev/sda", "qemu_ata.json"),
        print("/dev/nvme0", "qemu_nvme.json"),
        print("/dev/sdb", "asleep.json"),
    ];
    let report = SmartReport::start(&dir.join("report"), &cases.join("\n"))?;
    let socket = report.socket.display();
    let device =
        format!("[[device]]\nname = \"disks\"\ncollector = \"smart\"\nevery = \"1m\"\nsocket = \"{socket}\"\n");
    house.configure(&device)?;
    let refused = probed(&house, "disks")?.err().context("a socket was opened that the policy does not list")?;
    ensure!(refused.contains("to `sockets`"), "{refused}");
    house.satellite.stop()?;
    house.satellite.set_policy(&format!("sockets = [\"{socket}\"]\n"))?;
    house.satellite.start()?;

    let found = probed(&house, "disks")?.map_err(anyhow::Error::msg)?;
    let value = |series: &str| found.get(series).copied().with_context(|| format!("no {series}: {found:?}"));
    ensure!(value("smartctl_device_temperature{device=\"sda\",temperature_type=\"current\"}")? == 31.0);
    ensure!(value("smartctl_device_smart_status{device=\"nvme0\"}")? == 1.0);
    ensure!(value("smartctl_device_state{device=\"sdb\"}")? == 2.0, "it sleeps");
    ensure!(value("smartctl_devices{}")? == 4.0);
    let read = ["sda", "nvme0", "sdb"].map(|disk| value(&format!("smartctl_device_read{{device=\"{disk}\"}}")).ok());
    ensure!(read == [Some(1.0), Some(1.0), Some(0.0)], "{read:?}");
    let nowhere = "smartctl_device_smartctl_exit_status{device=\"satellite-nowhere\"}";
    ensure!(value(nowhere)? != 0.0, "the real smartctl finds no such disk");

    for (disk, why) in [("sdb", "asleep"), ("satellite-nowhere", "smartctl says")] {
        house.configure(&format!("{device}disks = [\"sda\", \"{disk}\"]\n"))?;
        let missing = probed(&house, "disks")?.err().context("a disk that says nothing is a gap")?;
        ensure!(missing.contains(why), "{missing}");
    }
    wait::until_true("a gap of one disk", SOON, || {
        let gaps = house.satellite.gaps()?;
        let is_it = |gap: &Value| gap["metric"] == "sdb" && gap["reason"] == "unsupported";
        Ok(gaps["gaps"].as_array().into_iter().flatten().any(is_it))
    })?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("unsupported"), "{:?}", verdict.reasons);
    Ok(())
}

fn storage(dir: &Path) -> Result<()> {
    let mut mount = HangingMount::new(dir)?;
    let backup = dir.join("backup");
    std::fs::create_dir(&backup)?;
    std::fs::write(backup.join("photos.tar.zst"), "12345")?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.set_policy(&format!("directories = [\"{}\"]\n", dir.display()))?;
    house.satellite.start()?;
    let (point, folder) = (mount.point.display(), backup.display());
    let device = format!(
        "[[device]]\nname = \"nas\"\ncollector = \"storage\"\nevery = \"1s\"\ntimeout = \"500ms\"\nmounts = [\"{point}\"]\n\
         [[device.metric]]\nname = \"there\"\nfile = \"{point}/backup.tar\"\n\
         [[device.metric]]\nname = \"photos\"\nnewest_in = \"{folder}\"\npattern = \"*.tar.zst\"\n"
    );
    house.configure(&device)?;
    // Some ten polls, each of which would hang on another thread if any could.
    let gaps_of = |metric: &str, reason: &str| {
        let gaps = house.satellite.gaps()?;
        let is_it = |gap: &&Value| gap["metric"] == metric && gap["reason"] == reason;
        let found = gaps["gaps"].as_array().into_iter().flatten().filter(is_it);
        Ok::<u64, anyhow::Error>(found.filter_map(|gap| gap["count"].as_u64()).sum())
    };
    let mounted = mount.point.display().to_string();
    wait::until_true("gaps of the mount", SOON, || {
        Ok(gaps_of(&mounted, "timeout")? > 0 && gaps_of("there", "timeout")? > 0)
    })?;
    let said = house.satellite.command(&["probe", "nas", "--json"], "")?.stdout;
    let said: Value = serde_json::from_str(&said)?;
    let value = |name: &str| {
        let samples = said["samples"].as_array().into_iter().flatten();
        samples.clone().find(|sample| sample["name"] == name).and_then(|sample| sample["value"].as_f64())
    };
    ensure!(value("photos_size_bytes") == Some(5.0) && value("photos_files") == Some(1.0), "{said}");
    ensure!(value("storage_mount_up") == Some(0.0), "{said}");
    let process = house.satellite.process_id().context("it runs")?;
    let waiting = || -> Result<usize> {
        let mut waiting = 0;
        for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let wchan = std::fs::read_to_string(task?.path().join("wchan")).unwrap_or_default();
            waiting += usize::from(wchan.contains("fuse") || wchan.contains("request_wait"));
        }
        Ok(waiting)
    };
    let waiting = waiting()?;
    ensure!(waiting == 1, "one thread of the schedule, none of the probe, and not {waiting}");

    mount.abort()?;
    wait::until_true("what the kernel says instead", SOON, || Ok(gaps_of(&mounted, "unreachable")? > 0))?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("timeout"), "{:?}", verdict.reasons);
    Ok(())
}

fn automount(dir: &Path) -> Result<()> {
    let mount = Automount::new(dir)?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.set_policy(&format!("directories = [\"{}\"]\n", dir.display()))?;
    house.satellite.start()?;
    let point = mount.point.display();
    let device =
        format!("[[device]]\nname = \"nas\"\ncollector = \"storage\"\nevery = \"1s\"\nmounts = [\"{point}\"]\n");
    house.configure(&device)?;
    let said = house.satellite.command(&["probe", "nas", "--json"], "")?.stdout;
    let said: Value = serde_json::from_str(&said)?;
    let up = said["samples"].as_array().into_iter().flatten().find(|sample| sample["name"] == "storage_mount_up");
    ensure!(up.is_some_and(|sample| sample["value"] == 0.0), "{said}");
    ensure!(said["missing"].to_string().contains("unreachable") && !mount.is_mounted()?, "{said}");
    mount.bring_server_back()?;
    let found = probed(&house, "nas")?.map_err(anyhow::Error::msg)?;
    ensure!(found.get(&format!("storage_mount_up{{mountpoint=\"{point}\"}}")) == Some(&1.0), "{found:?}");
    ensure!(mount.is_mounted()?, "to look at it mounts it");
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("unreachable"), "{:?}", verdict.reasons);
    Ok(())
}

fn wireguard(dir: &Path) -> Result<()> {
    let tunnel = Tunnel::start(dir)?;
    let mut house = House::new(dir, &[])?;
    let [(one, _), (_, other_key)] = &tunnel.ends;
    let device =
        format!("[[device]]\nname = \"vpn\"\ncollector = \"wireguard\"\nevery = \"1s\"\ninterfaces = [\"{one}\"]\n");
    house.configure(&device)?;
    let found = probed(&house, "vpn")?.map_err(anyhow::Error::msg)?;
    let labels = format!("{{allowed_ips=\"10.99.0.2/32,fd99::2/128\",interface=\"{one}\",public_key=\"{other_key}\"}}");
    let value =
        |name: &str| found.get(&format!("{name}{labels}")).copied().with_context(|| format!("no {name}: {found:?}"));
    ensure!(value("wireguard_latest_handshake_seconds")? > 1.7e9);
    ensure!(value("wireguard_sent_bytes_total")? > 0.0 && value("wireguard_received_bytes_total")? > 0.0);
    ensure!(found.keys().filter(|series| series.starts_with("wireguard_")).count() == 3, "{found:?}");
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0, "{verdict:?}");
    Ok(())
}

fn profile_behind_digest(dir: &Path) -> Result<()> {
    let mut server = Lighttpd::start(&dir.join("lighttpd"), Door::Digest("SHA-256"), PASSWORD)?;
    let shelly: Value = serde_json::from_str(SHELLY)?;
    server.put("rpc/Shelly.GetStatus", &shelly["GET /rpc/Shelly.GetStatus"].to_string())?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.set_policy(&format!("loopback_ports = [{}]\nmethods = [\"GET\", \"POST\"]\n", server.port))?;
    house.satellite.start()?;
    let address = format!("127.0.0.1:{}", server.port);
    let device = |profile: &str, more: &str| {
        format!(
            "[[device]]\nname = \"plug\"\ncollector = \"http\"\nprofile = \"{profile}\"\nurl = \"http://{address}\"\n\
             auth = {{ user = \"{}\", secret = \"plug\"{more} }}\nevery = \"1s\"\n",
            lighttpd::USER
        )
    };
    let digest = device("shelly-gen2", ", scheme = \"digest\"");
    house.configure(&digest)?;
    let set = |host: &str, value: &str| {
        let arguments = ["secrets", "set", "plug", "--host", host, "--protocol", "http"];
        house.satellite.command(&arguments, value)?.success()
    };
    let refused = |said: &str| -> Result<()> {
        let refused = probed(&house, "plug")?.err().context("a device was read that should not be")?;
        ensure!(refused.contains(said), "{refused}");
        Ok(())
    };
    refused("no secret `plug`")?;
    set("127.0.0.2", PASSWORD)?;
    refused("not for 127.0.0.1")?;
    set(&address, "another")?;
    refused("HTTP 401: the device knows no such user and password")?;
    set(&address, PASSWORD)?;
    let expect = |series: &str, value: f64| -> Result<()> {
        let found = probed(&house, "plug")?.map_err(anyhow::Error::msg)?;
        ensure!(found.get(series) == Some(&value), "{series} is not {value}: {found:?}");
        Ok(())
    };
    for algorithm in ["SHA-256", "MD5"] {
        server.change(Door::Digest(algorithm), PASSWORD)?;
        expect("shelly_power_watts{component=\"switch:0\"}", 61.5)?;
        expect("shelly_energy_joules_total{component=\"emdata:0\",phase=\"total\"}", 216_000.0)?;
    }
    let switch = device("", "").replace("profile = \"\"\n", "");
    only_what_the_profile_asks(&house, &switch.replace(&address, &format!("{address}/rpc/Switch.Toggle?id=0")))?;
    house.configure(&digest)?;

    server.put("rpc/Shelly.GetStatus", "{\"a\": 1}")?;
    refused("profile `shelly-gen2`, /rpc/Shelly.GetStatus: there is no $.sys.mac in the answer: is it a Shelly")?;

    // Digest to a POST with a body: what a Fritz!Box is asked.
    server.put_call(
        "upnp/control/deviceinfo",
        "<s:Envelope><s:Body><u:GetInfoResponse><NewModelName>FRITZ!Box</NewModelName><NewUpTime>77</NewUpTime>\
         </u:GetInfoResponse></s:Body></s:Envelope>",
    )?;
    house.configure(&device("fritzbox-tr064", ", scheme = \"digest\""))?;
    expect("fritz_uptime_seconds_total{}", 77.0)?;
    // What the box keeps from its user is a gap; what it says it has not is left out.
    server.put_fault("upnp/control/wlanconfig1", 606, "Action not authorized")?;
    refused("/upnp/control/wlanconfig1: UPnP error 606")?;
    server.put_fault("upnp/control/wlanconfig1", 401, "Invalid Action")?;
    expect("fritz_uptime_seconds_total{}", 77.0)?;

    // A password that was to be hidden is not sent to who asks for it in clear; without digest, the device's word helps.
    server.change(Door::Basic, PASSWORD)?;
    let log = server.log()?;
    ensure!(["algorithm=SHA-256", "algorithm=MD5"].iter().all(|word| log.contains(word)), "{log}");
    house.configure(&digest)?;
    refused("asks for no digest")?;
    server.change(Door::Digest("SHA-256"), PASSWORD)?;
    ensure!(!server.log()?.contains("Basic "), "a password was sent in clear");
    house.configure(&device("shelly-gen2", ""))?;
    refused("add scheme = \\\"digest\\\" to `auth`")?;
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0 && verdict.reasons.contains_key("refused"), "{:?}", verdict.reasons);
    Ok(())
}

/// A relay can't do with a password what its profile does not, unless the house lists it.
fn only_what_the_profile_asks(house: &House, switch: &str) -> Result<()> {
    house.configure(switch)?;
    let allow = ["secrets", "set", "plug", "--keep", "--path", "/rpc/Shelly.GetStatus"];
    for _ in 0..2 {
        let said = probed(house, "plug")?.err().context("a switch was switched")?;
        ensure!(said.contains("secret `plug` is for profiles, not for /rpc/Switch.Toggle?id=0"), "{said}");
        house.satellite.command(&allow, "")?.success()?;
    }
    Ok(())
}

fn certificate(dir: &Path) -> Result<()> {
    let now_s = wait::wall_ms() as f64 / 1e3;
    let new = Openssl::start(dir, "/CN=nas.lan", 30, "-tls1_3")?;
    let old = Openssl::start(dir, "/CN=printer.lan", 3, "-tls1_2")?;
    let mut house = House::new(dir, &[])?;
    house.satellite.stop()?;
    house.satellite.allow(&[new.port, old.port])?;
    house.satellite.start()?;
    let device = |name: &str, port: u16, more: &str| {
        format!(
            "[[device]]\nname = \"{name}\"\ncollector = \"tls\"\naddress = \"127.0.0.1:{port}\"\nevery = \"1s\"\n{more}"
        )
    };
    let pin = format!("tls = \"pin:{}\"\n", new.fingerprint);
    house.configure(&[device("new", new.port, &pin), device("old", old.port, "")].concat())?;
    for (name, version, days, subject, fingerprint, trusted) in [
        ("new", "TLS 1.3", 30.0, "CN=nas.lan", &new.fingerprint, 1.0),
        // It signs for itself: that is told, and what it shows is told all the same.
        ("old", "TLS 1.2", 3.0, "CN=printer.lan", &old.fingerprint, 0.0),
    ] {
        let found = shown(&house, name)?;
        let expires = found.get("probe_ssl_earliest_cert_expiry{}").with_context(|| format!("{found:?}"))?;
        ensure!((expires - now_s - days * 86_400.0).abs() < 600.0, "{name} expires at {expires}");
        let chain = found.keys().find(|series| series.starts_with("probe_ssl_last_chain_info")).context("a chain")?;
        ensure!(chain.contains(subject) && chain.contains(fingerprint.as_str()), "{chain}");
        ensure!(found.get("probe_success{}") == Some(&trusted), "{found:?}");
        let spoken = found.contains_key(&format!("probe_tls_version_info{{version=\"{version}\"}}"));
        ensure!(spoken == (trusted > 0.5), "{found:?}");
        ensure!(found.contains_key("probe_tls_trusted{}") == spoken, "{found:?}");
    }
    let refused = probed(&house, "old")?.err().context("nobody vouches for it")?;
    ensure!(refused.contains("is not trusted") && refused.contains(&old.fingerprint), "{refused}");
    let verdict = house.finish(&[])?;
    ensure!(verdict.stored > 0, "{:?}", verdict.reasons);
    Ok(())
}
