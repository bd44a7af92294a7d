//! Bodies: MessagePack with field names, or JSON to read along with.
//!
//! Values are written in their human-readable form (addresses and ids as text) in both codecs. The compact form
//! cannot be read back inside tagged or flattened enums, because serde buffers those as human-readable values.

use crate::limits;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// How a body is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// MessagePack with field names: unknown fields are ignored, missing ones default.
    #[default]
    MessagePack,
    /// JSON, for debugging.
    Json,
}

impl Codec {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::MessagePack => 1,
            Self::Json => 2,
        }
    }

    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::MessagePack),
            2 => Some(Self::Json),
            _ => None,
        }
    }

    /// Writes a body.
    pub(crate) fn encode<T: Serialize>(self, value: &T) -> Result<Bytes, String> {
        match self {
            Self::MessagePack => {
                let mut out = Vec::with_capacity(128);
                let mut serializer = rmp_serde::Serializer::new(&mut out)
                    .with_struct_map()
                    .with_human_readable();
                value.serialize(&mut serializer).map_err(|e| e.to_string())?;
                Ok(out.into())
            }
            Self::Json => serde_json::to_vec(value)
                .map(Bytes::from)
                .map_err(|e| e.to_string()),
        }
    }

    /// Reads a body.
    pub(crate) fn decode<T: DeserializeOwned>(self, body: &[u8]) -> Result<T, String> {
        match self {
            Self::MessagePack => {
                let mut deserializer = rmp_serde::Deserializer::from_read_ref(body).with_human_readable();
                deserializer.set_max_depth(limits::BODY_MAX_DEPTH);
                T::deserialize(&mut deserializer).map_err(|e| e.to_string())
            }
            Self::Json => serde_json::from_slice(body).map_err(|e| e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize)]
    struct Old {
        name: String,
    }
    #[derive(Serialize, Deserialize)]
    struct New {
        name: String,
        #[serde(default)]
        size: u32,
    }

    #[test]
    fn versions_n_and_n_minus_1_read_each_other() {
        for codec in [Codec::MessagePack, Codec::Json] {
            let new = codec
                .encode(&New {
                    name: "a".into(),
                    size: 7,
                })
                .unwrap();
            assert_eq!(codec.decode::<Old>(&new).unwrap().name, "a");
            let old = codec.encode(&Old { name: "b".into() }).unwrap();
            assert_eq!(codec.decode::<New>(&old).unwrap().size, 0);
        }
    }

    #[test]
    fn a_body_nested_deeper_than_any_stack_bears_is_refused() {
        // As a value that is wanted, and as one that is skipped.
        for depth in [limits::BODY_MAX_DEPTH * 2, 100_000] {
            let (packed, json) = (vec![0x91; depth], vec![b'['; depth]);
            assert!(Codec::MessagePack.decode::<serde_json::Value>(&packed).is_err());
            assert!(Codec::Json.decode::<serde_json::Value>(&json).is_err());
            assert!(
                Codec::MessagePack
                    .decode::<serde::de::IgnoredAny>(&packed)
                    .is_err()
            );
        }
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    #[serde(tag = "kind", rename_all = "kebab-case")]
    enum Tagged {
        Address {
            address: std::net::IpAddr,
            id: vbm_core::VmId,
        },
    }

    #[test]
    fn addresses_survive_inside_tagged_enums() {
        let value = Tagged::Address {
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            id: vbm_core::VmId::from_uuid(uuid::Uuid::from_u128(9)),
        };
        for codec in [Codec::MessagePack, Codec::Json] {
            let bytes = codec.encode(&value).unwrap();
            assert_eq!(codec.decode::<Tagged>(&bytes).unwrap(), value);
        }
    }
}
