//! Why a message was answered as it was, or not at all: one word each, counted.

crate::dhcp::reason::reasons! {
    /// SOLICIT was told what there is.
    Advertised = "advertised",
    /// SOLICIT was given it at once.
    RapidlyCommitted = "rapidly-committed",
    /// REQUEST for what was advertised.
    Given = "given",
    /// RENEW: before the end of its lifetime, from us.
    Renewed = "renewed",
    /// REBIND: near the end of its lifetime, from anybody.
    Rebound = "rebound",
    /// CONFIRM: its addresses are right here.
    Confirmed = "confirmed",
    /// CONFIRM: they are not, it shall ask anew.
    NotConfirmed = "not-confirmed",
    /// INFORMATION-REQUEST was told the settings.
    Informed = "informed",
    /// RELEASE: the address was given back.
    Released = "released",
    /// DECLINE: somebody else uses the address. An alarm.
    Declined = "declined",
    /// REQUEST for an address of another network.
    NotOnLink = "not-on-link",
    /// It asks for nothing that there is: temporary addresses, prefixes.
    NothingToGive = "nothing-to-give",
    /// It was sent to us alone, which we never allowed: it shall ask all servers.
    UseMulticast = "use-multicast",
    /// A router solicitation, which is answered.
    Solicited = "solicited",
    /// The frame holds nothing for us.
    NotForUs = "not-for-us",
    /// The message is shorter than its head.
    TooShort = "too-short",
    /// The message is a server's.
    NotFromClient = "not-from-client",
    /// It came by a relay.
    Relayed = "relayed",
    /// The message type is not known.
    UnknownType = "unknown-type",
    /// An option runs past the end of what it is in.
    OptionTruncated = "option-truncated",
    /// An option has a length that it cannot have.
    OptionLength = "option-length",
    /// It has more associations or addresses than anybody needs.
    TooMany = "too-many",
    /// It does not say who it is, or says it too long.
    NoClientId = "no-client-id",
    /// It has to name a server, and does not.
    NoServerId = "no-server-id",
    /// It must not name a server, and does.
    ServerIdGiven = "server-id-given",
    /// It names another server.
    OtherServer = "other-server",
    /// INFORMATION-REQUEST with an association.
    AssociationGiven = "association-given",
    /// RELEASE, DECLINE or CONFIRM without an address.
    NothingAsked = "nothing-asked",
    /// It was sent to us alone, and such messages must not be.
    UnicastRefused = "unicast-refused",
    /// It comes from an address that is neither of the link nor the port's.
    ForeignSource = "foreign-source",
    /// The MAC is no port's with an address of IPv6.
    UnknownMac = "unknown-mac",
    /// It asks too often.
    RateLimited = "rate-limited",
    /// The address rests, since somebody else was found to use it.
    Quarantined = "quarantined",
    /// The reply could not be put into bytes.
    NotEncoded = "not-encoded",
    /// The frame did not fit into the link's queue.
    NotSent = "not-sent",
}
