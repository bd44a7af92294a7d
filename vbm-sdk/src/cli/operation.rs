//! `vbm operation`.

use super::{args::Operation, human, info::Lines, session::Session, table::Table};
use vbm_core::{Error, Timestamp};

const NONE_YET: &str = "no operations: nothing that takes time was asked for";

pub(super) async fn run(on: &Session<'_>, verb: Operation) -> Result<(), Error> {
    let operations = on.client.operations();
    match verb {
        Operation::List => {
            let all = operations.list().all().await?;
            on.out
                .list(&all, |o| o.id.to_string(), &table(&all, on.now()), NONE_YET)
        }
        Operation::Info(args) => {
            let operation = operations.get(&args.operation).await?;
            on.out.item(
                &operation,
                &operation.id.to_string(),
                &detail(&operation, on.now()),
            )
        }
        Operation::Wait(args) => {
            let operation = operations.get(&args.operation).await?;
            let operation = on.follow(&operation).await?;
            let text = format!(
                "{} {}: {}",
                operation.verb, operation.target.name, operation.state
            );
            on.out.done(&operation, &operation.id.to_string(), &text)
        }
    }
}

fn took(operation: &vbm_core::Operation, now: Timestamp) -> String {
    human::span(operation.ended_at.unwrap_or(now).since(operation.created_at))
}

fn table(operations: &[vbm_core::Operation], now: Timestamp) -> Table {
    let mut table = Table::new(
        &["ID", "VERB", "TARGET", "STATE", "TOOK", "AGE"],
        &["STEPS", "ERROR"],
    );
    for operation in operations {
        table.row([
            operation.id.to_string(),
            operation.verb.clone(),
            operation.target.to_string(),
            operation.state.to_string(),
            took(operation, now),
            human::age(now, operation.created_at),
            operation.steps.len().to_string(),
            operation
                .error
                .as_ref()
                .map(|e| e.what().to_owned())
                .unwrap_or_default(),
        ]);
    }
    table
}

fn detail(operation: &vbm_core::Operation, now: Timestamp) -> String {
    let mut lines = Lines::default();
    lines.put("ID", operation.id.to_string());
    lines.put("Verb", &*operation.verb);
    lines.put("Target", operation.target.to_string());
    lines.put("State", format!("{}, {}", operation.state, took(operation, now)));
    lines.put(
        "Created",
        format!(
            "{} ago ({})",
            human::age(now, operation.created_at),
            operation.created_at
        ),
    );
    for step in &operation.steps {
        let state = match step.state {
            vbm_core::StepState::Running => "goes on",
            vbm_core::StepState::Done => "done",
            vbm_core::StepState::Failed => "failed",
        };
        let after = step.at.since(operation.created_at).as_secs_f64();
        lines.put("Step", format!("{} ({state}, {after:.3}s)", step.name));
    }
    lines.problem(operation.error.as_ref());
    lines.text()
}

#[cfg(test)]
mod tests {
    use super::super::progress::tests::sample;
    use super::*;
    use vbm_core::{OperationState, Step, StepState};

    #[test]
    fn the_detail_of_an_operation_shows_its_steps_and_when_they_were() {
        let mut operation = sample();
        operation.state = OperationState::Done;
        operation.ended_at = Some(Timestamp::from_micros(2_000_000));
        operation.steps.push(Step {
            name: "disk".into(),
            state: StepState::Done,
            at: Timestamp::from_micros(1_500_000),
        });
        let text = detail(&operation, Timestamp::from_micros(9_000_000));
        assert!(
            text.contains("State:    done, 2s") && text.contains("Step:     disk (done, 1.500s)"),
            "{text}"
        );
    }

    #[test]
    fn operations_are_listed_with_what_they_do() {
        let text = table(&[sample()], Timestamp::from_micros(5_000_000)).render(false, None);
        assert!(text.ends_with("launch  vm web1  running  5s    5s"), "{text}");
    }
}
