//! One after the other: devices that share a gateway share its bus, and many a gateway serves one connection at a time.
//!
//! Whoever polls through a gateway waits for its turn, within its own time. Devices are behind the same gateway where
//! their address is the same, whatever else they say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::address::Address;

/// A bus: who holds its turn is alone on it. It remembers when it was last used.
#[derive(Debug, Default)]
pub(crate) struct Gateway(tokio::sync::Mutex<Option<Instant>>);

/// The turn, until dropped.
pub(crate) struct Turn<'a>(MutexGuard<'a, Option<Instant>>);

impl Gateway {
    /// Waits until nobody else has the turn, and until the bus has rested for so long.
    pub(crate) async fn turn(&self, spacing: Duration) -> Turn<'_> {
        let used = self.0.lock().await;
        if let Some(used) = *used {
            tokio::time::sleep_until(used + spacing).await;
        }
        Turn(used)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0 = Some(Instant::now());
    }
}

/// All gateways that some device is behind.
#[derive(Debug, Default)]
pub struct Gateways(Mutex<HashMap<(String, u16), Weak<Gateway>>>);

impl Gateways {
    /// The gateway at an address; it is there for as long as a device is behind it.
    pub(crate) fn at(&self, address: &Address) -> Arc<Gateway> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.host.to_ascii_lowercase(), address.port);
        if let Some(gateway) = known.get(&key).and_then(Weak::upgrade) {
            return gateway;
        }
        known.retain(|_, gateway| gateway.strong_count() > 0);
        let gateway = Arc::new(Gateway::default());
        known.insert(key, Arc::downgrade(&gateway));
        gateway
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str) -> Address {
        Address { host: host.into(), port: 502 }
    }

    #[tokio::test(start_paused = true)]
    async fn who_shares_a_gateway_takes_turns_and_lets_the_bus_rest() {
        let gateways = Gateways::default();
        let (one, other) = (gateways.at(&address("gw.lan")), gateways.at(&address("GW.lan")));
        let began = Instant::now();
        let spacing = Duration::from_millis(50);
        let poll = |gateway: Arc<Gateway>| async move {
            let _turn = gateway.turn(spacing).await;
            let from = began.elapsed().as_millis();
            tokio::time::sleep(Duration::from_millis(100)).await;
            from
        };
        let (first, second) = tokio::join!(poll(one), poll(other));
        assert_eq!((first, second), (0, 150));
        let elsewhere = gateways.at(&address("other.lan"));
        assert_eq!(poll(elsewhere).await, 250, "another gateway waits for nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_was_given_up_is_the_next_ones() {
        let gateway = Gateway::default();
        let held = gateway.turn(Duration::ZERO).await;
        let waiting = tokio::time::timeout(Duration::from_millis(10), gateway.turn(Duration::ZERO));
        assert!(waiting.await.is_err());
        drop(held);
        tokio::time::timeout(Duration::from_millis(10), gateway.turn(Duration::ZERO))
            .await
            .unwrap_or_else(|_| panic!());
    }

    #[test]
    fn a_gateway_that_nobody_is_behind_is_forgotten() {
        let gateways = Gateways::default();
        let kept = gateways.at(&address("gw.lan"));
        for n in 0..100 {
            drop(gateways.at(&address(&format!("gw{n}.lan"))));
        }
        assert!(Arc::ptr_eq(&kept, &gateways.at(&address("gw.lan"))));
        assert!(gateways.0.lock().unwrap().len() <= 2);
    }
}
