//! What the journeys share: the programs, devices that misbehave, links that fail, and the checker.
//!
//! Everything here is a real process or a real socket on loopback, on a port that the kernel chose, in a directory that
//! is gone afterwards. Nothing waits a fixed time: [`wait::until`] asks until a deadline. Whatever was started ends with
//! its owner, also when a test panics.

pub mod wait;

pub mod process;

pub mod programs;

pub mod peers;

pub mod relay;

pub mod satellite;

pub mod service_manager;

pub mod device;

pub mod link;

pub mod network;

pub mod middleman;

pub mod impostor;

pub mod far_end;

pub mod foreign;

pub mod automount;

pub mod hanging_mount;

pub mod mount;

pub mod hostile_device;

pub mod hostile_relay;

pub mod neighbours;

pub mod netns;

pub mod resolver;

pub mod memory;

pub mod processor;

pub mod tree;

pub mod checker;

pub mod parquet_files;

pub mod house;

pub mod journey;

pub mod disk;

pub mod dnsmasq;

pub mod machine;

pub mod lighttpd;
pub mod message_bus;

pub mod modbus;

pub mod mosquitto;

pub mod nut;

pub mod openssl;

pub mod podman;

pub mod rounds;

pub mod smart;

pub mod load;

pub mod simulation;

pub mod snmp;
pub mod wireguard;
