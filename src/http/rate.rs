//! How many requests each address and each caller may send, on the ingest listener, and what their clients are told.
//!
//! A limit is a number of requests a second, counted over [`WINDOW_SECONDS`]: so many times more may come at once. Addresses
//! come first, so that they limit who tries out keys too. The count is governor's (GCRA); what it remembers of who has not
//! come for a window is dropped now and then, so that memory follows the requests of a few seconds.
//!
//! The fields are those of draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy: "address";q=100;w=10` and
//! `RateLimit: "address";r=99;t=1`, with an item for each limit.

use std::fmt::Write as _;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use ipnet::IpNet;

use super::error::{Problem, Reason};

/// Over how long requests are counted.
const WINDOW_SECONDS: u32 = 10;
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const FORWARDED_FOR: &str = "x-forwarded-for";

/// One limit for each of many.
struct Limit<K: Hash + Eq + Clone> {
    name: &'static str,
    key: &'static str,
    per_second: NonZeroU32,
    limiter: RateLimiter<K, DashMapStateStore<K>, DefaultClock, StateInformationMiddleware>,
}

impl<K: Hash + Eq + Clone> Limit<K> {
    fn new(name: &'static str, key: &'static str, per_second: NonZeroU32) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(burst(per_second));
        let limiter = RateLimiter::dashmap(quota).with_middleware::<StateInformationMiddleware>();
        Self {
            name,
            key,
            per_second,
            limiter,
        }
    }

    fn check(&self, who: &K, told: &mut Told) -> Result<(), Problem> {
        let burst = burst(self.per_second).get();
        match self.limiter.check_key(who) {
            Ok(state) => {
                let left = state.remaining_burst_capacity();
                told.add(
                    self.name,
                    burst,
                    left,
                    (burst - left.min(burst)).div_ceil(self.per_second.get()),
                );
                Ok(())
            }
            Err(refused) => {
                let wait = refused.wait_time_from(DefaultClock::default().now());
                // Whole seconds, and none is never said.
                let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
                told.add(self.name, burst, 0, seconds);
                let detail = format!(
                    "this {} sends more than {} requests a second, the most that this gateway takes of one ({}). This one was not \
                     taken; send it again in {seconds} s, and put more records into one request.",
                    self.name, self.per_second, self.key
                );
                Err(Problem::new(Reason::Rate, detail).after(seconds))
            }
        }
    }

    fn sweep(&self) {
        self.limiter.retain_recent();
    }
}

fn burst(per_second: NonZeroU32) -> NonZeroU32 {
    per_second.saturating_mul(NonZeroU32::MIN.saturating_add(WINDOW_SECONDS - 1))
}

/// The limits in force, and who is believed when it says for whom it asks.
pub(super) struct Rates {
    per_address: Option<Limit<IpAddr>>,
    per_caller: Option<Limit<String>>,
    proxies: Vec<IpNet>,
}

impl Rates {
    /// 0: no limit.
    pub(super) fn new(per_address: u32, per_caller: u32, proxies: Vec<IpNet>) -> Self {
        let address = |rate| Limit::new("address", "http.requests_per_second_max_per_address", rate);
        let caller = |rate| Limit::new("key", "http.requests_per_second_max_per_key", rate);
        Self {
            per_address: NonZeroU32::new(per_address).map(address),
            per_caller: NonZeroU32::new(per_caller).map(caller),
            proxies,
        }
    }

    /// Counts a request of the address at the other end of its connection.
    pub(super) fn check_address(&self, peer: IpAddr, headers: &HeaderMap, told: &mut Told) -> Result<(), Problem> {
        match &self.per_address {
            Some(limit) => limit.check(&network(client(peer, headers, &self.proxies)), told),
            None => Ok(()),
        }
    }

    /// Counts a request of somebody known.
    pub(super) fn check_caller(&self, caller: &str, told: &mut Told) -> Result<(), Problem> {
        match &self.per_caller {
            Some(limit) => limit.check(&caller.to_owned(), told),
            None => Ok(()),
        }
    }

    /// Forgets who has not come for a while.
    pub(super) fn sweep(&self) {
        if let Some(limit) = &self.per_address {
            limit.sweep();
        }
        if let Some(limit) = &self.per_caller {
            limit.sweep();
        }
    }
}

/// What the answer to one request says of the limits.
#[derive(Default)]
pub(super) struct Told {
    policy: String,
    limit: String,
}

impl Told {
    fn add(&mut self, name: &str, quota: u32, left: u32, seconds: u32) {
        let comma = if self.policy.is_empty() { "" } else { ", " };
        // Writing to memory cannot fail.
        let policy = write!(self.policy, "{comma}\"{name}\";q={quota};w={WINDOW_SECONDS}");
        let limit = write!(self.limit, "{comma}\"{name}\";r={left};t={seconds}");
        debug_assert!(policy.is_ok() && limit.is_ok());
    }

    pub(super) fn add_to(self, headers: &mut HeaderMap) {
        for (name, text) in [(POLICY, self.policy), (LIMIT, self.limit)] {
            if !text.is_empty()
                && let Ok(value) = HeaderValue::try_from(text)
            {
                headers.insert(name, value);
            }
        }
    }
}

/// Who an address belongs to: whoever has an IPv6 address has the 2^64 around it.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Where a request comes from. `X-Forwarded-For` grows to the right, each proxy adds who it was asked by: from the right, the
/// first that is no proxy of ours is the client, and what stands left of it anybody could have written.
fn client(peer: IpAddr, headers: &HeaderMap, proxies: &[IpNet]) -> IpAddr {
    let is_ours = |address: IpAddr| proxies.iter().any(|net| net.contains(&address));
    let mut client = peer;
    if proxies.is_empty() || !is_ours(client) {
        return client;
    }
    let lines: Vec<&HeaderValue> = headers.get_all(FORWARDED_FOR).iter().collect();
    for line in lines.iter().rev() {
        for entry in line.as_bytes().rsplit(|byte| *byte == b',') {
            let Some(address) = std::str::from_utf8(entry).ok().and_then(|text| address(text.trim())) else {
                return client;
            };
            client = address.to_canonical();
            if !is_ours(client) {
                return client;
            }
        }
    }
    client
}

/// An address, with a port or without.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use axum::response::IntoResponse;
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn forwarded(lines: &[&str]) -> HeaderMap {
        let lines = lines.iter();
        lines
            .map(|line| {
                (
                    FORWARDED_FOR.parse().unwrap(),
                    HeaderValue::from_bytes(line.as_bytes()).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn a_window_of_requests_may_come_at_once_and_then_none() {
        let rates = Rates::new(2, 0, Vec::new());
        let ask = |address: &str| {
            let mut told = Told::default();
            let checked = rates.check_address(ip(address), &HeaderMap::new(), &mut told);
            let mut headers = HeaderMap::new();
            told.add_to(&mut headers);
            (checked.map_err(IntoResponse::into_response), headers)
        };
        for left in (0..20).rev() {
            let (checked, headers) = ask("10.0.0.1");
            assert!(checked.is_ok());
            assert_eq!(headers["ratelimit-policy"], "\"address\";q=20;w=10");
            let seconds = (20_u32 - left).div_ceil(2);
            assert_eq!(headers["ratelimit"], format!("\"address\";r={left};t={seconds}"));
        }
        let (checked, headers) = ask("10.0.0.1");
        let refused = checked.unwrap_err();
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.headers()["retry-after"], "1");
        assert!(headers["ratelimit"].to_str().unwrap().starts_with("\"address\";r=0"));
        assert!(ask("10.0.0.2").0.is_ok(), "another one");
        for n in 0..20 {
            assert!(ask(&format!("2001:db8::{n:x}")).0.is_ok());
        }
        assert!(ask("2001:db8::ffff").0.is_err(), "all of a network are one");
        assert!(ask("2001:db8:0:1::1").0.is_ok());
        let mut told = Told::default();
        assert!(
            rates.check_caller("x", &mut told).is_ok() && told.policy.is_empty(),
            "no limit"
        );
    }

    #[test]
    fn the_client_is_whom_our_own_proxies_name() {
        let proxies: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let client = |peer: &str, lines: &[&str]| client(ip(peer), &forwarded(lines), &proxies).to_string();
        assert_eq!(
            client("192.0.2.1", &["203.0.113.9"]),
            "192.0.2.1",
            "a stranger says whatever it likes"
        );
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            client("10.0.0.1", &["1.1.1.1, 203.0.113.9"]),
            "203.0.113.9",
            "what the client wrote is left of it"
        );
        assert_eq!(
            client("10.0.0.1", &["1.1.1.1", "203.0.113.9 , 10.0.0.2"]),
            "203.0.113.9"
        );
        assert_eq!(
            client("10.0.0.1", &["10.0.0.3,10.0.0.2"]),
            "10.0.0.3",
            "all of them ours"
        );
        assert_eq!(client("10.0.0.1", &["203.0.113.9, nonsense"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["203.0.113.9:4711"]), "203.0.113.9");
        assert_eq!(client("::1", &["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(client("::1", &["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(client("::1", &["::ffff:203.0.113.9"]), "203.0.113.9");
    }

    #[test]
    fn who_has_not_come_for_a_window_is_forgotten() {
        let rates = Rates::new(1_000_000, 0, Vec::new());
        for n in 0..1000_u32 {
            rates
                .check_address(IpAddr::from(n.to_be_bytes()), &HeaderMap::new(), &mut Told::default())
                .unwrap();
        }
        let limit = rates.per_address.as_ref().unwrap();
        assert_eq!(limit.limiter.len(), 1000);
        let limit_of_time = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !limit.limiter.is_empty() && std::time::Instant::now() < limit_of_time {
            rates.sweep();
            std::thread::yield_now();
        }
        assert_eq!(limit.limiter.len(), 0);
    }

    proptest! {
        #[test]
        fn no_header_panics(line in "[0-9a-f:., \\[\\]]{0,60}") {
            client(ip("10.0.0.1"), &forwarded(&[&line]), &["10.0.0.0/8".parse().unwrap()]);
        }
    }
}
