//! What the person who makes a VM gives it to read: user data and keys. The metadata service of its networks tells it.

use crate::{Error, error::invalid, limits};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a VM is given to read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GuestData {
    /// What cloud-init runs or reads. Never shown again: it may hold secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<UserData>,
    /// Public keys that may log in, one line of `authorized_keys` each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
}

/// Bytes for a VM, in base64 (RFC 4648): at most 16 KiB decoded.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct UserData(String);

/// Only its length is shown.
impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserData({} characters)", self.0.len())
    }
}

impl UserData {
    /// From bytes, such as those of a file.
    pub fn new(bytes: &[u8]) -> Self {
        Self(BASE64_STANDARD.encode(bytes))
    }

    /// The bytes.
    ///
    /// # Errors
    /// It is not base64, or too large.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        let most = limits::USER_DATA_MAX_BYTES;
        let too_large = |bytes: usize| {
            invalid(
                "the user data is too large",
                format!("it has {bytes} bytes, {most} are allowed"),
                "compress it with gzip, or let it fetch the rest",
            )
        };
        // Not even decoded when it cannot fit.
        let about = self.0.len() / 4 * 3;
        if about > most + 2 {
            return Err(too_large(about));
        }
        let bytes = BASE64_STANDARD.decode(&self.0).map_err(|e| {
            invalid(
                "the user data cannot be read",
                format!("it is not base64: {e}"),
                "encode it with `base64 -w0 FILE`",
            )
        })?;
        if bytes.len() > most {
            return Err(too_large(bytes.len()));
        }
        Ok(bytes)
    }
}

impl GuestData {
    /// Checks sizes, and that each key is one line.
    ///
    /// # Errors
    /// The first that is too large or no key.
    pub fn check(&self) -> Result<(), Error> {
        if let Some(data) = &self.user_data {
            data.bytes()?;
        }
        if self.ssh_keys.len() > limits::VM_MAX_SSH_KEYS {
            return Err(invalid(
                "too many SSH keys",
                format!(
                    "{} were given, {} are allowed",
                    self.ssh_keys.len(),
                    limits::VM_MAX_SSH_KEYS
                ),
                "give fewer, and let the guest fetch the rest",
            ));
        }
        self.ssh_keys.iter().try_for_each(|key| check_key(key))
    }
}

/// One line: a type, then base64.
fn check_key(key: &str) -> Result<(), Error> {
    let head: String = key.chars().take(24).collect();
    let refuse = |why: String| {
        Err(invalid(
            format!("'{}' is not an SSH key", head.escape_debug()),
            why,
            "give the contents of a public key's file, such as ~/.ssh/id_ed25519.pub",
        ))
    };
    if key.len() > limits::SSH_KEY_MAX_BYTES {
        return refuse(format!(
            "it has {} bytes, {} are allowed",
            key.len(),
            limits::SSH_KEY_MAX_BYTES
        ));
    }
    if key.contains("PRIVATE KEY") {
        return refuse("it is a private key, which must never leave its owner".into());
    }
    let is_key = |text: &str| {
        let mut words = text.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let known = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"]
            .iter()
            .any(|p| kind.starts_with(p));
        known
            && words
                .next()
                .is_some_and(|body| BASE64_STANDARD.decode(body).is_ok())
    };
    // Options may stand before the type (sshd(8)).
    let is_one = is_key(key) || key.char_indices().any(|(at, c)| c == ' ' && is_key(&key[at..]));
    if key.chars().any(char::is_control) || !is_one {
        return refuse("it is not one line of a type and base64".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@home";

    fn with(key: impl Into<String>) -> Result<(), Error> {
        GuestData {
            ssh_keys: vec![key.into()],
            ..GuestData::default()
        }
        .check()
    }

    #[test]
    fn a_key_is_one_line_with_or_without_options_and_comment() {
        for good in [
            KEY.to_owned(),
            format!("no-pty,command=\"echo hi\" {KEY}"),
            "ssh-rsa AAAA".into(),
        ] {
            assert!(with(good.clone()).is_ok(), "{good}");
        }
        for bad in [
            "",
            "x",
            "ssh-rsa",
            "ssh-rsa !!!",
            "ssh-rsa AAAA\nssh-rsa BBBB",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
        assert!(with(format!("ssh-rsa {}", "A".repeat(9_000))).is_err());
        assert!(
            GuestData {
                ssh_keys: vec![KEY.into(); 33],
                ..GuestData::default()
            }
            .check()
            .is_err()
        );
    }

    #[test]
    fn user_data_comes_back_as_it_went_and_has_a_limit() {
        let most = vec![0xff; limits::USER_DATA_MAX_BYTES];
        assert_eq!(UserData::new(&most).bytes().unwrap(), most);
        assert!(
            UserData::new(&vec![0; limits::USER_DATA_MAX_BYTES + 1])
                .bytes()
                .is_err()
        );
        assert!(UserData("A".repeat(1 << 20)).bytes().is_err());
        assert!(UserData("no base64!".into()).bytes().is_err());
        assert!(!format!("{:?}", UserData::new(b"hunter2")).contains("aHVudGVy"));
    }
}
