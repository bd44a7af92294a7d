//! The handle of floating IPs.

use super::{
    Client,
    call::{Call, Listing, json},
    nouns::readable,
    path::ApiPath,
};
use crate::api::{Accepted, AttachFloatingIp, CreateFloatingIp, FloatingIpView};
use hyper::Method;
use vbm_core::{Error, FloatingPool};

/// Floating IPs that are kept. Each is known by its name, its id and its address.
#[derive(Clone, Debug)]
pub struct FloatingIps(pub(super) Client);

readable!(FloatingIps, "floating-ips", "floating-ip", FloatingIpView);

impl FloatingIps {
    /// Keeps an address: the one that is named, or the first free one of the pool.
    pub fn create(&self, request: CreateFloatingIp) -> Call<FloatingIpView> {
        Call::new(&self.0, Method::POST, Ok(ApiPath::of("floating-ips")), json).with_json(&request)
    }

    /// Keeps an address no more. [`vbm_core::ErrorKind::Conflict`] while a port has it.
    pub fn delete(&self, floating_ip: impl AsRef<str>) -> Call<FloatingIpView> {
        let path = ApiPath::one("floating-ips", "floating-ip", floating_ip.as_ref());
        Call::new(&self.0, Method::DELETE, path, json)
    }

    /// Lets it lead to a VM.
    pub fn attach(
        &self,
        floating_ip: impl AsRef<str>,
        request: AttachFloatingIp,
    ) -> Call<Accepted<FloatingIpView>> {
        let path = ApiPath::one("floating-ips", "floating-ip", floating_ip.as_ref());
        Call::new(&self.0, Method::PUT, path.map(|p| p.sub("target")), json).with_json(&request)
    }

    /// Lets it lead nowhere; it is kept.
    pub fn detach(&self, floating_ip: impl AsRef<str>) -> Call<Accepted<FloatingIpView>> {
        let path = ApiPath::one("floating-ips", "floating-ip", floating_ip.as_ref());
        Call::new(&self.0, Method::DELETE, path.map(|p| p.sub("target")), json)
    }

    /// From which addresses one is picked where none is named.
    pub fn pool(&self) -> Call<FloatingPool> {
        Call::new(&self.0, Method::GET, Ok(ApiPath::of("floating-pool")), json)
    }

    /// Says from which addresses one is picked from now on; what is kept stays.
    pub fn set_pool(&self, pool: FloatingPool) -> Call<FloatingPool> {
        Call::new(&self.0, Method::PUT, Ok(ApiPath::of("floating-pool")), json).with_json(&pool)
    }
}

impl Listing<FloatingIpView> {
    /// Only those that lead into this network.
    pub fn network(self, network: impl Into<String>) -> Self {
        self.only_network(network)
    }

    /// Only those that lead to this VM.
    pub fn vm(self, vm: impl Into<String>) -> Self {
        self.only_vm(vm)
    }
}
