//! `cargo xtask bench AREA`: the harness in `benches/`, built for speed, with everything that it measures against.

use std::path::Path;
use std::process::Command;

use crate::fault::{Done, Fault};
use crate::setup::{self, Need};
use crate::{guest, place, run};

/// Installs what is missing, makes the guest, measures.
pub(crate) fn command(area: &str, quick: bool, json: Option<&Path>) -> Done {
    // Relative to where it was typed: cargo runs the harness elsewhere.
    let json = match json {
        None => None,
        Some(path) => Some(std::path::absolute(path).map_err(|error| Fault::file("find", path, &error))?),
    };
    setup::ensure(&Need::ALL)?;
    setup::ensure(&Need::PEERS)?;
    let guest = guest::ensure(None)?;
    let mut cargo = place::cargo();
    cargo.env("VBM_GUEST_DIR", guest.dir);
    run::stream(with_args(&mut cargo, area, quick, json.as_deref()))
}

fn with_args<'a>(cargo: &'a mut Command, area: &str, quick: bool, json: Option<&Path>) -> &'a mut Command {
    cargo.args(["run", "--release", "--package", "vbm-benches"]);
    // An area alone is built in a third of the time; the bus' peers' clients are built only where it is measured.
    cargo.args(match area {
        "rpc" => ["--no-default-features", "--features", "peers"].as_slice(),
        "net" => &["--no-default-features", "--features", "net"],
        "hyper" => &["--no-default-features", "--features", "hyper"],
        "all" => &["--features", "peers"],
        _ => &[],
    });
    cargo.args(["--", area]);
    if quick {
        cargo.arg("--quick");
    }
    if let Some(path) = json {
        cargo.arg("--json").arg(path);
    }
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_reaches_the_harness() {
        let shown = |quick, json: Option<&str>| {
            run::shown(with_args(
                &mut Command::new("cargo"),
                "dhcp",
                quick,
                json.map(Path::new),
            ))
        };
        let plain = "cargo run --release --package vbm-benches -- dhcp";
        assert_eq!(shown(false, None), plain);
        let bus = run::shown(with_args(&mut Command::new("cargo"), "rpc", true, None));
        assert!(
            bus.ends_with("--no-default-features --features peers -- rpc --quick"),
            "{bus}"
        );
        assert_eq!(
            shown(true, Some("/t/x.json")),
            format!("{plain} --quick --json /t/x.json")
        );
    }
}
