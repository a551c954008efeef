//! How often one address may ask: a bucket of tokens each, in a table that can't grow.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Addresses remembered at once.
const ADDRESSES_MAX: usize = 10_000;

/// Buckets by address. An IPv6 customer has a /64 at least, so that is one address here.
#[derive(Debug)]
pub(crate) struct RateLimit {
    burst: f64,
    per_ms: f64,
    buckets: HashMap<IpAddr, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at_ms: u64,
}

impl RateLimit {
    pub(crate) fn new(per_second: f64, burst: u32) -> Self {
        Self { burst: f64::from(burst), per_ms: per_second / 1_000.0, buckets: HashMap::new() }
    }

    /// Takes a token, or says after how many seconds there is one.
    pub(crate) fn take(&mut self, address: IpAddr, mono_ms: u64) -> Result<(), u64> {
        let address = subscriber(address);
        if !self.buckets.contains_key(&address) && self.buckets.len() >= ADDRESSES_MAX {
            self.forget_full(mono_ms);
            if self.buckets.len() >= ADDRESSES_MAX {
                return Err(60);
            }
        }
        let (burst, per_ms) = (self.burst, self.per_ms);
        let bucket = self.buckets.entry(address).or_insert(Bucket { tokens: burst, at_ms: mono_ms });
        bucket.tokens = bucket.filled(burst, per_ms, mono_ms);
        bucket.at_ms = mono_ms;
        if bucket.tokens < 1.0 {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds, positive")]
            return Err((((1.0 - bucket.tokens) / per_ms / 1_000.0).ceil() as u64).max(1));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    /// A bucket that is full again is no different from none.
    fn forget_full(&mut self, mono_ms: u64) {
        let (burst, per_ms) = (self.burst, self.per_ms);
        self.buckets.retain(|_, bucket| bucket.filled(burst, per_ms, mono_ms) < burst);
    }
}

impl Bucket {
    fn filled(&self, burst: f64, per_ms: f64, mono_ms: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a bucket is full long before")]
        let since_ms = mono_ms.saturating_sub(self.at_ms) as f64;
        (self.tokens + since_ms * per_ms).min(burst)
    }
}

/// The address that stands for whoever is behind it.
pub(crate) fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_passes_and_then_one_a_second() {
        let mut limit = RateLimit::new(1.0, 5);
        for _ in 0..5 {
            assert_eq!(limit.take(ip("192.0.2.1"), 0), Ok(()));
        }
        assert_eq!(limit.take(ip("192.0.2.1"), 0), Err(1));
        assert_eq!(limit.take(ip("192.0.2.1"), 500), Err(1));
        assert_eq!(limit.take(ip("192.0.2.1"), 1_000), Ok(()));
        assert_eq!(limit.take(ip("192.0.2.1"), 1_000), Err(1));
        assert_eq!(limit.take(ip("192.0.2.2"), 1_000), Ok(()));
    }

    #[test]
    fn a_network_of_ipv6_addresses_is_one_and_a_mapped_address_is_its_ipv4() {
        let mut limit = RateLimit::new(1.0, 1);
        assert_eq!(limit.take(ip("2001:db8::1"), 0), Ok(()));
        assert_eq!(limit.take(ip("2001:db8::2:3"), 0), Err(1));
        assert_eq!(limit.take(ip("2001:db8:0:1::1"), 0), Ok(()));
        assert_eq!(limit.take(ip("192.0.2.1"), 0), Ok(()));
        assert_eq!(limit.take(ip("::ffff:192.0.2.1"), 0), Err(1));
    }

    #[test]
    fn the_table_does_not_grow_with_the_attackers() {
        let mut limit = RateLimit::new(1.0, 1);
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            assert_eq!(limit.take(IpAddr::from((0x0a00_0000 + n).to_be_bytes()), 0), Ok(()));
        }
        assert_eq!(limit.take(ip("192.0.2.1"), 500), Err(60));
        assert_eq!(limit.take(ip("192.0.2.1"), 1_000), Ok(()), "the others have been forgotten");
        assert_eq!(limit.buckets.len(), 1);
    }
}
