//! The table that people read.

use super::row::Row;
use comfy_table::{CellAlignment, Table, presets};

/// The longest note beside the table; longer ones are cut there and whole in the JSON.
const NOTE_MAX_CHARS: usize = 200;

/// The rows as a table, their notes below it by number.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "area", "what", "ours", "peer", "unit", "spread", "ratio", "goal", "met", "peer is",
    ]);
    for column in [2, 3, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut notes = String::new();
    for row in rows {
        let mut name = row.name.clone();
        if let Some(note) = &row.note {
            let number = notes.lines().count() + 1;
            name.push_str(&format!(" [{number}]"));
            notes.push_str(&format!("[{number}] {}\n", cut(note)));
        }
        table.add_row([
            row.area.clone(),
            name,
            row.ours
                .map_or_else(|| if row.failed { "failed".into() } else { "-".into() }, figure),
            row.peer.map_or_else(|| "-".into(), figure),
            row.unit.to_owned(),
            row.spread
                .map_or_else(|| "-".into(), |spread| format!("{:.0} %", spread * 100.0)),
            row.ratio
                .map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}x")),
            row.goal.clone().unwrap_or_else(|| "-".into()),
            match row.met {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "-",
            }
            .to_owned(),
            row.peer_name.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    format!("{table}\n{notes}")
}

/// Three digits or so: more were noise.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        x if x >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn cut(note: &str) -> String {
    let line = note.replace('\n', " ");
    match line.char_indices().nth(NOTE_MAX_CHARS) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::Fault;
    use super::*;

    #[test]
    fn a_figure_has_about_three_digits() {
        let shown: Vec<_> = [12345.6, 99.94, 1.239, 0.01234].into_iter().map(figure).collect();
        assert_eq!(shown, ["12346", "99.9", "1.24", "0.012"]);
    }

    #[test]
    fn the_table_has_a_line_for_each_row_and_its_note_below() {
        let rows = [
            Row::new("fast", "ms", vec![1.0])
                .against("slow", vec![2.0])
                .goal("<= 0.6x"),
            Row::failed("broken", "ms", &Fault::new("no root")),
        ];
        let text = render(&rows);
        assert!(
            text.contains("0.50x") && text.contains("yes") && text.contains("failed"),
            "{text}"
        );
        assert!(text.ends_with("[1] not run: no root\n"), "{text}");
    }
}
