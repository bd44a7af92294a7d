//! Paths of the API, with what people typed in them.

use crate::api::API_VERSION;
use std::fmt::Write as _;
use vbm_core::{Error, ErrorKind};

/// A path and its query, being written.
#[derive(Clone, Debug)]
pub(super) struct ApiPath {
    text: String,
    queries: usize,
}

impl ApiPath {
    /// `/v1/` and a noun.
    pub(super) fn of(noun: &str) -> Self {
        Self {
            text: format!("/{API_VERSION}/{noun}"),
            queries: 0,
        }
    }

    /// One thing of a noun, named as people name it.
    pub(super) fn one(noun: &str, singular: &str, name: &str) -> Result<Self, Error> {
        Self::of(noun).item(singular, name)
    }

    /// One thing of what the path says so far, named as people name it.
    pub(super) fn item(mut self, singular: &str, name: &str) -> Result<Self, Error> {
        if name.is_empty() || name == "." || name == ".." {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("'{name}' names no {singular}"),
                "a name, an id or the beginning of an id is needed",
                format!("list what exists with `vbm {}`", list_command(singular)),
            ));
        }
        self.text.push('/');
        escape(&mut self.text, name);
        Ok(self)
    }

    /// A fixed word below it.
    pub(super) fn sub(mut self, word: &str) -> Self {
        self.text.push('/');
        self.text.push_str(word);
        self
    }

    /// `?name=value`, when there is a value.
    pub(super) fn query(mut self, name: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.text.push(if self.queries == 0 { '?' } else { '&' });
            self.text.push_str(name);
            self.text.push('=');
            escape(&mut self.text, &value.to_string());
            self.queries += 1;
        }
        self
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

fn list_command(singular: &str) -> String {
    match singular {
        "vm" => "list".into(),
        "snapshot" => "snapshot list VM".into(),
        _ => format!("{singular} list"),
    }
}

/// Percent-encodes all but the unreserved characters (RFC 3986 section 2.3).
fn escape(into: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _written: std::fmt::Result = write!(into, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_cannot_leave_its_place_in_the_path() {
        let path = ApiPath::one("vms", "vm", "../images?x=1#ä").unwrap().sub("power");
        assert_eq!(path.into_text(), "/v1/vms/..%2Fimages%3Fx%3D1%23%C3%A4/power");
    }

    #[test]
    fn an_empty_name_is_refused_before_it_becomes_the_whole_list() {
        for bad in ["", ".", ".."] {
            assert_eq!(
                ApiPath::one("vms", "vm", bad).unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        }
    }

    #[test]
    fn queries_hold_what_was_given() {
        let path = ApiPath::of("ports")
            .query("after", None::<u8>)
            .query("vm", Some("a b"))
            .query("limit", Some(7));
        assert_eq!(path.into_text(), "/v1/ports?vm=a%20b&limit=7");
    }
}
