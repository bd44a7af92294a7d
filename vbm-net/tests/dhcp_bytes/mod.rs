//! Frames of DHCP clients by hand, byte by byte: nothing of the server's own code.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

use std::net::Ipv4Addr;
use vbm_core::Mac;

#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) kind: u8,
    pub(crate) mac: Mac,
    pub(crate) giaddr: Ipv4Addr,
    pub(crate) ciaddr: Ipv4Addr,
    pub(crate) broadcast: bool,
    pub(crate) requested: Option<Ipv4Addr>,
    pub(crate) server_id: Option<Ipv4Addr>,
}

/// The fixed part of a message with its cookie, then these options.
pub(crate) fn message(ask: &Ask, options: &[u8]) -> Vec<u8> {
    let mut m = vec![0u8; 240];
    m[..4].copy_from_slice(&[1, 1, 6, u8::from(!ask.giaddr.is_unspecified())]);
    m[4..8].copy_from_slice(&[9, 8, 7, 6]);
    m[10] = u8::from(ask.broadcast) << 7;
    m[12..16].copy_from_slice(&ask.ciaddr.octets());
    m[24..28].copy_from_slice(&ask.giaddr.octets());
    m[28..34].copy_from_slice(&ask.mac.octets());
    m[236..].copy_from_slice(&[99, 130, 83, 99]);
    m.extend(options);
    m
}

pub(crate) fn options(ask: &Ask) -> Vec<u8> {
    let mut all = vec![53, 1, ask.kind];
    for (code, address) in [(50, ask.requested), (54, ask.server_id)] {
        if let Some(address) = address {
            all.extend([code, 4]);
            all.extend(address.octets());
        }
    }
    all.push(255);
    all
}

pub(crate) fn request_frame(source: Mac, ask: &Ask) -> Vec<u8> {
    frame(source, ask.ciaddr, &message(ask, &options(ask)))
}

/// By broadcast, from the client's port, without a UDP checksum.
pub(crate) fn frame(source: Mac, from: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(source.octets());
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((28 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    frame.extend(from.octets());
    frame.extend([255; 4]);
    frame.extend([0, 68, 0, 67]);
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// An honest DISCOVER.
pub(crate) fn discover(mac: Mac) -> Ask {
    Ask {
        kind: 1,
        mac,
        giaddr: Ipv4Addr::UNSPECIFIED,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        broadcast: true,
        requested: None,
        server_id: None,
    }
}

/// Bad packets, each with the word under which it is counted.
pub(crate) fn corpus(mac: Mac) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let ask = discover(mac);
    let good = message(&ask, &[53, 1, 1, 255]);
    let with = |tail: &[u8]| message(&ask, tail);
    let spoilt = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let overloaded = |value: u8, file: &[u8], sname: &[u8]| {
        let mut bytes = with(&[53, 1, 1, 52, 1, value, 255]);
        bytes[108..108 + file.len()].copy_from_slice(file);
        bytes[44..44 + sname.len()].copy_from_slice(sname);
        bytes
    };
    let mut all = vec![
        ("nothing", Vec::new(), "too-short"),
        ("three bytes", vec![1, 1, 6], "too-short"),
        ("one byte less than a message", good[..239].to_vec(), "too-short"),
        ("no option", good[..240].to_vec(), "no-message-type"),
        ("a server's", spoilt(0, 2), "not-from-client"),
        ("no such operation", spoilt(0, 0), "not-from-client"),
        ("infiniband", spoilt(1, 32), "not-ethernet"),
        ("a long hardware address", spoilt(2, 255), "not-ethernet"),
        ("no hardware address", spoilt(2, 0), "not-ethernet"),
        ("BOOTP", spoilt(236, 0), "bootp"),
        ("another's MAC", spoilt(33, 0x99), "foreign-mac"),
        ("by a relay", spoilt(24, 10), "relay-not-trusted"),
        ("no message type", with(&[12, 1, b'a', 255]), "no-message-type"),
        ("an OFFER", with(&[53, 1, 2, 255]), "bad-message-type"),
        ("message type 0", with(&[53, 1, 0, 255]), "bad-message-type"),
        ("an empty message type", with(&[53, 0, 255]), "bad-message-type"),
        (
            "two message types",
            with(&[53, 1, 1, 53, 1, 3, 255]),
            "bad-message-type",
        ),
        (
            "a code at the very end",
            with(&[53, 1, 1, 12]),
            "option-truncated",
        ),
        (
            "longer than the packet",
            with(&[53, 1, 1, 12, 200, 1]),
            "option-truncated",
        ),
        ("longest, empty", with(&[53, 1, 1, 82, 255]), "option-truncated"),
        (
            "a short address",
            with(&[53, 1, 1, 50, 3, 1, 2, 3, 255]),
            "option-length",
        ),
        (
            "a long address",
            with(&[53, 1, 1, 54, 5, 1, 2, 3, 4, 5, 255]),
            "option-length",
        ),
        ("a short size", with(&[53, 1, 1, 57, 1, 9, 255]), "option-length"),
        (
            "a long time",
            with(&[53, 1, 1, 51, 8, 0, 0, 0, 0, 0, 0, 0, 9, 255]),
            "option-length",
        ),
        ("no network", with(&[53, 1, 1, 118, 0, 255]), "option-length"),
        ("overload of nothing", overloaded(0, &[], &[]), "option-length"),
        ("overload of four", overloaded(4, &[], &[]), "option-length"),
        (
            "overload that leads in a circle and spoils the type",
            overloaded(3, &[52, 1, 3, 255], &[52, 1, 3, 53, 1, 1, 255]),
            "bad-message-type",
        ),
        (
            "file runs over",
            overloaded(1, &[12, 250], &[]),
            "option-truncated",
        ),
        (
            "sname runs over",
            overloaded(2, &[], &[12, 100]),
            "option-truncated",
        ),
        ("REQUEST of nothing", with(&[53, 1, 3, 255]), "nothing-asked"),
        ("RELEASE of nothing", with(&[53, 1, 7, 255]), "not-held"),
        ("DECLINE of nothing", with(&[53, 1, 4, 255]), "not-held"),
        ("INFORM from nowhere", with(&[53, 1, 8, 255]), "inform-foreign"),
        (
            "SELECTING another",
            with(&[53, 1, 3, 54, 4, 9, 9, 9, 9, 50, 4, 10, 0, 0, 1, 255]),
            "other-server",
        ),
    ];
    // Hundreds of parts of one option are one option.
    let mut parts = vec![53, 1, 1];
    for _ in 0..500 {
        parts.extend([50, 0]);
    }
    all.push(("an option in 500 empty parts", with(&parts), "option-length"));
    all
}
