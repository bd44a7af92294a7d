//! The VirtualBox driver on the fake VBoxManage: the driver's promises, and what goes wrong.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;
mod vbox;

#[path = "vbox/accidents.rs"]
mod accidents;
#[path = "vbox/strangers.rs"]
mod strangers;

#[path = "vbox/matrix.rs"]
mod matrix;

use vbox::FakeBench;

mod promises {
    use super::FakeBench;
    vbm_hyper::conformance_suite!(FakeBench::boxed());
}
