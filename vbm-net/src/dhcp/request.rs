//! A request, read once into a type: what it lacks or spoils makes it no request.

use dhcproto::v4::{OptionCode, borrowed::Message};
use std::net::Ipv4Addr;
use vbm_core::Mac;

/// The hardware type and length of Ethernet (RFC 1700).
const HTYPE_ETHERNET: u8 = 1;
const HLEN_ETHERNET: u8 = 6;
/// BOOTREQUEST (RFC 951).
const OP_REQUEST: u8 = 1;
/// The fixed part and the magic cookie.
const FIXED_BYTES: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// What a client may ask (RFC 2131 section 3, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who serves here?
    Discover,
    /// I take this, I had this, or I go on with this.
    Request,
    /// Somebody uses that address.
    Decline,
    /// I give it back.
    Release,
    /// I have an address, tell me the rest.
    Inform,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it asks.
    pub kind: Kind,
    /// The transaction.
    pub xid: u32,
    /// The flags as they came; the top bit asks for broadcast.
    pub flags: u16,
    /// The address the client uses already, or 0.0.0.0.
    pub ciaddr: Ipv4Addr,
    /// The relay, or 0.0.0.0.
    pub giaddr: Ipv4Addr,
    /// The client's MAC.
    pub mac: Mac,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server_id: Option<Ipv4Addr>,
    /// Option 57: the largest datagram the client takes, in bytes.
    pub max_size: Option<u16>,
    /// Option 55, in the client's order.
    pub parameters: Option<Vec<u8>>,
    /// Option 61, as it came.
    pub client_id: Option<Vec<u8>>,
    /// Option 82, as it came.
    pub relay_agent: Option<Vec<u8>>,
}

/// The broadcast flag (RFC 2131 section 2).
pub const FLAG_BROADCAST: u16 = 0x8000;

impl Request {
    /// Whether the client asks for an answer by broadcast.
    pub const fn wants_broadcast(&self) -> bool {
        self.flags & FLAG_BROADCAST != 0
    }
}

/// Reads the payload of a UDP datagram.
///
/// # Errors
/// Why it is no request, in a few words.
pub fn parse(payload: &[u8]) -> Result<Request, &'static str> {
    if payload.len() < FIXED_BYTES {
        return Err("it is shorter than a DHCP message");
    }
    if payload[0] != OP_REQUEST {
        return Err("it is not from a client");
    }
    if payload[1] != HTYPE_ETHERNET || payload[2] != HLEN_ETHERNET {
        return Err("its hardware address is not Ethernet");
    }
    if payload[FIXED_BYTES - 4..FIXED_BYTES] != MAGIC {
        return Err("it is BOOTP, not DHCP");
    }
    let message = Message::new(payload).map_err(|_| "it is shorter than a DHCP message")?;
    let mac = <[u8; 6]>::try_from(message.chaddr()).map_err(|_| "its hardware address is not Ethernet")?;
    let mut request = Request {
        kind: Kind::Discover,
        xid: message.xid(),
        flags: message.flags().into(),
        ciaddr: message.ciaddr(),
        giaddr: message.giaddr(),
        mac: Mac::new(mac),
        requested: None,
        server_id: None,
        max_size: None,
        parameters: None,
        client_id: None,
        relay_agent: None,
    };
    let mut kind = None;
    for option in message.opts() {
        read_option(&mut request, &mut kind, option.code(), option.data())?;
    }
    request.kind = kind.ok_or("it has no message type")?;
    Ok(request)
}

fn read_option(
    request: &mut Request,
    kind: &mut Option<Kind>,
    code: OptionCode,
    data: &[u8],
) -> Result<(), &'static str> {
    let address = || {
        <[u8; 4]>::try_from(data)
            .map(Ipv4Addr::from)
            .map_err(|_| "an address in it is not four bytes")
    };
    match code {
        OptionCode::MessageType => {
            *kind = Some(match data {
                [1] => Kind::Discover,
                [3] => Kind::Request,
                [4] => Kind::Decline,
                [7] => Kind::Release,
                [8] => Kind::Inform,
                _ => return Err("its message type is not a client's"),
            });
        }
        OptionCode::RequestedIpAddress => request.requested = Some(address()?),
        OptionCode::ServerIdentifier => request.server_id = Some(address()?),
        OptionCode::MaxMessageSize => {
            request.max_size = <[u8; 2]>::try_from(data).ok().map(u16::from_be_bytes)
        }
        OptionCode::ParameterRequestList => request.parameters = Some(data.to_vec()),
        OptionCode::ClientIdentifier => request.client_id = Some(data.to_vec()),
        OptionCode::RelayAgentInformation => request.relay_agent = Some(data.to_vec()),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A DISCOVER by hand, as it stands on the wire.
    fn discover() -> Vec<u8> {
        let mut bytes = vec![0u8; FIXED_BYTES];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&0xdead_beef_u32.to_be_bytes());
        bytes[10] = 0x80;
        bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]);
        bytes[236..].copy_from_slice(&MAGIC);
        bytes.extend([
            53, 1, 1, 55, 3, 1, 3, 6, 61, 3, 255, 1, 2, 12, 2, 0xff, 0xfe, 0, 255,
        ]);
        bytes
    }

    #[test]
    fn a_discover_is_read() {
        let request = parse(&discover()).unwrap();
        assert_eq!((request.kind, request.xid), (Kind::Discover, 0xdead_beef));
        assert!(request.wants_broadcast());
        assert_eq!(request.parameters, Some(vec![1, 3, 6]));
        assert_eq!(
            request.client_id,
            Some(vec![255, 1, 2]),
            "a host name that is no text does no harm"
        );
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        for (at, byte) in [(0, 2), (1, 7), (2, 16), (2, 255), (236, 0), (242, 2), (242, 9)] {
            let mut bytes = discover();
            bytes[at] = byte;
            assert!(parse(&bytes).is_err(), "byte {at} = {byte}");
        }
        assert!(parse(&discover()[..239]).is_err());
        assert!(parse(&discover()[..240]).is_err(), "no message type");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..700)) { drop(parse(&bytes)); }

        #[test]
        fn garbage_behind_a_good_head_never_panics(tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = discover();
            bytes.truncate(FIXED_BYTES);
            bytes.extend(tail);
            drop(parse(&bytes));
        }
    }
}
