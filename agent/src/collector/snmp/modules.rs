//! The modules that a configuration can name: one list each of what their MIB has.
//!
//! IF-MIB (RFC 2863), HOST-RESOURCES-MIB (RFC 2790), UPS-MIB (RFC 1628), Printer-MIB (RFC 3805) and the system group of
//! SNMPv2-MIB (RFC 3418). Values are as the device gives them, in the unit of the MIB, which is told. Deliberately absent:
//! what is deprecated, settings, and histories.

use super::mib::Form::{Address, Bits, Counter, Gauge, Info, StateSet, Text};
use super::mib::{Group, Lookup, Module, Names, Object};

/// In the order that people read them.
pub(super) const ALL: [Module; 5] = [SYSTEM, IF_MIB, HOST_RESOURCES, UPS_MIB, PRINTER];

/// `mib-2`.
const MIB2: &[u32] = &[1, 3, 6, 1, 2, 1];

const SYSTEM: Module = Module {
    name: "system",
    at: &[1, 3, 6, 1, 2, 1, 1],
    groups: &[Group {
        at: &[1, 3, 6, 1, 2, 1, 1],
        index: &[],
        lookups: &[],
        objects: &[
            Object(&[1], "sysDescr", Text, ""),
            Object(&[2], "sysObjectID", Text, ""),
            Object(&[3], "sysUpTime", Gauge, "centiseconds"),
            Object(&[4], "sysContact", Text, ""),
            Object(&[5], "sysName", Text, ""),
            Object(&[6], "sysLocation", Text, ""),
            Object(&[7], "sysServices", Gauge, ""),
        ],
    }],
};

const IF_MIB: Module = Module {
    name: "if_mib",
    at: &[1, 3, 6, 1, 2, 1, 2],
    groups: &[
        Group { at: MIB2, index: &[], lookups: &[], objects: &[Object(&[2, 1], "ifNumber", Gauge, "")] },
        Group {
            at: MIB2,
            index: &["ifIndex"],
            lookups: &[
                Lookup("ifAlias", &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 18]),
                Lookup("ifDescr", &[1, 3, 6, 1, 2, 1, 2, 2, 1, 2]),
                Lookup("ifName", &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 1]),
            ],
            objects: &[
                Object(&[2, 2, 1, 3], "ifType", Info(IF_TYPE), ""),
                Object(&[2, 2, 1, 4], "ifMtu", Gauge, "bytes"),
                Object(&[2, 2, 1, 5], "ifSpeed", Gauge, "bits_per_second"),
                Object(&[2, 2, 1, 6], "ifPhysAddress", Address, ""),
                Object(&[2, 2, 1, 7], "ifAdminStatus", Gauge, ""),
                Object(&[2, 2, 1, 8], "ifOperStatus", Gauge, ""),
                Object(&[2, 2, 1, 9], "ifLastChange", Gauge, "centiseconds"),
                Object(&[2, 2, 1, 10], "ifInOctets", Counter, "bytes"),
                Object(&[2, 2, 1, 11], "ifInUcastPkts", Counter, "packets"),
                Object(&[2, 2, 1, 13], "ifInDiscards", Counter, "packets"),
                Object(&[2, 2, 1, 14], "ifInErrors", Counter, "packets"),
                Object(&[2, 2, 1, 15], "ifInUnknownProtos", Counter, "packets"),
                Object(&[2, 2, 1, 16], "ifOutOctets", Counter, "bytes"),
                Object(&[2, 2, 1, 17], "ifOutUcastPkts", Counter, "packets"),
                Object(&[2, 2, 1, 19], "ifOutDiscards", Counter, "packets"),
                Object(&[2, 2, 1, 20], "ifOutErrors", Counter, "packets"),
                Object(&[31, 1, 1, 1, 2], "ifInMulticastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 3], "ifInBroadcastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 4], "ifOutMulticastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 5], "ifOutBroadcastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 6], "ifHCInOctets", Counter, "bytes"),
                Object(&[31, 1, 1, 1, 7], "ifHCInUcastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 8], "ifHCInMulticastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 9], "ifHCInBroadcastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 10], "ifHCOutOctets", Counter, "bytes"),
                Object(&[31, 1, 1, 1, 11], "ifHCOutUcastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 12], "ifHCOutMulticastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 13], "ifHCOutBroadcastPkts", Counter, "packets"),
                Object(&[31, 1, 1, 1, 15], "ifHighSpeed", Gauge, "megabits_per_second"),
                Object(&[31, 1, 1, 1, 16], "ifPromiscuousMode", Gauge, ""),
                Object(&[31, 1, 1, 1, 17], "ifConnectorPresent", Gauge, ""),
                Object(&[31, 1, 1, 1, 19], "ifCounterDiscontinuityTime", Gauge, "centiseconds"),
            ],
        },
    ],
};

/// Those of the hundreds (IANAifType-MIB) that homes have; another one is told by its number.
const IF_TYPE: Names = &[
    (1, "other"),
    (6, "ethernetCsmacd"),
    (23, "ppp"),
    (24, "softwareLoopback"),
    (53, "propVirtual"),
    (71, "ieee80211"),
    (97, "vdsl"),
    (131, "tunnel"),
    (135, "l2vlan"),
    (136, "l3ipvlan"),
    (161, "ieee8023adLag"),
    (166, "mpls"),
    (209, "bridge"),
];

/// `hrDeviceDescr` and `hrDeviceType`, which name a device in all of its tables.
const HR_DEVICE: &[Lookup] = &[
    Lookup("hrDeviceDescr", &[1, 3, 6, 1, 2, 1, 25, 3, 2, 1, 3]),
    Lookup("hrDeviceType", &[1, 3, 6, 1, 2, 1, 25, 3, 2, 1, 2]),
];

const HOST_RESOURCES: Module = Module {
    name: "host_resources",
    at: &[1, 3, 6, 1, 2, 1, 25],
    groups: &[
        Group {
            at: &[1, 3, 6, 1, 2, 1, 25],
            index: &[],
            lookups: &[],
            objects: &[
                Object(&[1, 1], "hrSystemUptime", Gauge, "centiseconds"),
                Object(&[1, 5], "hrSystemNumUsers", Gauge, ""),
                Object(&[1, 6], "hrSystemProcesses", Gauge, ""),
                Object(&[1, 7], "hrSystemMaxProcesses", Gauge, ""),
                Object(&[2, 2], "hrMemorySize", Gauge, "kibibytes"),
            ],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 25, 2, 3, 1],
            index: &["hrStorageIndex"],
            lookups: &[
                Lookup("hrStorageDescr", &[1, 3, 6, 1, 2, 1, 25, 2, 3, 1, 3]),
                Lookup("hrStorageType", &[1, 3, 6, 1, 2, 1, 25, 2, 3, 1, 2]),
            ],
            // Size and used are counted in allocation units.
            objects: &[
                Object(&[4], "hrStorageAllocationUnits", Gauge, "bytes"),
                Object(&[5], "hrStorageSize", Gauge, "allocation_units"),
                Object(&[6], "hrStorageUsed", Gauge, "allocation_units"),
                Object(&[7], "hrStorageAllocationFailures", Counter, ""),
            ],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 25, 3],
            index: &["hrDeviceIndex"],
            lookups: HR_DEVICE,
            objects: &[
                Object(&[2, 1, 5], "hrDeviceStatus", Gauge, ""),
                Object(&[2, 1, 6], "hrDeviceErrors", Counter, ""),
                Object(&[3, 1, 2], "hrProcessorLoad", Gauge, "percent"),
            ],
        },
    ],
};

const UPS_MIB: Module = Module {
    name: "ups_mib",
    at: &[1, 3, 6, 1, 2, 1, 33],
    groups: &[
        Group {
            at: &[1, 3, 6, 1, 2, 1, 33, 1],
            index: &[],
            lookups: &[],
            objects: &[
                Object(&[1, 1], "upsIdentManufacturer", Text, ""),
                Object(&[1, 2], "upsIdentModel", Text, ""),
                Object(&[1, 3], "upsIdentUPSSoftwareVersion", Text, ""),
                Object(&[1, 5], "upsIdentName", Text, ""),
                Object(&[2, 1], "upsBatteryStatus", Gauge, ""),
                Object(&[2, 2], "upsSecondsOnBattery", Gauge, "seconds"),
                Object(&[2, 3], "upsEstimatedMinutesRemaining", Gauge, "minutes"),
                Object(&[2, 4], "upsEstimatedChargeRemaining", Gauge, "percent"),
                Object(&[2, 5], "upsBatteryVoltage", Gauge, "decivolts"),
                Object(&[2, 6], "upsBatteryCurrent", Gauge, "deciamperes"),
                Object(&[2, 7], "upsBatteryTemperature", Gauge, "celsius"),
                Object(&[3, 1], "upsInputLineBads", Counter, ""),
                Object(&[3, 2], "upsInputNumLines", Gauge, ""),
                Object(&[4, 1], "upsOutputSource", Gauge, ""),
                Object(&[4, 2], "upsOutputFrequency", Gauge, "decihertz"),
                Object(&[4, 3], "upsOutputNumLines", Gauge, ""),
                Object(&[5, 1], "upsBypassFrequency", Gauge, "decihertz"),
                Object(&[6, 1], "upsAlarmsPresent", Gauge, ""),
                Object(&[7, 3], "upsTestResultsSummary", Gauge, ""),
                Object(&[9, 5], "upsConfigOutputVA", Gauge, "voltamperes"),
                Object(&[9, 6], "upsConfigOutputPower", Gauge, "watts"),
            ],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 33, 1, 3, 3, 1],
            index: &["upsInputLineIndex"],
            lookups: &[],
            objects: &[
                Object(&[2], "upsInputFrequency", Gauge, "decihertz"),
                Object(&[3], "upsInputVoltage", Gauge, "volts"),
                Object(&[4], "upsInputCurrent", Gauge, "deciamperes"),
                Object(&[5], "upsInputTruePower", Gauge, "watts"),
            ],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 33, 1, 4, 4, 1],
            index: &["upsOutputLineIndex"],
            lookups: &[],
            objects: &[
                Object(&[2], "upsOutputVoltage", Gauge, "volts"),
                Object(&[3], "upsOutputCurrent", Gauge, "deciamperes"),
                Object(&[4], "upsOutputPower", Gauge, "watts"),
                Object(&[5], "upsOutputPercentLoad", Gauge, "percent"),
            ],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 33, 1, 5, 3, 1],
            index: &["upsBypassLineIndex"],
            lookups: &[],
            objects: &[
                Object(&[2], "upsBypassVoltage", Gauge, "volts"),
                Object(&[3], "upsBypassCurrent", Gauge, "deciamperes"),
                Object(&[4], "upsBypassPower", Gauge, "watts"),
            ],
        },
    ],
};

const PRINTER: Module = Module {
    name: "printer",
    at: &[1, 3, 6, 1, 2, 1, 43],
    groups: &[
        Group {
            at: &[1, 3, 6, 1, 2, 1, 25, 3, 5, 1],
            index: &["hrDeviceIndex"],
            lookups: HR_DEVICE,
            objects: &[
                Object(&[1], "hrPrinterStatus", StateSet(PRINTER_STATUS), ""),
                Object(&[2], "hrPrinterDetectedErrorState", Bits(PRINTER_ERRORS), ""),
            ],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 43, 5, 1, 1],
            index: &["hrDeviceIndex"],
            lookups: &[],
            objects: &[
                Object(&[16], "prtGeneralPrinterName", Text, ""),
                Object(&[17], "prtGeneralSerialNumber", Text, ""),
                Object(&[18], "prtAlertCriticalEvents", Counter, ""),
                Object(&[19], "prtAlertAllEvents", Counter, ""),
            ],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 43, 6, 1, 1],
            index: &["hrDeviceIndex", "prtCoverIndex"],
            lookups: &[],
            objects: &[Object(&[3], "prtCoverStatus", StateSet(COVER_STATUS), "")],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 43, 8, 2, 1],
            index: &["hrDeviceIndex", "prtInputIndex"],
            lookups: &[Lookup("prtInputName", &[1, 3, 6, 1, 2, 1, 43, 8, 2, 1, 13])],
            // -3: at least one sheet, -2: unknown; in units of their own, which are sheets where a printer says nothing else.
            objects: &[
                Object(&[9], "prtInputMaxCapacity", Gauge, ""),
                Object(&[10], "prtInputCurrentLevel", Gauge, ""),
            ],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 43, 10, 2, 1],
            index: &["hrDeviceIndex", "prtMarkerIndex"],
            lookups: &[],
            objects: &[
                Object(&[4], "prtMarkerLifeCount", Counter, ""),
                Object(&[5], "prtMarkerPowerOnCount", Counter, ""),
            ],
        },
        Group {
            at: &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1],
            index: &["hrDeviceIndex", "prtMarkerSuppliesIndex"],
            lookups: &[Lookup("prtMarkerSuppliesType", &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1, 5])],
            // -3: some is left, -2: unknown.
            objects: &[
                Object(&[6], "prtMarkerSuppliesDescription", Text, ""),
                Object(&[8], "prtMarkerSuppliesMaxCapacity", Gauge, ""),
                Object(&[9], "prtMarkerSuppliesLevel", Gauge, ""),
            ],
        },
    ],
};

const PRINTER_STATUS: Names = &[(1, "other"), (2, "unknown"), (3, "idle"), (4, "printing"), (5, "warmup")];

const PRINTER_ERRORS: Names = &[
    (0, "lowPaper"),
    (1, "noPaper"),
    (2, "lowToner"),
    (3, "noToner"),
    (4, "doorOpen"),
    (5, "jammed"),
    (6, "offline"),
    (7, "serviceRequested"),
    (8, "inputTrayMissing"),
    (9, "outputTrayMissing"),
    (10, "markerSupplyMissing"),
    (11, "outputNearFull"),
    (12, "outputFull"),
    (13, "inputTrayEmpty"),
    (14, "overduePreventMaint"),
];

const COVER_STATUS: Names =
    &[(1, "other"), (3, "coverOpen"), (4, "coverClosed"), (5, "interlockOpen"), (6, "interlockClosed")];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use satellite_shared::metric::{is_label_name, is_metric_name};

    use super::*;

    #[test]
    fn every_name_stands_once_and_follows_the_grammar() {
        let mut names = BTreeSet::new();
        for group in ALL.iter().flat_map(|module| module.groups) {
            for Object(below, name, _, unit) in group.objects {
                assert!(is_metric_name(name) && (unit.is_empty() || is_metric_name(unit)), "{name}");
                assert!(!below.is_empty() && names.insert((*name, group.at)), "{name}");
            }
            let labels = group.lookups.iter().map(|Lookup(name, _)| name).chain(group.index);
            assert!(labels.into_iter().all(|name| is_label_name(name)));
        }
        let distinct: BTreeSet<&str> = names.iter().map(|(name, _)| *name).collect();
        assert_eq!(distinct.len(), names.len());
    }
}
