//! Columns for people.

/// A table: a heading, and rows of as many cells.
#[derive(Debug)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self {
            heading: heading.map(str::to_owned).into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells are made safe to print.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| cell_text(&cell)).into());
    }

    /// The text, or a sentence when there are no rows.
    pub fn print(&self, when_empty: &str) -> String {
        if self.rows.is_empty() {
            return format!("{when_empty}\n");
        }
        let width = |column: usize| {
            let cells = std::iter::once(&self.heading).chain(&self.rows);
            cells
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| width(column).unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in std::iter::once(&self.heading).chain(&self.rows) {
            let padded: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
                .collect();
            text.push_str(padded.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

fn cell_text(cell: &str) -> String {
    if cell.is_empty() {
        "-".to_owned()
    } else {
        safe(cell)
    }
}

/// A text with nothing in it that drives a terminal or reorders what is read.
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || reorders {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["a-long-name".to_owned(), String::new()]);
        table.row(["é\x1b[2J".to_owned(), "up".to_owned()]);
        let text = table.print("none");
        assert_eq!(
            text,
            "NAME         STATE\na-long-name  -\né\\u{1b}[2J   up\n"
        );
        assert_eq!(Table::new(["NAME"]).print("none"), "none\n");
    }
}
