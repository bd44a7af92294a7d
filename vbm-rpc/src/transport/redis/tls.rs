//! TLS to Redis: the files, and which cryptography.
//!
//! The files are read when a transport connects, so that a program that waits for them gets an error it can show.
//! Certificates that were renewed are taken by the next transport, not by connections made from this one.

use super::config::RedisConfig;
use crate::BusError;
use redis::{ClientTlsConfig, TlsCertificates};
use std::path::{Path, PathBuf};

/// The largest file of certificates.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Where certificates and keys are.
#[derive(Clone, Debug, Default)]
pub(super) struct TlsFiles {
    pub(super) ca: Option<PathBuf>,
    /// Certificate and key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

/// Reads the files; nothing when the address is not one of TLS.
pub(super) async fn read(config: &RedisConfig) -> Result<Option<TlsCertificates>, BusError> {
    if !config.secure {
        if config.tls.ca.is_some() || config.tls.client.is_some() {
            return Err(BusError::InvalidConfig {
                given: config.to_string(),
                why: "certificates were given, but the address is not one of TLS: write rediss".into(),
            });
        }
        return Ok(None);
    }
    choose_cryptography();
    let root_cert = match &config.tls.ca {
        Some(path) => Some(pem(config, path, "CA certificate", "CERTIFICATE").await?),
        None => None,
    };
    let client_tls = match &config.tls.client {
        Some((certificate, key)) => Some(ClientTlsConfig {
            client_cert: pem(config, certificate, "client certificate", "CERTIFICATE").await?,
            client_key: pem(config, key, "key of the client certificate", "PRIVATE KEY").await?,
        }),
        None => None,
    };
    Ok(Some(TlsCertificates {
        client_tls,
        root_cert,
    }))
}

/// rustls takes the cryptography of the process, or the only one that was compiled in, and panics when there are two.
/// A program that has chosen keeps its choice.
fn choose_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread has chosen this very moment.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

async fn pem(config: &RedisConfig, path: &Path, what: &str, label: &str) -> Result<Vec<u8>, BusError> {
    let refuse = |why: String, fix: String| BusError::Unsuitable {
        server: config.to_string(),
        why: format!("the {what} {} {why}", path.display()),
        fix,
    };
    let unreadable = |error: std::io::Error| {
        refuse(
            format!("cannot be read: {error}"),
            "give the path of a PEM file that this user can read".into(),
        )
    };
    let size = tokio::fs::metadata(path).await.map_err(unreadable)?.len();
    if size > FILE_MAX_BYTES {
        return Err(refuse(
            format!("has {size} bytes; {FILE_MAX_BYTES} are allowed"),
            "give the path of a PEM file with certificates only".into(),
        ));
    }
    let content = tokio::fs::read(path).await.map_err(unreadable)?;
    let text = String::from_utf8_lossy(&content);
    let found = text
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.contains(label));
    if !found {
        return Err(refuse(
            format!("holds no {label} in PEM"),
            format!("give the path of a file with a line -----BEGIN {label}-----"),
        ));
    }
    Ok(content)
}
