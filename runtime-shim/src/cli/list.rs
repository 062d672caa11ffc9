//! `list`.

use clap::{Args, ValueEnum};

use super::state::StateOutput;
use super::{Global, print};
use crate::failure::Failure;

/// Form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// Columns.
    Table,
    /// JSON.
    Json,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Form of the listing.
    #[arg(short, long, value_enum, default_value = "table")]
    pub format: ListFormat,
    /// Print ids only.
    #[arg(short, long)]
    pub quiet: bool,
}

pub(super) fn run(global: &Global, args: ListArgs) -> Result<u8, Failure> {
    let mut states = vec![];
    for view in global.store().list()? {
        match view {
            Ok(view) => states.push(StateOutput::of(&view)),
            // As runc: told, and the others are listed.
            Err(error) => global.log().failure(&error.into()),
        }
    }
    match (args.quiet, args.format) {
        (true, _) => print(&states.iter().map(|s| format!("{}\n", s.id)).collect::<String>()),
        // runc prints null, not an empty list, where there is nothing.
        (_, ListFormat::Json) if states.is_empty() => print("null\n"),
        (_, ListFormat::Json) => print(&json_line(&states)?),
        (_, ListFormat::Table) => print(&table(&states)),
    }
}

/// One line, as runc prints it.
fn json_line(states: &[StateOutput]) -> Result<String, Failure> {
    let text = serde_json::to_string(states);
    text.map(|text| text + "\n").map_err(|e| Failure::new("writing the output", e.to_string(), ""))
}

fn table(states: &[StateOutput]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = states.iter().map(|s| {
        let bundle = s.bundle.display().to_string();
        let (id, created) = (s.id.clone(), s.created.clone());
        [id, s.pid.to_string(), s.status.clone(), bundle, created, s.owner.clone()]
    });
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Rows with columns as wide as their widest entry, at least 12, three blanks apart, as runc's.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max();
        widest.unwrap_or(0).max(9) + 3
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_under_their_heads() {
        let rows = [["ID", "PID"], ["a-long-container", "1"], ["b", "22"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        let table = columns(&rows);
        let starts: Vec<_> = table.lines().map(|l| l.rfind("   ").unwrap() + 3).collect();
        assert_eq!(starts, [19, 19, 19]);
    }
}
