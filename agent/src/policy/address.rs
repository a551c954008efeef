//! Where packets for an address really go, and where none may ever go.
//!
//! IPv6 has many spellings of an IPv4 address: each is unwrapped before a rule is asked, so that no rule can be
//! walked around by spelling. What stands in [`never()`] no policy can open.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Services of clouds and hosters that hand out credentials to whoever asks from the machine.
const METADATA: [IpAddr; 9] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];

/// The address whose host would answer: IPv4 out of mapped, translated, compatible, NAT64 and 6to4 spellings.
#[must_use]
pub fn effective(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    if v6.is_loopback() || v6.is_unspecified() {
        return ip;
    }
    let bytes = v6.octets();
    let last: [u8; 4] = [bytes[12], bytes[13], bytes[14], bytes[15]];
    let embedded = match v6.segments() {
        // ::ffff:a.b.c.d, ::ffff:0:a.b.c.d, ::a.b.c.d, 64:ff9b::a.b.c.d
        [0, 0, 0, 0, 0, 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0, 0, 0, 0, 0, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(last),
        // 2002:aabb:ccdd::
        [0x2002, ..] => Some([bytes[2], bytes[3], bytes[4], bytes[5]]),
        _ => None,
    };
    embedded.map_or(ip, |octets| IpAddr::V4(Ipv4Addr::from(octets)))
}

/// What an effective address is that nothing may be sent to, whatever a policy lists.
#[must_use]
pub fn never(ip: IpAddr) -> Option<&'static str> {
    if METADATA.contains(&ip) {
        return Some("a cloud's metadata service");
    }
    match ip {
        IpAddr::V4(v4) => match v4.octets() {
            [0, ..] => Some("an unspecified address"),
            [169, 254, ..] => Some("a link-local address"),
            [224..=239, ..] => Some("a multicast address"),
            [240..=255, ..] => Some("a broadcast or reserved address"),
            _ => None,
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified address"),
            [0xff00..=0xffff, ..] => Some("a multicast address"),
            [0xfe80..=0xfebf, ..] => Some("a link-local address"),
            [0xfec0..=0xfeff, ..] => Some("a site-local address, which IPv6 gave up"),
            [0x2001, 0, ..] => Some("a Teredo tunnel's address"),
            [0x64, 0xff9b, 1, ..] => Some("a translator's address"),
            _ => None,
        },
    }
}

/// A network of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads `10.0.0.0/8`, `fc00::/7` or a single address.
    ///
    /// # Errors
    /// Says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || format!("`{text}` is not a network such as \"192.168.1.0/24\" or \"fd00::/8\"");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let base: IpAddr = address.parse().map_err(|_| form())?;
        let bits = if base.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| form())?,
            Some(_) => return Err(form()),
        };
        if prefix > bits {
            return Err(form());
        }
        let network = Self { base: masked(base, prefix), prefix };
        if network.base != base {
            return Err(format!("`{text}` has bits behind its prefix: write \"{}/{prefix}\"", network.base));
        }
        if prefix > 0 && effective(base) != base {
            return Err(format!("`{text}` is a spelling of IPv4: write the IPv4 network"));
        }
        let narrow = prefix >= if base.is_ipv4() { 8 } else { 10 };
        if narrow && base.is_loopback() {
            return Err(format!("`{text}` is this host: list the ports in `loopback_ports` instead"));
        }
        match never(base) {
            Some(what) if narrow => Err(format!("`{text}` is {what}: no policy can open it, remove it")),
            _ => Ok(network),
        }
    }

    /// Whether an effective address is in it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.base.is_ipv4() == ip.is_ipv4() && masked(ip, self.prefix) == self.base
    }
}

fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ipv6_spelling_of_an_ipv4_address_is_unwrapped() {
        for text in [
            "192.168.1.9",
            "::ffff:192.168.1.9",
            "::ffff:0:192.168.1.9",
            "::192.168.1.9",
            "64:ff9b::192.168.1.9",
            "2002:c0a8:0109::1",
            "::ffff:c0a8:109",
        ] {
            assert_eq!(effective(text.parse().unwrap()), "192.168.1.9".parse::<IpAddr>().unwrap(), "{text}");
        }
        for text in ["::1", "::", "fd00::1", "2001:db8::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(effective(ip), ip, "{text}");
        }
    }

    #[test]
    fn what_no_policy_opens_is_known_at_its_borders() {
        let never_text = |text: &str| never(text.parse().unwrap()).is_some();
        for text in
            ["0.0.0.0", "0.255.255.255", "169.254.0.0", "169.254.255.255", "224.0.0.0", "239.255.255.255", "240.0.0.0"]
        {
            assert!(never_text(text), "{text}");
        }
        for text in ["255.255.255.255", "::", "ff02::1", "fe80::1", "febf::1", "fec0::1", "2001::1", "64:ff9b:1::1"] {
            assert!(never_text(text), "{text}");
        }
        for text in ["1.0.0.0", "169.253.255.255", "169.255.0.0", "223.255.255.255", "fe7f::1", "2001:1::1", "fd00::1"]
        {
            assert!(!never_text(text), "{text}");
        }
        assert!(METADATA.iter().all(|ip| never(*ip).is_some()));
    }

    #[test]
    fn a_network_holds_its_first_and_last_address_and_no_neighbour() {
        let check = |network: &str, inside: &[&str], outside: &[&str]| {
            let network = Network::parse(network).unwrap();
            for text in inside {
                assert!(network.contains(text.parse().unwrap()), "{text}");
            }
            for text in outside {
                assert!(!network.contains(text.parse().unwrap()), "{text}");
            }
        };
        check("172.16.0.0/12", &["172.16.0.0", "172.31.255.255"], &["172.15.255.255", "172.32.0.0", "fc00::1"]);
        check("fc00::/7", &["fc00::", "fdff:ffff::1"], &["fbff::1", "fe00::1", "10.0.0.1"]);
        check("10.0.0.7", &["10.0.0.7"], &["10.0.0.6", "10.0.0.8"]);
        check("0.0.0.0/0", &["1.1.1.1", "255.0.0.1"], &["::1"]);
        check("::/0", &["fd00::1"], &["10.0.0.1"]);
    }

    #[test]
    fn a_network_that_means_something_else_is_refused_with_what_to_write() {
        let check = |text: &str, expect: &str| {
            let said = Network::parse(text).unwrap_err();
            assert!(said.contains(expect), "{text}: {said}");
        };
        check("10.1.2.3/8", "write \"10.0.0.0/8\"");
        check("10.0.0.0/33", "not a network");
        check("10.0.0.0/+8", "not a network");
        check("10.0.0.0/", "not a network");
        check("012.0.0.0/8", "not a network");
        check("10/8", "not a network");
        check("lan", "not a network");
        check("::ffff:10.0.0.0/104", "IPv4");
        check("127.0.0.0/8", "loopback_ports");
        check("::1", "loopback_ports");
        check("169.254.169.254", "no policy can open it");
        check("fe80::/10", "no policy can open it");
    }
}
