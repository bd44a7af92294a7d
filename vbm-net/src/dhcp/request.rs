//! A request, read once into a type: what it lacks or spoils makes it no request.

use super::{
    Reason,
    options::{FIXED_BYTES, Options, code, relay_part},
};
use dhcproto::v4::borrowed::Message;
use std::net::Ipv4Addr;
use vbm_core::Mac;

/// The hardware type and length of Ethernet (RFC 1700).
const HTYPE_ETHERNET: u8 = 1;
const HLEN_ETHERNET: u8 = 6;
/// BOOTREQUEST (RFC 951).
const OP_REQUEST: u8 = 1;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Sub-options of option 82 (RFC 3527, RFC 5107).
const LINK_SELECTION: u8 = 5;
const SERVER_ID_OVERRIDE: u8 = 11;

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
    /// The relays that it went through.
    pub hops: u8,
    /// The transaction.
    pub xid: u32,
    /// For how many seconds the client has been asking.
    pub secs: u16,
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
    /// Option 51, in seconds.
    pub lease: Option<u32>,
    /// Option 54.
    pub server_id: Option<Ipv4Addr>,
    /// Option 57: the largest datagram the client takes, in bytes.
    pub max_size: Option<u16>,
    /// Option 55, in the client's order.
    pub parameters: Option<Vec<u8>>,
    /// Option 61, as it came: one form or another (RFC 4361), to us it is bytes.
    pub client_id: Option<Vec<u8>>,
    /// Option 60.
    pub vendor_class: Option<Vec<u8>>,
    /// Option 77.
    pub user_class: Option<Vec<u8>>,
    /// Option 80.
    pub rapid_commit: bool,
    /// Option 81, as it came.
    pub fqdn: Option<Vec<u8>>,
    /// Option 82, as it came.
    pub relay_agent: Option<Vec<u8>>,
    /// Option 93: the first architecture.
    pub architecture: Option<u16>,
    /// Option 97, as it came.
    pub machine_id: Option<Vec<u8>>,
    /// Option 118: the network that the client wants an address of.
    pub subnet: Option<Ipv4Addr>,
}

/// The broadcast flag (RFC 2131 section 2).
pub const FLAG_BROADCAST: u16 = 0x8000;

impl Request {
    /// A request with nothing but these.
    pub const fn new(kind: Kind, mac: Mac, xid: u32) -> Self {
        Self {
            kind,
            hops: 0,
            xid,
            secs: 0,
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            mac,
            requested: None,
            lease: None,
            server_id: None,
            max_size: None,
            parameters: None,
            client_id: None,
            vendor_class: None,
            user_class: None,
            rapid_commit: false,
            fqdn: None,
            relay_agent: None,
            architecture: None,
            machine_id: None,
            subnet: None,
        }
    }

    /// Whether the client asks for an answer by broadcast.
    pub const fn wants_broadcast(&self) -> bool {
        self.flags & FLAG_BROADCAST != 0
    }

    /// Whether it came by a relay.
    pub const fn relayed(&self) -> bool {
        !self.giaddr.is_unspecified()
    }

    /// The link that the relay names (RFC 3527).
    pub fn link_selection(&self) -> Option<Ipv4Addr> {
        self.relay_address(LINK_SELECTION)
    }

    /// Under which identifier the relay wants the server known (RFC 5107).
    pub fn server_id_override(&self) -> Option<Ipv4Addr> {
        self.relay_address(SERVER_ID_OVERRIDE)
    }

    fn relay_address(&self, part: u8) -> Option<Ipv4Addr> {
        let data = relay_part(self.relay_agent.as_deref()?, part)?;
        <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from)
    }

    /// Whether the client asks for this option.
    pub fn asks_for(&self, code: u8) -> bool {
        self.parameters.as_ref().is_some_and(|p| p.contains(&code))
    }
}

/// Reads the payload of a UDP datagram.
///
/// # Errors
/// Why it is no request.
pub fn parse(payload: &[u8]) -> Result<Request, Reason> {
    let &[op, htype, hlen, hops, ..] = payload else {
        return Err(Reason::TooShort);
    };
    if payload.len() < FIXED_BYTES {
        return Err(Reason::TooShort);
    }
    if op != OP_REQUEST {
        return Err(Reason::NotFromClient);
    }
    if htype != HTYPE_ETHERNET || hlen != HLEN_ETHERNET {
        return Err(Reason::NotEthernet);
    }
    if payload.get(FIXED_BYTES - MAGIC.len()..FIXED_BYTES) != Some(&MAGIC[..]) {
        return Err(Reason::Bootp);
    }
    let message = Message::new(payload).map_err(|_| Reason::TooShort)?;
    let mac = <[u8; 6]>::try_from(message.chaddr()).map_err(|_| Reason::NotEthernet)?;
    let options = Options::read(payload)?;
    let bytes = |code| options.get(code).map(<[u8]>::to_vec);
    Ok(Request {
        hops,
        secs: message.secs(),
        flags: message.flags().into(),
        ciaddr: message.ciaddr(),
        giaddr: message.giaddr(),
        requested: options.address(code::REQUESTED_ADDRESS)?,
        lease: options.exact(code::LEASE_TIME)?.map(u32::from_be_bytes),
        server_id: options.address(code::SERVER_ID)?,
        max_size: options.exact(code::MAX_SIZE)?.map(u16::from_be_bytes),
        parameters: bytes(code::PARAMETERS),
        client_id: bytes(code::CLIENT_ID),
        vendor_class: bytes(code::VENDOR_CLASS),
        user_class: bytes(code::USER_CLASS),
        rapid_commit: options.get(code::RAPID_COMMIT).is_some(),
        fqdn: bytes(code::FQDN),
        relay_agent: bytes(code::RELAY_AGENT),
        architecture: options
            .get(code::ARCHITECTURE)
            .and_then(|data| data.first_chunk())
            .map(|first| u16::from_be_bytes(*first)),
        machine_id: bytes(code::MACHINE_ID),
        subnet: options.address(code::SUBNET_SELECTION)?,
        ..Request::new(
            kind(options.get(code::MESSAGE_TYPE))?,
            Mac::new(mac),
            message.xid(),
        )
    })
}

const fn kind(option: Option<&[u8]>) -> Result<Kind, Reason> {
    match option {
        None => Err(Reason::NoMessageType),
        Some([1]) => Ok(Kind::Discover),
        Some([3]) => Ok(Kind::Request),
        Some([4]) => Ok(Kind::Decline),
        Some([7]) => Ok(Kind::Release),
        Some([8]) => Ok(Kind::Inform),
        Some(_) => Err(Reason::BadMessageType),
    }
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
        assert!(request.asks_for(3) && !request.asks_for(12));
        assert_eq!(
            request.client_id,
            Some(vec![255, 1, 2]),
            "a host name that is no text does no harm"
        );
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        for (at, byte, why) in [
            (0, 2, Reason::NotFromClient),
            (1, 7, Reason::NotEthernet),
            (2, 16, Reason::NotEthernet),
            (2, 255, Reason::NotEthernet),
            (236, 0, Reason::Bootp),
            (242, 2, Reason::BadMessageType),
            (242, 9, Reason::BadMessageType),
            (241, 2, Reason::OptionTruncated),
            (240, 254, Reason::NoMessageType),
            (254, 50, Reason::OptionTruncated),
            (243, 50, Reason::OptionLength),
            (243, 54, Reason::OptionLength),
            (243, 57, Reason::OptionLength),
            (243, 51, Reason::OptionLength),
        ] {
            let mut bytes = discover();
            bytes[at] = byte;
            assert_eq!(parse(&bytes).unwrap_err(), why, "byte {at} = {byte}");
        }
        assert_eq!(parse(&discover()[..239]).unwrap_err(), Reason::TooShort);
        assert_eq!(parse(&discover()[..3]).unwrap_err(), Reason::TooShort);
        assert_eq!(parse(&discover()[..240]).unwrap_err(), Reason::NoMessageType);
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
