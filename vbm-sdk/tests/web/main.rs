//! What browsers are served: logging in, who is refused, consoles, live state, the page. Over a real TCP socket on
//! loopback, with a client that sends what it is told to, byte by byte; VMs and networks are simulated.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod console;
mod guard;
#[path = "../platform/house.rs"]
#[expect(dead_code, reason = "each suite uses a part of it")]
mod house;
mod login;
mod page;
mod qemu;
mod raw;
mod site;
mod watch;
