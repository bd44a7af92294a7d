//! How far something is, told on stderr: a line that is redrawn in a terminal, else a line for each change.

use super::output::Output;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;
use vbm_core::{Operation, StepState};

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(120);

/// Tells how far one thing is. What it drew is gone once it is dropped.
#[derive(Debug)]
pub(super) enum Progress<'a> {
    Redrawn(ProgressBar),
    Lines { out: &'a Output, last: String },
    Silent,
}

impl<'a> Progress<'a> {
    pub(super) fn new(out: &'a Output) -> Self {
        if !out.is_chatty() {
            Self::Silent
        } else if Output::can_redraw() {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(TURN);
            Self::Redrawn(bar)
        } else {
            Self::Lines {
                out,
                last: String::new(),
            }
        }
    }

    /// An operation, as it is now. Where each change is a line, only steps are worth one.
    pub(super) fn operation(&mut self, operation: &Operation) {
        let says_a_step = !operation.steps.is_empty() && !operation.state.is_final();
        if says_a_step || matches!(self, Self::Redrawn(_)) {
            self.text(told(operation));
        }
    }

    fn text(&mut self, text: String) {
        match self {
            Self::Silent => {}
            Self::Redrawn(bar) => bar.set_message(text),
            Self::Lines { out, last } => {
                if *last != text {
                    out.hint(&text);
                    *last = text;
                }
            }
        }
    }

    /// A file on its way, with the bytes that were sent and those in all.
    pub(super) fn bytes(&mut self, file: &str, sent: u64, total: u64) {
        self.moved("sent", file, sent, total);
    }

    /// A file that something is done with, which is told in a word once it is done: the bytes so far, and those in all where that
    /// is known.
    pub(super) fn moved(&mut self, done: &'static str, file: &str, sent: u64, total: u64) {
        match self {
            Self::Silent => {}
            Self::Redrawn(bar) => {
                let total = total.max(sent);
                if bar.length() != Some(total) || bar.message() != file {
                    bar.set_length(total);
                    bar.set_message(file.to_owned());
                    if let Ok(style) =
                        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}")
                    {
                        bar.set_style(style.progress_chars("=> "));
                    }
                }
                bar.set_position(sent);
            }
            Self::Lines { .. } if sent == total && total > 0 => {
                self.text(format!("{done} {file}: {}", super::human::bytes(total)));
            }
            Self::Lines { .. } => {}
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Self::Redrawn(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// `launch web1: making the disk (2 of 4)`, in what words the operation has.
fn told(operation: &Operation) -> String {
    let head = format!("{} {}", operation.verb, operation.target.name);
    let current = operation.steps.iter().find(|s| s.state == StepState::Running);
    match current.or(operation.steps.last()) {
        _ if operation.state.is_final() => format!("{head}: {}", operation.state),
        None => head,
        Some(step) if step.state == StepState::Failed => format!("{head}: {} failed, tried again", step.name),
        Some(step) => format!("{head}: {}", step.name),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use vbm_core::{Kind, ObjectRef, OperationId, OperationState, Step, Timestamp};

    pub(in super::super) fn sample() -> Operation {
        Operation {
            id: OperationId::from_uuid(uuid::Uuid::from_u128(7)),
            verb: "launch".into(),
            target: ObjectRef::new(Kind::Vm, 1, "web1"),
            state: OperationState::Running,
            steps: Vec::new(),
            generation: vbm_core::Generation(1),
            created_at: Timestamp::from_micros(0),
            ended_at: None,
            error: None,
            trace: None,
        }
    }

    fn step(name: &str, state: StepState) -> Step {
        Step {
            name: name.into(),
            state,
            at: Timestamp::from_micros(0),
        }
    }

    #[test]
    fn progress_names_what_goes_on_now() {
        let mut operation = sample();
        assert_eq!(told(&operation), "launch web1");
        operation.steps = vec![step("disk", StepState::Done), step("start", StepState::Running)];
        assert_eq!(told(&operation), "launch web1: start");
        operation.steps[1].state = StepState::Failed;
        assert_eq!(told(&operation), "launch web1: start failed, tried again");
        operation.state = OperationState::Done;
        assert_eq!(told(&operation), "launch web1: done");
    }
}
