//! Lines and their meaning: pure.

use crate::limits::QMP_LINE_MAX_BYTES;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

/// What QEMU says first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// `10.0.2`.
    pub(crate) version: String,
    /// The distributor's version.
    pub(crate) package: String,
    /// Whether it does what cannot wait past its main loop.
    pub(crate) out_of_band: bool,
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
    /// No event of QEMU's: the run state after some were lost, for who could not take them as fast as they came.
    Looked(String),
}

/// An event as QEMU says it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RawEvent {
    /// `DEVICE_DELETED`, `JOB_STATUS_CHANGE`, ...
    pub(crate) name: String,
    /// What it says; null for those that say nothing.
    pub(crate) data: Value,
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
    Event(RawEvent),
    /// Nothing that is known.
    Other,
}

/// What is done although QEMU's main loop stands still ("out-of-band execution" in docs/interop/qmp-spec.rst): for that it is there.
pub(super) const OUT_OF_BAND: &str = "yank";

/// The bytes of a command.
pub(super) fn encode(id: u64, command: &str, arguments: &Value) -> Bytes {
    let execute = if command == OUT_OF_BAND {
        "exec-oob"
    } else {
        "execute"
    };
    let message = if arguments.is_null() {
        json!({ (execute): command, "id": id })
    } else {
        json!({ (execute): command, "arguments": arguments, "id": id })
    };
    let mut line = message.to_string();
    line.push('\n');
    line.into()
}

/// The meaning of a line. Never fails: what is not understood is [`Incoming::Other`].
pub(super) fn parse(line: &[u8]) -> Incoming {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(line) else {
        return Incoming::Other;
    };
    let id = fields.get("id").and_then(Value::as_u64);
    // `"return": null` is a reply too, so the presence of the key counts.
    if let (Some(id), Some(value)) = (id, fields.remove("return")) {
        return Incoming::Return { id, value };
    }
    if let Some(error) = fields.get("error") {
        let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
        let why = match (text("desc"), text("class")) {
            ("", class) => class.to_owned(),
            (desc, _) => desc.to_owned(),
        };
        return Incoming::Failure { id, why };
    }
    if let Some(greeting) = fields.get("QMP") {
        return Incoming::Greeting(greet(greeting));
    }
    match fields.remove("event") {
        Some(Value::String(name)) => Incoming::Event(RawEvent {
            name,
            data: fields.remove("data").unwrap_or(Value::Null),
        }),
        _ => Incoming::Other,
    }
}

/// The word for the run state in the reply to `query-status`.
pub(super) fn status_of(reply: &Value) -> String {
    reply["status"].as_str().unwrap_or_default().to_owned()
}

fn greet(greeting: &Value) -> Greeting {
    let version = &greeting["version"];
    let part = |name: &str| version["qemu"][name].as_u64().unwrap_or(0);
    Greeting {
        version: format!("{}.{}.{}", part("major"), part("minor"), part("micro")),
        package: version["package"].as_str().unwrap_or_default().to_owned(),
        out_of_band: greeting["capabilities"]
            .as_array()
            .is_some_and(|all| all.contains(&json!("oob"))),
    }
}

/// What an event means for the power state, if anything.
pub(super) fn event(name: &str, data: &Value) -> Option<QmpEvent> {
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
    /// Lets go of the room that a long line took.
    pub(super) fn shrink(&mut self, chunk_bytes: usize) {
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * chunk_bytes {
            self.buffer = BytesMut::new();
        }
    }

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

    fn said(name: &str, data: Value) -> Incoming {
        let name = name.into();
        Incoming::Event(RawEvent { name, data })
    }

    #[test]
    fn only_what_changes_the_power_state_counts_and_the_rest_is_kept_as_it_is() {
        let shutdown = json!({ "guest": true, "reason": "guest-shutdown" });
        let means = QmpEvent::Shutdown {
            guest: true,
            reason: "guest-shutdown".into(),
        };
        assert_eq!(event("SHUTDOWN", &shutdown), Some(means));
        assert_eq!(event("STOP", &Value::Null), Some(QmpEvent::Stop));
        for (name, data) in [
            ("BLOCK_IO_ERROR", json!({ "action": "report" })),
            ("A_NEW_ONE", json!(7)),
        ] {
            assert_eq!(event(name, &data), None, "{name}");
        }
    }

    #[test]
    fn what_qemu_says_is_understood() {
        for (line, meaning) in [
            (
                r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#,
                Incoming::Greeting(Greeting {
                    version: "10.0.2".into(),
                    package: "Debian".into(),
                    out_of_band: true,
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
            (r#"{"timestamp": {}, "event": "STOP"}"#, said("STOP", Value::Null)),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
                said("SHUTDOWN", json!({ "guest": true, "reason": "guest-shutdown" })),
            ),
            (
                r#"{"event": "A_NEW_ONE", "data": 7}"#,
                said("A_NEW_ONE", json!(7)),
            ),
            (r#"{"event": 7}"#, Incoming::Other),
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
