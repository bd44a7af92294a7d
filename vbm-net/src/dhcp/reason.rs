//! Why a request was answered as it was, or not at all: one word each, counted.

/// Makes `Reason` and its `Counters`: each protocol has its own.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// Why a request was answered as it was, or not at all.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The word for it, in logs and counters.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }
        }

        /// How often each happened since the server was started.
        #[derive(Debug)]
        pub struct Counters([std::sync::atomic::AtomicU64; Reason::ALL.len()]);

        impl Default for Counters {
            fn default() -> Self {
                Self(std::array::from_fn(|_| std::sync::atomic::AtomicU64::new(0)))
            }
        }

        impl Counters {
            /// It happened once more.
            pub fn count(&self, reason: Reason) {
                if let Some(counter) = self.0.get(reason as usize) {
                    counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }

            /// How often it happened.
            pub fn of(&self, reason: Reason) -> u64 {
                self.0
                    .get(reason as usize)
                    .map_or(0, |c| c.load(std::sync::atomic::Ordering::Relaxed))
            }

            /// What happened at all, by word.
            pub fn seen(&self) -> std::collections::BTreeMap<&'static str, u64> {
                Reason::ALL
                    .iter()
                    .map(|r| (r.word(), self.of(*r)))
                    .filter(|(_, n)| *n > 0)
                    .collect()
            }
        }
    };
}
pub(crate) use reasons;

reasons! {
    /// DISCOVER was offered an address.
    Offered = "offered",
    /// DISCOVER was acknowledged at once (RFC 4039).
    RapidlyCommitted = "rapidly-committed",
    /// REQUEST for what was offered.
    Selected = "selected",
    /// REQUEST of a client that had the address before it was restarted.
    Rebooted = "rebooted",
    /// REQUEST sent to us alone, half way through a lease.
    Renewed = "renewed",
    /// REQUEST sent to everybody, near the end of a lease.
    Rebound = "rebound",
    /// INFORM was told the settings.
    Informed = "informed",
    /// RELEASE: the address was given back.
    Released = "released",
    /// DECLINE: somebody else uses the address. An alarm.
    Declined = "declined",
    /// NAK: the address is not the client's.
    NakAddress = "nak-address",
    /// NAK: the address is of another network.
    NakNetwork = "nak-network",
    /// NAK: we know of no lease, and nobody else serves here.
    NakUnknown = "nak-unknown",
    /// The frame holds no datagram for a DHCP server.
    NotDatagram = "not-datagram",
    /// The message is shorter than its fixed part.
    TooShort = "too-short",
    /// The message is a server's.
    NotFromClient = "not-from-client",
    /// The hardware address is not Ethernet.
    NotEthernet = "not-ethernet",
    /// BOOTP, not DHCP.
    Bootp = "bootp",
    /// An option runs past the end of its field.
    OptionTruncated = "option-truncated",
    /// An option has a length that it cannot have.
    OptionLength = "option-length",
    /// There is no message type.
    NoMessageType = "no-message-type",
    /// The message type is not a client's.
    BadMessageType = "bad-message-type",
    /// The frame is from another MAC than the message.
    ForeignMac = "foreign-mac",
    /// The MAC is no port's, and there is no pool.
    UnknownMac = "unknown-mac",
    /// It asks too often.
    RateLimited = "rate-limited",
    /// It came by a relay that is not trusted.
    RelayNotTrusted = "relay-not-trusted",
    /// It went through too many relays.
    TooManyHops = "too-many-hops",
    /// It is for a network that is not served.
    NoSubnet = "no-subnet",
    /// It chose another server.
    OtherServer = "other-server",
    /// REQUEST for nothing.
    NothingAsked = "nothing-asked",
    /// RELEASE or DECLINE of what the client does not have.
    NotHeld = "not-held",
    /// INFORM from an address that is not the client's.
    InformForeign = "inform-foreign",
    /// A lease that we do not know, where others may serve.
    UnknownLease = "unknown-lease",
    /// The pool is used up.
    PoolExhausted = "pool-exhausted",
    /// The address rests, since somebody else was found to use it.
    Quarantined = "quarantined",
    /// The lease could not be made durable, so it was not acknowledged.
    StoreFailed = "store-failed",
    /// The reply could not be put into bytes.
    NotEncoded = "not-encoded",
    /// The reply did not fit into the link's queue.
    NotSent = "not-sent",
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_reason_has_a_word_and_a_counter_of_its_own() {
        let words: BTreeSet<_> = Reason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        let counters = Counters::default();
        for (n, reason) in Reason::ALL.iter().enumerate() {
            (0..=n).for_each(|_| counters.count(*reason));
        }
        for (n, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(counters.of(*reason), n as u64 + 1, "{}", reason.word());
        }
        assert_eq!(counters.seen().len(), Reason::ALL.len());
    }
}
