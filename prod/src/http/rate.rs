//! How many requests a second one client may make: the generic cell rate algorithm (ITU-T I.371, A.1), a bucket of one second's worth for
//! each address, of which only the time is kept at which it will be full again.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The most addresses that are told apart; beyond, those that are new share one bucket.
const CLIENTS_MAX: usize = 65_536;
/// What a bucket holds, in time.
const BURST: Duration = Duration::from_secs(1);

/// Counts the requests of clients.
#[derive(Debug)]
pub(super) struct RateLimiter {
    /// What one request takes out of a bucket.
    each: Duration,
    clients_max: usize,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    /// When the bucket of a client will be full again.
    full_at: BTreeMap<Option<IpAddr>, Instant>,
    /// When those that are full were last looked for.
    swept_at: Option<Instant>,
}

impl RateLimiter {
    pub(super) fn new(rate_max: NonZeroU32) -> Self {
        Self { each: BURST / rate_max.get(), clients_max: CLIENTS_MAX, buckets: Mutex::default() }
    }

    /// Whether a client may ask now; otherwise after how long it may.
    pub(super) fn admit(&self, client: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        // Nothing panics while it holds the lock, and every state of the map is a good one.
        let mut guard = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { full_at, swept_at } = &mut *guard;
        let mut client = client.map(network);
        if full_at.len() >= self.clients_max && !full_at.contains_key(&client) {
            // Within that time all will be full that are not asked of: to look for them at every request would only hold up the others.
            if swept_at.is_none_or(|swept_at| now.saturating_duration_since(swept_at) >= BURST) {
                *swept_at = Some(now);
                full_at.retain(|_, full_at| *full_at > now);
            }
            if full_at.len() >= self.clients_max {
                client = None;
            }
        }
        let full = full_at.entry(client).or_insert(now);
        let next = (*full).max(now) + self.each;
        match next.duration_since(now).checked_sub(BURST) {
            None | Some(Duration::ZERO) => {
                *full = next;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

/// Whoever has an address of IPv6 has a network of 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => address.into(),
            None => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        },
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(rate: u32) -> RateLimiter {
        RateLimiter::new(NonZeroU32::new(rate).expect("not zero"))
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn a_second_has_so_many_requests_and_each_client_its_own() {
        let (limiter, start) = (limiter(10), Instant::now());
        let admitted = |client, after_ms| limiter.admit(client, start + Duration::from_millis(after_ms));
        let (one, other) = (address("10.0.0.1"), address("10.0.0.2"));
        assert!((0..10).all(|_| admitted(one, 0).is_ok()));
        assert_eq!(admitted(one, 0), Err(Duration::from_millis(100)));
        assert_eq!(admitted(one, 60), Err(Duration::from_millis(40)), "asking in vain costs nothing");
        assert!(admitted(other, 60).is_ok());
        assert!(admitted(one, 100).is_ok());
        assert!(admitted(one, 100).is_err());
        assert_eq!((0..20).filter(|_| admitted(one, 5_000).is_ok()).count(), 10, "no more than a second's worth is saved up");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client_and_ipv4_in_ipv6_is_ipv4() {
        let (limiter, now) = (limiter(1), Instant::now());
        assert!(limiter.admit(address("2001:db8::1"), now).is_ok());
        assert!(limiter.admit(address("2001:db8::ffff:1"), now).is_err());
        assert!(limiter.admit(address("2001:db8:0:1::1"), now).is_ok());
        assert!(limiter.admit(address("::ffff:10.0.0.1"), now).is_ok());
        assert!(limiter.admit(address("10.0.0.1"), now).is_err());
    }

    #[test]
    fn many_clients_take_no_more_room_than_there_is() {
        let (mut limiter, now) = (limiter(1), Instant::now());
        limiter.clients_max = 2;
        let count = |limiter: &RateLimiter| limiter.buckets.lock().expect("unlocked").full_at.len();
        assert!(limiter.admit(address("10.0.0.1"), now).is_ok());
        assert!(limiter.admit(address("10.0.0.2"), now).is_ok());
        assert!(limiter.admit(address("10.0.0.3"), now).is_ok(), "the first of those who share");
        assert!(limiter.admit(address("10.0.0.4"), now).is_err(), "the second");
        assert_eq!(count(&limiter), 3);
        assert!(limiter.admit(address("10.0.0.4"), now + BURST).is_ok(), "the others have come free");
        assert_eq!(count(&limiter), 1);
    }

    #[test]
    fn room_is_looked_for_once_in_a_while_however_many_ask() {
        let (mut limiter, now) = (limiter(2), Instant::now());
        limiter.clients_max = 2;
        let ms = |ms| now + Duration::from_millis(ms);
        let count = |limiter: &RateLimiter| limiter.buckets.lock().expect("unlocked").full_at.len();
        assert!(limiter.admit(address("10.0.0.1"), now).is_ok());
        assert!(limiter.admit(address("10.0.0.2"), now).is_ok());
        assert!(limiter.admit(address("10.0.0.3"), ms(100)).is_ok(), "looked for, and not found");
        assert!(limiter.admit(address("10.0.0.4"), ms(600)).is_ok());
        assert_eq!(count(&limiter), 3, "those that are full are there until the next look");
        assert!(limiter.admit(address("10.0.0.5"), ms(1_100)).is_ok());
        assert_eq!(count(&limiter), 1, "all but the last of them were full");
    }
}
