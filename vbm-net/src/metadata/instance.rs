//! What a VM is told of itself, beyond what its port tells.

use std::fmt;
use vbm_core::{Error, ErrorKind, Mac, Name, limits};

/// What a VM is told of itself.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Instance {
    /// What tells this VM from every other, and from itself made anew: cloud-init does its first-boot work again when it changes.
    pub id: String,
    /// Its name, where it is not that of the port.
    pub name: Option<Name>,
    /// What was given for it to run or read, as it was given.
    pub user_data: Option<Vec<u8>>,
    /// Public keys that may log in, one line of `authorized_keys` each.
    pub ssh_keys: Vec<String>,
    /// The MACs of all its NICs, in their order; empty: it has only the one by which it asks.
    pub macs: Vec<Mac>,
    /// Where it runs, as people name it.
    pub node: Option<String>,
}

/// User data may hold secrets: only its length is shown.
impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("user_data_bytes", &self.user_data.as_ref().map(Vec::len))
            .field("ssh_keys", &self.ssh_keys.len())
            .field("macs", &self.macs)
            .field("node", &self.node)
            .finish()
    }
}

impl Instance {
    /// Checks its sizes and that each thing that shall be a line is one.
    ///
    /// # Errors
    /// The first that is too large or holds what it must not.
    pub fn check(&self) -> Result<(), Error> {
        let bad =
            |what: String, why: String, fix: &str| Err(Error::new(ErrorKind::InvalidInput, what, why, fix));
        let bytes = self.user_data.as_ref().map_or(0, Vec::len);
        if bytes > limits::USER_DATA_MAX_BYTES {
            return bad(
                "the user data is too large".into(),
                format!(
                    "it has {bytes} bytes, {} are allowed",
                    limits::USER_DATA_MAX_BYTES
                ),
                "compress it, or let it fetch the rest",
            );
        }
        if self.ssh_keys.len() > limits::VM_MAX_SSH_KEYS || self.macs.len() > limits::VM_MAX_NICS {
            return bad(
                "the VM is told of too much".into(),
                format!(
                    "{} SSH keys and {} NICs were given, {} and {} are allowed",
                    self.ssh_keys.len(),
                    self.macs.len(),
                    limits::VM_MAX_SSH_KEYS,
                    limits::VM_MAX_NICS
                ),
                "give fewer",
            );
        }
        let one_line = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
        let too_long = |key: &&String| key.len() > limits::SSH_KEY_MAX_BYTES || !one_line(key);
        if let Some(key) = self.ssh_keys.iter().find(too_long) {
            let head: String = key.chars().take(20).collect();
            return bad(
                format!("'{}…' is no SSH key", head.escape_debug()),
                format!(
                    "it is not one line of at most {} bytes",
                    limits::SSH_KEY_MAX_BYTES
                ),
                "give the contents of a .pub file",
            );
        }
        let texts = [Some(&self.id), self.node.as_ref()];
        match texts
            .into_iter()
            .flatten()
            .find(|t| !one_line(t) || t.len() > limits::LABEL_MAX_BYTES)
        {
            Some(text) => bad(
                format!("'{}' cannot name a VM or its place", text.escape_debug()),
                format!("it is not one line of 1 to {} bytes", limits::LABEL_MAX_BYTES),
                "choose another",
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Instance {
        Instance {
            id: "i-1".into(),
            ..Instance::default()
        }
    }

    #[test]
    fn what_is_too_large_or_no_line_is_refused() {
        assert!(good().check().is_ok());
        let bad = [
            Instance {
                id: String::new(),
                ..good()
            },
            Instance {
                id: "a\nb".into(),
                ..good()
            },
            Instance {
                user_data: Some(vec![0; limits::USER_DATA_MAX_BYTES + 1]),
                ..good()
            },
            Instance {
                ssh_keys: vec!["ssh-ed25519 A\nssh-ed25519 B".into()],
                ..good()
            },
            Instance {
                ssh_keys: vec![String::new()],
                ..good()
            },
            Instance {
                ssh_keys: vec!["k".into(); 33],
                ..good()
            },
            Instance {
                ssh_keys: vec!["k".repeat(9_000)],
                ..good()
            },
            Instance {
                node: Some("x".repeat(300)),
                ..good()
            },
        ];
        for instance in bad {
            assert!(instance.check().is_err(), "{instance:?}");
        }
        let edge = Instance {
            user_data: Some(vec![0; limits::USER_DATA_MAX_BYTES]),
            ..good()
        };
        assert!(edge.check().is_ok());
    }

    #[test]
    fn secrets_do_not_show_in_logs() {
        let instance = Instance {
            user_data: Some(b"password: hunter2".to_vec()),
            ..good()
        };
        assert!(!format!("{instance:?}").contains("hunter2"));
    }
}
