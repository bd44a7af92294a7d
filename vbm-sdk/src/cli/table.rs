//! Tables: columns side by side, no lines between them.

use comfy_table::{Cell, ContentArrangement, presets};

/// A table: what everybody sees, and what `-o wide` adds at its right.
#[derive(Clone, Debug)]
#[must_use]
pub(super) struct Table {
    headers: Vec<&'static str>,
    plain: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns, and those that only `-o wide` shows.
    pub(super) fn new(plain: &[&'static str], wide: &[&'static str]) -> Self {
        Self {
            headers: [plain, wide].concat(),
            plain: plain.len(),
            rows: Vec::new(),
        }
    }

    /// One more row, with a cell for each column, the wide ones included.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells
            .into_iter()
            .map(|c| if c.is_empty() { "-".into() } else { c })
            .collect();
        debug_assert_eq!(cells.len(), self.headers.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// As text; folded into `width` columns when that is given.
    pub(super) fn render(&self, wide: bool, width: Option<u16>) -> String {
        let columns = if wide { self.headers.len() } else { self.plain };
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        if let Some(width) = width {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(width);
        }
        table.set_header(self.headers.iter().take(columns).map(Cell::new));
        for row in &self.rows {
            table.add_row(row.iter().take(columns).map(Cell::new));
        }
        let last = columns.saturating_sub(1);
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, if index == last { 0 } else { 2 }));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["NAME", "STATE"], &["ID"]);
        table.row(["web1", "running", "7"].map(String::from));
        table.row(["a-longer-name", "", "8"].map(String::from));
        table
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        assert_eq!(
            sample().render(false, None),
            "NAME           STATE\nweb1           running\na-longer-name  -"
        );
    }

    #[test]
    fn wide_adds_columns_at_the_right() {
        assert_eq!(
            sample().render(true, None),
            "NAME           STATE    ID\nweb1           running  7\na-longer-name  -        8"
        );
    }

    #[test]
    fn a_narrow_terminal_folds_cells_and_is_not_overrun() {
        assert!(
            sample()
                .render(true, Some(20))
                .lines()
                .all(|line| line.chars().count() <= 20)
        );
    }
}
