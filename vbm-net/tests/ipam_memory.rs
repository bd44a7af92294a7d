//! What the IPAM takes, counted by the allocator: ten million addresses in at most 4 MB. One test: nothing else shall allocate
//! meanwhile.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};
use vbm_core::{Ipv6Spec, NetworkMode, NetworkSpec, Timestamp, network::parse_cidr};
use vbm_net::ipam::Ipam;

const ADDRESSES: u32 = 10_000_000;
/// Fewer: their pages are the same ones.
const ADDRESSES_OF_IPV6: u32 = 1_000_000;
const MOST_BYTES: usize = 4_000_000;
const NOW: Timestamp = Timestamp::from_micros(1);

/// The system's allocator, and how much of it is in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator cannot be written otherwise")]
// SAFETY: every call goes to the system's allocator as it is; only sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is in use more than before, with the thing still there.
fn weighed<T>(make: impl FnOnce() -> T) -> (usize, T) {
    let before = IN_USE.load(Ordering::Relaxed);
    let thing = make();
    (IN_USE.load(Ordering::Relaxed).saturating_sub(before), thing)
}

fn spec(cidr: &str) -> NetworkSpec {
    NetworkSpec::new(NetworkMode::Nat, parse_cidr(cidr).unwrap()).unwrap()
}

#[test]
fn ten_million_addresses_take_four_megabytes_at_most_in_whatever_order() {
    let (in_order, ipam) = weighed(|| {
        let mut ipam = Ipam::v4(&spec("10.0.0.0/8")).unwrap();
        for _ in 0..ADDRESSES {
            ipam.allocate(None, NOW).unwrap();
        }
        ipam
    });
    assert!(in_order < 200_000, "full pages take no bitmap: {in_order} bytes");
    assert!(
        ipam.heap_bytes() + 4_096 >= in_order,
        "{} told, {in_order} counted",
        ipam.heap_bytes()
    );
    drop(ipam);

    // A step that is coprime to the size of a /8 visits each address once, all over the place.
    let (scattered, mut ipam) = weighed(|| {
        let mut ipam = Ipam::v4(&spec("10.0.0.0/8")).unwrap();
        let (mut at, mut taken) = (0_u32, 0);
        while taken < ADDRESSES {
            at = (at + 7_368_787) % (1 << 24);
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + at);
            taken += u32::from(ipam.pin(address, None, NOW).is_ok());
        }
        ipam
    });
    assert!(scattered <= MOST_BYTES, "{scattered} bytes");
    assert!(
        ipam.heap_bytes() + 4_096 >= scattered,
        "{} told, {scattered} counted",
        ipam.heap_bytes()
    );
    assert_eq!(ipam.utilisation(NOW).taken, u128::from(ADDRESSES));
    let (more, _) = weighed(|| ipam.allocate(None, NOW).unwrap());
    assert!(more <= 4_096 + 64, "a pick takes a page at most: {more} bytes");
    println!("10 million addresses: {in_order} bytes in order, {scattered} bytes in the worst order");

    let (six, ipam) = weighed(|| {
        let mut spec = spec("10.0.0.0/24");
        spec.ipv6 = Some(Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
        let mut ipam = Ipam::v6(&spec).unwrap().unwrap();
        for _ in 0..ADDRESSES_OF_IPV6 {
            ipam.allocate(None, NOW).unwrap();
        }
        ipam
    });
    assert!(
        six < 200_000 && ipam.utilisation(NOW).taken == u128::from(ADDRESSES_OF_IPV6),
        "IPv6 alike: {six} bytes"
    );

    let (small, _small) = weighed(|| Ipam::v4(&spec("10.0.0.0/8")).unwrap());
    assert!(small < 2_000, "an empty /8 takes nothing: {small} bytes");
}
