//! Ids: a UUID each, one type per noun, so that an image id cannot be passed where a VM id belongs.

use crate::{Error, error::invalid};
use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident = $noun:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that the caller's id source made.
            pub const fn from_uuid(uuid: Uuid) -> Self { Self(uuid) }
            /// The UUID itself.
            pub const fn uuid(self) -> Uuid { self.0 }
            /// The last eight hex digits: short enough for interface names. UUIDv7 begins with the time, so
            /// the tail is the part that differs between ids made together.
            pub fn short(self) -> String {
                let text = self.0.simple().to_string();
                text[24..].to_owned()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.hyphenated().fmt(f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, concat!($noun, ":{}"), self.0) }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Uuid::parse_str(text).map(Self).map_err(|_| invalid(
                    format!(concat!("'{}' is not the id of a ", $noun), text),
                    "an id is a UUID such as 0190b6f2-4c1e-7cc3-a7a4-0d1f6c2b9e11",
                    concat!("use the name of the ", $noun, " or its id as `vbm` lists it"),
                ))
            }
        }
        crate::text::string_serde!($name, "a UUID");
    )*};
}

id! {
    /// The id of a virtual machine.
    VmId = "vm";
    /// The id of an image.
    ImageId = "image";
    /// The id of a volume.
    VolumeId = "volume";
    /// The id of a network.
    NetworkId = "network";
    /// The id of a port, the place where a NIC meets a network.
    PortId = "port";
    /// The id of a security group.
    GroupId = "group";
    /// The id of a port forward.
    ForwardId = "forward";
    /// The id of a floating IP.
    FloatingIpId = "floating-ip";
    /// The id of a snapshot.
    SnapshotId = "snapshot";
    /// The id of an operation.
    OperationId = "operation";
    /// The id of an event.
    EventId = "event";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text_and_json() {
        let id = VmId::from_uuid(Uuid::from_u128(7));
        assert_eq!(id.to_string().parse::<VmId>().unwrap(), id);
        assert_eq!(
            serde_json::from_str::<VmId>(&serde_json::to_string(&id).unwrap()).unwrap(),
            id
        );
    }

    #[test]
    fn short_is_the_tail_that_differs() {
        assert_eq!(VmId::from_uuid(Uuid::from_u128(0xabcd)).short(), "0000abcd");
    }

    #[test]
    fn garbage_is_refused_with_a_fix() {
        let error = "web1".parse::<VmId>().unwrap_err();
        assert!(error.what().contains("web1") && !error.fix().is_empty());
    }
}
