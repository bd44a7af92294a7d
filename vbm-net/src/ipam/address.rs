//! The two families, as numbers.

use std::{
    fmt::{Debug, Display},
    net::{Ipv4Addr, Ipv6Addr},
};

/// An address of either family. The IPAM counts in offsets from the first address of a subnet, as 128-bit numbers.
pub trait Address: Copy + Ord + Debug + Display + Send + Sync + sealed::Sealed + 'static {
    /// How many bits it has.
    const BITS: u8;
    /// The number it is.
    fn to_number(self) -> u128;
    /// The address of a number; bits beyond [`Self::BITS`] are lost.
    fn from_number(number: u128) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::net::Ipv4Addr {}
    impl Sealed for std::net::Ipv6Addr {}
}

impl Address for Ipv4Addr {
    const BITS: u8 = 32;
    fn to_number(self) -> u128 {
        u32::from(self).into()
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an address has no more bits; callers stay inside its subnet"
    )]
    fn from_number(number: u128) -> Self {
        (number as u32).into()
    }
}

impl Address for Ipv6Addr {
    const BITS: u8 = 128;
    fn to_number(self) -> u128 {
        self.into()
    }
    fn from_number(number: u128) -> Self {
        number.into()
    }
}
