//! What a frame says, and the flags that make a kind of a plain one.

/// Of a request: its caller wants a stream.
const FLAG_OPEN: u8 = 0x10;
/// Of a request: its caller listens to progress.
const FLAG_WATCHED: u8 = 0x20;
/// Of an `Accepted`: it is one of many signs of life.
const FLAG_BEAT: u8 = 0x10;

/// What a frame says. Some are a plain kind with a flag on the wire: a reader that does not know the flag takes the
/// frame for its plain kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Do this and answer.
    Request = 1,
    /// Do this; no answer is wanted.
    Cast = 2,
    /// The answer.
    Reply = 3,
    /// The application's error.
    Refusal = 4,
    /// Somebody has begun.
    Accepted = 5,
    /// How far it is: a number that grows (u64), then the body.
    Progress = 6,
    /// The caller does not want it any more.
    Cancel = 7,
    /// The bus of the receiver ended it: the first byte of the body is an [`EndCode`], text follows.
    End = 8,
    /// One item of a stream: its number from 0 (u64), then the body.
    Item = 9,
    /// A stream is complete: how many items it had (u64), then the body of its end value.
    Finish = 10,
    /// A request whose caller wants a stream. Kind 1, flag 0x10: who does not know it answers that there is no such method.
    Open = 0xf1,
    /// A request whose caller wants to hear of its progress. Kind 1, flag 0x20: who does not know it just answers.
    Watched = 0xf2,
    /// Signs of life of many requests. Kind 5, flag 0x10: who does not know it sees that a request nobody knows has begun.
    Beat = 0xf5,
    /// Do this and record the end in a ticket; the body begins with a header (see `docs/rpc/results.md`).
    Submit = 32,
    /// The ticket of a submitted request has an end.
    Settled = 33,
}

impl Kind {
    /// Whether something is to be done.
    pub const fn is_request(self) -> bool {
        matches!(self, Self::Request | Self::Cast | Self::Open | Self::Watched)
    }

    /// Whether an answer goes to the caller's inbox.
    pub const fn is_answered(self) -> bool {
        matches!(self, Self::Request | Self::Open | Self::Watched)
    }

    /// The kind and the flag on the wire.
    pub(super) const fn on_wire(self) -> (u8, u8) {
        match self {
            Self::Open => (Self::Request as u8, FLAG_OPEN),
            Self::Watched => (Self::Request as u8, FLAG_WATCHED),
            Self::Beat => (Self::Accepted as u8, FLAG_BEAT),
            plain => (plain as u8, 0),
        }
    }

    /// Other flags than those that make a kind are none of its business.
    pub(super) const fn from_wire(kind: u8, flags: u8) -> Option<Self> {
        match Self::from_byte(kind) {
            Some(Self::Request) if flags & FLAG_OPEN != 0 => Some(Self::Open),
            Some(Self::Request) if flags & FLAG_WATCHED != 0 => Some(Self::Watched),
            Some(Self::Accepted) if flags & FLAG_BEAT != 0 => Some(Self::Beat),
            plain => plain,
        }
    }

    pub(super) const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Cast,
            3 => Self::Reply,
            4 => Self::Refusal,
            5 => Self::Accepted,
            6 => Self::Progress,
            7 => Self::Cancel,
            8 => Self::End,
            9 => Self::Item,
            10 => Self::Finish,
            32 => Self::Submit,
            33 => Self::Settled,
            _ => return None,
        })
    }
}

/// Why the bus of the receiver ended a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EndCode {
    /// The method is not known there.
    NoRoute = 1,
    /// Too much to do.
    Overloaded = 2,
    /// The deadline had passed.
    Expired = 3,
    /// Cancelled on request.
    Cancelled = 4,
    /// In the end of a ticket only: nobody answered by the deadline. JSON follows: `started`, `to`, `worker`, `why`.
    Lost = 32,
}

impl EndCode {
    /// The code with that number.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::NoRoute,
            2 => Self::Overloaded,
            3 => Self::Expired,
            4 => Self::Cancelled,
            32 => Self::Lost,
            _ => return None,
        })
    }
}
