//! What somebody can do who reads Redis, writes to it, or has taken over a member: nothing that counts.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;
mod guarded;

#[path = "security/copies.rs"]
mod copies;
#[path = "security/entries.rs"]
mod entries;
#[path = "security/kept.rs"]
mod kept;
#[path = "security/keys.rs"]
mod keys;
#[path = "security/letters.rs"]
mod letters;
#[path = "security/members.rs"]
mod members;
#[path = "security/rights.rs"]
mod rights;
#[path = "security/world.rs"]
mod world;
