//! Who the metadata service of a network answers.

use crate::{Error, error::invalid};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Whether a network has a metadata service for its VMs, and who gets an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MetadataMode {
    /// There is none.
    Off,
    /// Answers only who shows a token (EC2's IMDSv2): what makes a guest fetch a page for a stranger gets nothing.
    #[default]
    Token,
    /// Answers without a token too: EC2's IMDSv1, and the NoCloud form, whose readers know no tokens.
    Open,
}

impl fmt::Display for MetadataMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Token => "token",
            Self::Open => "open",
        })
    }
}

impl FromStr for MetadataMode {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "off" => Ok(Self::Off),
            "token" => Ok(Self::Token),
            "open" => Ok(Self::Open),
            _ => Err(invalid(
                format!("'{text}' is no way to serve metadata"),
                "there are off, token and open",
                "choose one of them",
            )),
        }
    }
}
