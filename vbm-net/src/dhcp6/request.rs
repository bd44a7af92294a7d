//! A message of a client, read once into a type: what it spoils makes it none.

use super::{
    Reason,
    options::{code, walk},
};
use std::net::Ipv6Addr;

/// The most associations that a message may have. A guest has one for each interface, and each NIC has a server of its own.
pub const ASSOCIATIONS_MAX: usize = 8;
/// The most addresses in all of them: what is told of each fits into one datagram.
pub const ADDRESSES_MAX: usize = 16;
/// The longest identifier (RFC 8415 section 11.1): two bytes of type, 128 of it.
pub const DUID_MAX_BYTES: usize = 130;
/// The shortest: a type, and something.
const DUID_MIN_BYTES: usize = 3;
/// Type and transaction.
const HEAD_BYTES: usize = 4;
/// In an association, before its options: its id, T1 and T2; its id alone if it is temporary.
const IA_HEAD_BYTES: usize = 12;
const IA_TA_HEAD_BYTES: usize = 4;

/// What a client may ask (RFC 8415 section 7.3), with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Who serves here?
    Solicit = 1,
    /// I take what you said.
    Request = 3,
    /// Are my addresses right here?
    Confirm = 4,
    /// I go on with this; to the server that gave it.
    Renew = 5,
    /// I go on with this; to any server.
    Rebind = 6,
    /// I give it back.
    Release = 8,
    /// Somebody uses that address.
    Decline = 9,
    /// Tell me the rest, I need no address.
    InformationRequest = 11,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Solicit,
        Self::Request,
        Self::Confirm,
        Self::Renew,
        Self::Rebind,
        Self::Release,
        Self::Decline,
        Self::InformationRequest,
    ];

    const fn of(number: u8) -> Result<Self, Reason> {
        Ok(match number {
            1 => Self::Solicit,
            3 => Self::Request,
            4 => Self::Confirm,
            5 => Self::Renew,
            6 => Self::Rebind,
            8 => Self::Release,
            9 => Self::Decline,
            11 => Self::InformationRequest,
            // Advertise, Reply, Reconfigure.
            2 | 7 | 10 => return Err(Reason::NotFromClient),
            // Relay-forward; Relay-reply.
            12 => return Err(Reason::Relayed),
            13 => return Err(Reason::NotFromClient),
            _ => return Err(Reason::UnknownType),
        })
    }
}

/// What an association is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    /// Addresses (IA_NA).
    Addresses,
    /// Addresses that change all the time (IA_TA).
    Temporary,
    /// Prefixes to delegate (IA_PD).
    Prefixes,
}

/// An identity association: what a client wants for one of its interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// What for.
    pub use_for: Use,
    /// The client's number for it.
    pub iaid: u32,
    /// The addresses it has or would like. Of prefixes none is read.
    pub addresses: Vec<Ipv6Addr>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it asks.
    pub kind: Kind,
    /// The transaction: 24 bits.
    pub transaction: u32,
    /// Who asks (1), as it came: to us it is bytes.
    pub client_id: Option<Vec<u8>>,
    /// Who shall answer (2).
    pub server_id: Option<Vec<u8>>,
    /// What for, in the client's order.
    pub associations: Vec<Association>,
    /// What it wants to be told (6); `None`: it does not say.
    pub wants: Option<Vec<u16>>,
    /// Whether it takes what it asks for at once (14).
    pub rapid_commit: bool,
}

impl Request {
    /// A message with nothing but these.
    pub const fn new(kind: Kind, transaction: u32) -> Self {
        Self {
            kind,
            transaction,
            client_id: None,
            server_id: None,
            associations: Vec::new(),
            wants: None,
            rapid_commit: false,
        }
    }

    /// Whether this option is to be told: who does not say what it wants is told what everybody needs.
    pub fn wants(&self, code: u16) -> bool {
        match &self.wants {
            Some(wants) => wants.contains(&code),
            None => matches!(code, super::options::code::DNS | super::options::code::SEARCH),
        }
    }

    /// All addresses that it has or would like.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        self.associations.iter().flat_map(|a| a.addresses.iter().copied())
    }
}

/// Reads the payload of a UDP datagram.
///
/// # Errors
/// Why it is no client's message.
pub fn parse(payload: &[u8]) -> Result<Request, Reason> {
    let Some((&[kind, a, b, c], options)) = payload.split_first_chunk::<HEAD_BYTES>() else {
        return Err(Reason::TooShort);
    };
    let mut request = Request::new(Kind::of(kind)?, u32::from_be_bytes([0, a, b, c]));
    for option in walk(options) {
        let (code, data) = option?;
        match code {
            // Of what may stand once only the first counts.
            code::CLIENT_ID => keep(&mut request.client_id, duid(data)?),
            code::SERVER_ID => keep(&mut request.server_id, duid(data)?),
            code::OPTION_REQUEST => keep(&mut request.wants, codes(data)?),
            code::RAPID_COMMIT if data.is_empty() => request.rapid_commit = true,
            code::RAPID_COMMIT => return Err(Reason::OptionLength),
            code::ELAPSED if data.len() != 2 => return Err(Reason::OptionLength),
            code::IA_NA => request.associations.push(association(Use::Addresses, data)?),
            code::IA_TA => request.associations.push(association(Use::Temporary, data)?),
            code::IA_PD => request.associations.push(association(Use::Prefixes, data)?),
            _ => {}
        }
        if request.associations.len() > ASSOCIATIONS_MAX || request.addresses().count() > ADDRESSES_MAX {
            return Err(Reason::TooMany);
        }
    }
    Ok(request)
}

fn keep<T>(field: &mut Option<T>, value: T) {
    field.get_or_insert(value);
}

fn duid(data: &[u8]) -> Result<Vec<u8>, Reason> {
    if (DUID_MIN_BYTES..=DUID_MAX_BYTES).contains(&data.len()) {
        Ok(data.to_vec())
    } else {
        Err(Reason::OptionLength)
    }
}

fn codes(data: &[u8]) -> Result<Vec<u16>, Reason> {
    let (pairs, rest) = data.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|p| u16::from_be_bytes(*p)).collect())
    } else {
        Err(Reason::OptionLength)
    }
}

fn association(use_for: Use, data: &[u8]) -> Result<Association, Reason> {
    let head = if use_for == Use::Temporary {
        IA_TA_HEAD_BYTES
    } else {
        IA_HEAD_BYTES
    };
    let (head, options) = data.split_at_checked(head).ok_or(Reason::OptionLength)?;
    let iaid = head.first_chunk().ok_or(Reason::OptionLength)?;
    let mut addresses = Vec::new();
    for option in walk(options) {
        let (code, data) = option?;
        if code == code::IA_ADDRESS {
            // Preferred and valid lifetime behind it, then options of its own, which say nothing to a server.
            if data.len() < 24 {
                return Err(Reason::OptionLength);
            }
            let octets: &[u8; 16] = data.first_chunk().ok_or(Reason::OptionLength)?;
            addresses.push(Ipv6Addr::from(*octets));
        }
        if addresses.len() > ADDRESSES_MAX {
            return Err(Reason::TooMany);
        }
    }
    Ok(Association {
        use_for,
        iaid: u32::from_be_bytes(*iaid),
        addresses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A SOLICIT by hand, as it stands on the wire.
    fn solicit() -> Vec<u8> {
        let mut bytes = vec![1, 0xab, 0xcd, 0xef];
        bytes.extend([0, 1, 0, 10, 0, 3, 0, 1, 0x52, 0x54, 0, 1, 2, 3]);
        bytes.extend([0, 6, 0, 4, 0, 23, 0, 24]);
        bytes.extend([0, 8, 0, 2, 0, 0]);
        bytes.extend([0, 14, 0, 0]);
        bytes.extend([0, 3, 0, 40, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0, 5, 0, 24, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2]);
        bytes
    }

    #[test]
    fn a_solicit_is_read() {
        let request = parse(&solicit()).unwrap();
        assert_eq!((request.kind, request.transaction), (Kind::Solicit, 0x00ab_cdef));
        assert_eq!(
            request.client_id.as_deref(),
            Some(&[0, 3, 0, 1, 0x52, 0x54, 0, 1, 2, 3][..])
        );
        assert!(request.rapid_commit && request.server_id.is_none());
        assert!(request.wants(23) && !request.wants(31));
        assert_eq!(
            request.associations,
            [Association {
                use_for: Use::Addresses,
                iaid: 7,
                addresses: vec!["fd00::9".parse().unwrap()]
            }]
        );
    }

    #[test]
    fn another_decoder_reads_the_same() {
        use dhcproto::{Decodable, Decoder, v6};
        let bytes = solicit();
        let message = v6::Message::decode(&mut Decoder::new(&bytes)).unwrap();
        let Some(v6::DhcpOption::IANA(ia)) = message.opts().get(v6::OptionCode::IANA) else {
            panic!("no IA_NA")
        };
        assert_eq!(ia.id, 7);
        assert_eq!(message.msg_type(), v6::MessageType::Solicit);
    }

    #[test]
    fn what_is_no_message_of_a_client_is_told_why() {
        for (at, byte, why) in [
            (0, 0, Reason::UnknownType),
            (0, 2, Reason::NotFromClient),
            (0, 7, Reason::NotFromClient),
            (0, 10, Reason::NotFromClient),
            (0, 12, Reason::Relayed),
            (0, 13, Reason::NotFromClient),
            (0, 14, Reason::UnknownType),
            (7, 2, Reason::OptionLength),
            (7, 255, Reason::OptionTruncated),
            (21, 3, Reason::OptionLength),
            (29, 3, Reason::OptionLength),
            (35, 1, Reason::OptionLength),
            (39, 11, Reason::OptionLength),
            (55, 23, Reason::OptionLength),
            (55, 255, Reason::OptionTruncated),
        ] {
            let mut bytes = solicit();
            bytes[at] = byte;
            assert_eq!(parse(&bytes).unwrap_err(), why, "byte {at} = {byte}");
        }
        for length in 0..4 {
            assert_eq!(parse(&solicit()[..length]).unwrap_err(), Reason::TooShort);
        }
        for length in 5..solicit().len() {
            let cut = parse(&solicit()[..length]);
            assert!(cut.is_err() || cut.unwrap().associations.is_empty(), "{length}");
        }
    }

    #[test]
    fn more_than_anybody_needs_is_refused() {
        let mut bytes = vec![1, 0, 0, 1];
        for n in 0..=ASSOCIATIONS_MAX {
            bytes.extend([0, 3, 0, 12]);
            bytes.extend(u32::try_from(n).unwrap().to_be_bytes());
            bytes.extend([0; 8]);
            let read = parse(&bytes);
            if n < ASSOCIATIONS_MAX {
                assert_eq!(read.unwrap().associations.len(), n + 1);
            } else {
                assert_eq!(read.unwrap_err(), Reason::TooMany);
            }
        }
        let mut ia = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        for _ in 0..=ADDRESSES_MAX {
            ia.extend([0, 5, 0, 24]);
            ia.extend([0; 24]);
        }
        let mut bytes = vec![1, 0, 0, 1];
        super::super::options::put(&mut bytes, 3, |out| out.extend(ia));
        assert_eq!(parse(&bytes).unwrap_err(), Reason::TooMany);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..700)) { drop(parse(&bytes)); }

        #[test]
        fn a_good_message_with_a_wrong_byte_never_panics(at in 0usize..88, byte: u8, cut in 0usize..88) {
            let mut bytes = solicit();
            let at = at.min(bytes.len() - 1);
            bytes[at] = byte;
            drop(parse(&bytes));
            bytes.truncate(cut);
            drop(parse(&bytes));
        }
    }
}
