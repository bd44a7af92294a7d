//! How `iptables-save`, `ip6tables-save` and `nft list` spell addresses: as glibc's `inet_ntop` does, which is Rust's way but for one.
//!
//! | address | Rust | glibc |
//! |---|---|---|
//! | `::102:300`: the first 96 bits are zero, and not the next 16 | `::102:300` | `::1.2.3.0` |
//! | `::ffff:102:300` | `::ffff:1.2.3.0` | the same |

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};

/// An address.
pub(super) fn address(address: IpAddr) -> String {
    match address {
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
                format!("::{}", Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
            }
            _ => v6.to_string(),
        },
        IpAddr::V4(v4) => v4.to_string(),
    }
}

/// A network with its length.
pub(super) fn net(net: IpNet) -> String {
    format!("{}/{}", address(net.network()), net.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_spelled_as_the_tools_spell_them() {
        for text in [
            "::",
            "::1",
            "::ffff",
            "::0.1.0.0",
            "::1.2.3.0",
            "::ffff:1.2.3.4",
            "::1:0:0",
            "fd00::1:2",
            "10.0.0.1",
        ] {
            assert_eq!(address(text.parse().unwrap()), text);
        }
        assert_eq!(net("::1.2.3.4/120".parse().unwrap()), "::1.2.3.0/120");
        assert_eq!(net("fd00::5/64".parse().unwrap()), "fd00::/64");
        assert_eq!(net("::/96".parse().unwrap()), "::/96");
    }
}
