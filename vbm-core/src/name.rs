//! Names that people give: one DNS label, because a VM's name becomes its host name.

use crate::{Error, error::invalid, limits::NAME_MAX_CHARS};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// A name: 1 to 63 of `a-z`, `0-9` and `-`, beginning with a letter, not ending with `-` (RFC 1035 section 2.3.1).
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: &str| {
            Err(invalid(
                format!("'{text:.80}' is not a valid name"),
                why,
                "use 1 to 63 of a-z, 0-9 and '-', beginning with a letter, for example web-1",
            ))
        };
        match text.as_bytes() {
            [] => refuse("it is empty"),
            b if b.len() > NAME_MAX_CHARS => refuse("it is longer than 63 characters"),
            [first, ..] if !first.is_ascii_lowercase() => refuse("it does not begin with a letter a-z"),
            [.., b'-'] => refuse("it ends with '-'"),
            b if !b
                .iter()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-') =>
            {
                refuse("it holds a character other than a-z, 0-9 and '-'")
            }
            _ => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}
crate::text::string_serde!(Name, "1 to 63 of a-z, 0-9 and '-', beginning with a letter");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_of_300_characters_or_of_other_letters_is_refused_and_cut_in_the_answer() {
        for (bad, why) in [
            ("a".repeat(300), "longer than 63"),
            ("ä".repeat(300), "longer than 63"),
            ("лан".to_owned(), "begin with a letter a-z"),
            ("lan\u{202e}".to_owned(), "other than a-z"),
            ("lan\0".to_owned(), "other than a-z"),
        ] {
            let error = bad.parse::<Name>().unwrap_err();
            assert!(error.why().contains(why), "{error}");
            assert!(error.what().chars().count() < 120);
        }
    }

    #[test]
    fn names_follow_the_rule_for_dns_labels() {
        for good in ["a", "web1", "web-1", &"a".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "1web",
            "-a",
            "a-",
            "Web",
            "a_b",
            "a.b",
            "ä",
            "a b",
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in ".{0,80}") {
            if let Ok(name) = text.parse::<Name>() { prop_assert_eq!(name.as_str(), text); }
        }
    }
}
