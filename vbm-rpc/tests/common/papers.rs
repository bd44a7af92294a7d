//! Certificates in a folder: of an authority, of a server at 127.0.0.1, of a client, and of another authority.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::path::PathBuf;
use tempfile::TempDir;

pub(crate) struct Papers(TempDir);

impl Papers {
    pub(crate) fn make() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let write = |name: String, text: String| {
            std::fs::write(dir.path().join(name), text).expect("a file in it");
        };
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().expect("a key");
            let ca = CertifiedIssuer::self_signed(params, key).expect("an authority");
            write(format!("{name}.pem"), ca.pem());
            ca
        };
        let (ca, _other) = (authority("ca"), authority("other-ca"));
        for (name, names) in [
            ("server", vec!["127.0.0.1".to_owned()]),
            ("client", vec!["node".to_owned()]),
        ] {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(names).expect("names");
            let certificate = params.signed_by(&key, &ca).expect("a certificate");
            write(format!("{name}.pem"), certificate.pem());
            write(format!("{name}.key"), key.serialize_pem());
        }
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What a server is configured with that has a TLS port.
    pub(crate) fn configuration(&self, tls_port: u16, clients: &str) -> String {
        let path = |name| self.path(name).display().to_string();
        format!(
            "tls-port {tls_port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients {clients}\n",
            path("server.pem"),
            path("server.key"),
            path("ca.pem")
        )
    }
}
