//! The platform of VBM.
//!
//! | module | for |
//! |---|---|
//! | [`server`] | those who embed the platform: the whole daemon as a value |
//! | [`client`] | those who talk to a daemon |
//! | [`api`] | the types of the HTTP API, which both share |
//! | [`controller`], [`agent`] | the two halves of the daemon, and [`methods`], what they say to each other |
//! | [`store`] | where records live, and what a store of your own must pass |
//! | [`http`] | the API as an `axum::Router` |
//! | [`cli`], [`doctor`] | the command `vbm` |

pub mod agent;
pub mod api;
pub mod cli;
pub mod client;
pub mod controller;
pub mod dev;
pub mod doctor;
mod fetch;
pub mod http;
pub mod methods;
pub(crate) mod records;
pub mod server;
pub mod source;
pub mod store;
mod url_source;
