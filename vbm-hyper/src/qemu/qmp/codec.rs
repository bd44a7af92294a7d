//! Lines and their meaning: pure.

use crate::limits::QMP_LINE_MAX_BYTES;
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

/// What QEMU says first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// `10.0.2`.
    pub(crate) version: String,
    /// The distributor's version.
    pub(crate) package: String,
}

/// An event that has to do with power. All others are passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QmpEvent {
    /// It is going to end. `reason`: `guest-shutdown`, `host-qmp-quit`, `host-signal`, `guest-panic`, ...
    Shutdown { guest: bool, reason: String },
    /// It was reset.
    Reset,
    /// Its processors were halted.
    Stop,
    /// Its processors go on.
    Resume,
    /// The guest's kernel gave up.
    GuestPanicked,
    /// A disk failed or is full, and the machine is halted for it.
    DiskErrorStops,
    /// Its memory has come, or has gone, whole.
    MigrationCompleted,
    /// A device is gone: the guest has let go of it.
    DeviceDeleted { device: String },
    /// The guest does not let go of a device.
    UnplugRefused { device: String },
}

/// One line from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Incoming {
    Greeting(Greeting),
    Return {
        id: u64,
        value: Value,
    },
    Failure {
        id: Option<u64>,
        why: String,
    },
    Event(QmpEvent),
    /// An event that does not matter here, or nothing that is known.
    Other,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Value>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<Value>,
}

/// The bytes of a command.
pub(super) fn encode(id: u64, command: &str, arguments: &Value) -> Bytes {
    let message = if arguments.is_null() {
        json!({ "execute": command, "id": id })
    } else {
        json!({ "execute": command, "arguments": arguments, "id": id })
    };
    let mut line = message.to_string();
    line.push('\n');
    line.into()
}

/// The meaning of a line. Never fails: what is not understood is [`Incoming::Other`].
pub(super) fn parse(line: &[u8]) -> Incoming {
    // `"return": null` is a reply too, so the presence of the key counts.
    let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(line) else {
        return Incoming::Other;
    };
    if let (Some(value), Some(id)) = (
        fields.get("return").cloned(),
        fields.get("id").and_then(Value::as_u64),
    ) {
        return Incoming::Return { id, value };
    }
    fields.remove("return");
    let Ok(wire) = serde_json::from_value::<Wire>(Value::Object(fields)) else {
        return Incoming::Other;
    };
    if let Some(error) = wire.error {
        let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
        let why = match (text("desc"), text("class")) {
            ("", class) => class.to_owned(),
            (desc, _) => desc.to_owned(),
        };
        return Incoming::Failure {
            id: wire.id.and_then(|id| id.as_u64()),
            why,
        };
    }
    if let Some(greeting) = wire.greeting {
        return Incoming::Greeting(greet(&greeting));
    }
    debug_assert!(wire.returned.is_none(), "taken above");
    wire.event
        .and_then(|name| event(&name, &wire.data.unwrap_or(Value::Null)))
        .map_or(Incoming::Other, Incoming::Event)
}

fn greet(greeting: &Value) -> Greeting {
    let version = &greeting["version"];
    let part = |name: &str| version["qemu"][name].as_u64().unwrap_or(0);
    Greeting {
        version: format!("{}.{}.{}", part("major"), part("minor"), part("micro")),
        package: version["package"].as_str().unwrap_or_default().to_owned(),
    }
}

fn event(name: &str, data: &Value) -> Option<QmpEvent> {
    Some(match name {
        "SHUTDOWN" => QmpEvent::Shutdown {
            guest: data["guest"].as_bool().unwrap_or(false),
            reason: data["reason"].as_str().unwrap_or_default().to_owned(),
        },
        "RESET" => QmpEvent::Reset,
        "STOP" => QmpEvent::Stop,
        "RESUME" => QmpEvent::Resume,
        "GUEST_PANICKED" => QmpEvent::GuestPanicked,
        "MIGRATION" if data["status"] == "completed" => QmpEvent::MigrationCompleted,
        // Devices without an id are parts of others.
        "DEVICE_DELETED" => QmpEvent::DeviceDeleted {
            device: data["device"].as_str()?.to_owned(),
        },
        "DEVICE_UNPLUG_GUEST_ERROR" => QmpEvent::UnplugRefused {
            device: data["device"].as_str()?.to_owned(),
        },
        "BLOCK_IO_ERROR" if data["action"] == "stop" => QmpEvent::DiskErrorStops,
        _ => return None,
    })
}

/// A line was longer than [`QMP_LINE_MAX_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineTooLong;

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) buffer: BytesMut,
    searched: usize,
}

impl Lines {
    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Result<Option<BytesMut>, LineTooLong> {
        match self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                Ok(Some(line))
            }
            None if self.buffer.len() > QMP_LINE_MAX_BYTES => Err(LineTooLong),
            None => {
                self.searched = self.buffer.len();
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_qemu_says_is_understood() {
        for (line, meaning) in [
            (
                r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#,
                Incoming::Greeting(Greeting {
                    version: "10.0.2".into(),
                    package: "Debian".into(),
                }),
            ),
            (
                r#"{"return": {}, "id": 7}"#,
                Incoming::Return {
                    id: 7,
                    value: json!({}),
                },
            ),
            (
                r#"{"return": null, "id": 7}"#,
                Incoming::Return {
                    id: 7,
                    value: Value::Null,
                },
            ),
            (
                r#"{"id": 8, "error": {"class": "CommandNotFound", "desc": "no such"}}"#,
                Incoming::Failure {
                    id: Some(8),
                    why: "no such".into(),
                },
            ),
            (
                r#"{"error": {"class": "GenericError"}}"#,
                Incoming::Failure {
                    id: None,
                    why: "GenericError".into(),
                },
            ),
            (
                r#"{"timestamp": {}, "event": "STOP"}"#,
                Incoming::Event(QmpEvent::Stop),
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
                Incoming::Event(QmpEvent::Shutdown {
                    guest: true,
                    reason: "guest-shutdown".into(),
                }),
            ),
            (
                r#"{"event": "BLOCK_IO_ERROR", "data": {"action": "report"}}"#,
                Incoming::Other,
            ),
            (r#"{"event": "A_NEW_ONE", "data": 7}"#, Incoming::Other),
            (r#"{"return": {}, "id": "not ours"}"#, Incoming::Other),
            ("[1]", Incoming::Other),
            ("garbage", Incoming::Other),
        ] {
            assert_eq!(parse(line.as_bytes()), meaning, "{line}");
        }
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut lines = Lines::default();
        lines
            .buffer
            .extend_from_slice(&vec![b'x'; QMP_LINE_MAX_BYTES + 1]);
        assert_eq!(lines.next(), Err(LineTooLong));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(line in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,100}") {
            parse(&line);
            parse(format!("{{\"event\": {text:?}, \"data\": {text:?}, \"id\": {text:?}}}").as_bytes());
            parse(format!("{{\"QMP\": {text:?}, \"error\": {text:?}}}").as_bytes());
        }

        #[test]
        fn lines_come_out_as_they_went_in_however_they_were_cut(
            texts in proptest::collection::vec("[a-z]{0,20}", 1..10), cut in 1..7_usize
        ) {
            let stream = texts.iter().map(|t| format!("{t}\n")).collect::<String>();
            let (mut lines, mut out) = (Lines::default(), Vec::new());
            for piece in stream.as_bytes().chunks(cut) {
                lines.buffer.extend_from_slice(piece);
                while let Some(line) = lines.next().unwrap() {
                    out.push(String::from_utf8(line.to_vec()).unwrap().trim_end().to_owned());
                }
            }
            prop_assert_eq!(out, texts);
        }

        #[test]
        fn a_command_is_one_line_that_json_understands(id: u64, text in "\\PC{0,100}") {
            let line = encode(id, "x", &json!({ "y": text }));
            prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            let back: Value = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(&back["arguments"]["y"], &json!(text));
        }
    }
}
