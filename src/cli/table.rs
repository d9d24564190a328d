//! Aligned columns of text.

use std::fmt::Write;

/// Rows of cells, as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    /// Columns whose cells stand to the right, by number.
    right: Vec<usize>,
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    /// A table whose columns `right` hold numbers.
    pub(crate) fn new(indent: usize, right: &[usize]) -> Self {
        Self { right: right.to_vec(), rows: Vec::new(), indent }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The rows, two blanks between columns and none at the end.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter(|row| row.len() > column + 1 || columns == 1);
            let right = self.right.contains(&column);
            let cells = cells.chain(self.rows.iter().filter(|_| right));
            cells.filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let done = if self.right.contains(&column) {
                    write!(line, "{cell:>width$}  ")
                } else {
                    write!(line, "{cell:<width$}  ")
                };
                done.expect("writing to a string");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number of bytes in the unit that gives a short number.
pub(crate) fn bytes(count: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.iter().find(|(size, _)| count >= *size && count.is_multiple_of(*size));
    unit.map_or_else(|| format!("{count} B"), |(size, name)| format!("{} {name}", count / size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(2, &[1]);
        table.row(["a", "10", "first"]);
        table.row(["long", "5"]);
        assert_eq!(table.text(), "  a     10  first\n  long   5\n");
    }

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(8), "8 B");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(1 << 27), "128 MiB");
        assert_eq!(bytes(1500), "1500 B");
    }
}
