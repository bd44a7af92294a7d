//! oslo.messaging on RabbitMQ: the bus of OpenStack. A Python program of the bench's own, client and server in one process.

use super::{
    load::{Measured, Shape},
    rabbit::{self, Broker},
};
use crate::harness::{
    child::{command, run},
    fault::{Fault, Outcome},
    ground::Ground,
};
use serde::Deserialize;
use std::{env, path::PathBuf, process::Command, time::Duration};

/// A Python that has oslo.messaging: that of a virtual environment.
const PYTHON_VARIABLE: &str = "VBM_OSLO_PYTHON";
const PROGRAM: &str = include_str!("oslo.py");
const ENDS_WITHIN: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct Said {
    seconds: f64,
    micros: Vec<f64>,
}

fn python() -> PathBuf {
    env::var_os(PYTHON_VARIABLE).map_or_else(|| "python3".into(), PathBuf::from)
}

/// Why it cannot be measured against.
pub(super) fn missing() -> Option<String> {
    if let Some(why) = rabbit::missing() {
        return Some(why);
    }
    let there = Command::new(python())
        .args(["-c", "import oslo_messaging"])
        .output()
        .is_ok_and(|output| output.status.success());
    (!there).then(|| {
        format!(
            "oslo.messaging is missing (python3 -m venv DIR && DIR/bin/pip install oslo.messaging, then {PYTHON_VARIABLE}=DIR/bin/python3)"
        )
    })
}

pub(super) async fn round(ground: &Ground, shape: Shape) -> Outcome<Measured> {
    let broker = Broker::start().await?;
    let mut program = command(python());
    program.args(["-c", PROGRAM]);
    program.arg(format!("rabbit://{}/", broker.address()));
    program.args([shape.flights.to_string(), shape.payload.to_string()]);
    program.arg(super::load::round(ground).as_secs_f64().to_string());
    let said = run(&mut program, ENDS_WITHIN).await?;
    let line = said
        .lines()
        .last()
        .ok_or_else(|| Fault::new("oslo.messaging said nothing"))?;
    let said: Said = serde_json::from_str(line)?;
    Measured::of(&said.micros, said.seconds)
}
