//! The only module that writes to the terminal.
//!
//! Results go to stdout, progress to stderr, so that `cargo xtask ... > file` keeps what matters.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::fault::Fault;

/// How often a spinner turns.
const TICK_MS: u64 = 120;

/// A result line on stdout.
#[expect(clippy::print_stdout, reason = "this is the output module")]
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// A heading between stages.
pub(crate) fn title(text: &str) {
    line(&format!("\n== {text}"));
}

/// Something the reader should know; goes to stderr.
pub(crate) fn note(text: &str) {
    eprintln!("   {text}");
}

/// Three lines on stderr.
pub(crate) fn fault(fault: &Fault) {
    eprintln!("{fault}");
}

/// What could not be run is neither passed nor failed, and must not be overlooked.
pub(crate) fn not_run(fault: &Fault) {
    eprintln!("*** NOT RUN ***\n{fault}");
}

/// A spinner for work without a known length. It hides itself where stderr is no terminal.
pub(crate) fn spinner(text: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(TICK_MS));
    bar
}

/// A bar for work of known length.
pub(crate) fn bar(length: u64, text: &str) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(text.to_owned());
    match ProgressStyle::with_template("   {bar:30} {pos}/{len} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A table: first column left, the others right aligned.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain(head.get(column).map(|cell| cell.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: Vec<&str>| {
        let text: Vec<String> = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, w))| {
                if i == 0 {
                    format!("{cell:<w$}")
                } else {
                    format!("{cell:>w$}")
                }
            })
            .collect();
        line(text.join("  ").trim_end());
    };
    print(head.to_vec());
    for row in rows {
        print(row.iter().map(String::as_str).collect());
    }
}
