//! What becomes of each field of the specification: the table of `docs/oci.md`, and the tests
//! that hold it against the code, against the types of the specification and against its schema.
//!
//! The reasons in the document are those that the planner gives: they are not written twice.

mod schema;
mod table;
mod tests;
mod walk;

use std::path::Path;

use oci_spec::runtime::Spec;
use serde_json::Value;

use super::tests::base;
use super::{Policy, SandboxPlan, plan};
use crate::bundle::{self, CONFIG, Config};
use crate::failure::Failure;

/// What becomes of a field.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Applied in the guest, as the text says.
    Guest(&'static str),
    /// Applied on the host.
    Host(&'static str),
    /// Applied on both sides.
    Both(&'static str),
    /// Dropped, with a note that says why. The text is a change of the configuration, as JSON,
    /// by which that can be seen.
    Meaningless(&'static str),
    /// Refused by name; the text is a configuration that is.
    Refused(&'static str),
}

/// One row: a field, perhaps with the values that it is about behind a colon.
///
/// `[]` is every element of a list, `{}` every entry of a map, `*` any one name. What is
/// meaningless or refused covers all below it.
type Row = (&'static str, Fate);

/// The field of a row, without the value.
fn field(row: &Row) -> &'static str {
    row.0.split(": ").next().unwrap_or(row.0)
}

/// Whether the row is about `path` itself.
fn names(row: &Row, path: &str) -> bool {
    let (wanted, given) = (field(row).split('.'), path.split('.'));
    let matches = |(wanted, given): (&str, &str)| match wanted.strip_prefix('*') {
        Some(brackets) => given.ends_with(brackets) && brackets.is_empty() != given.ends_with(']'),
        None => wanted == given,
    };
    wanted.clone().count() == given.clone().count() && wanted.zip(given).all(matches)
}

/// Whether the row covers `path`.
fn covers(row: &Row, path: &str) -> bool {
    let whole = matches!(row.1, Fate::Meaningless(_) | Fate::Refused(_)) && field(row) == row.0;
    let below = |rest: &str| rest.starts_with(['.', '[', '{']);
    names(row, path) || whole && path.strip_prefix(field(row)).is_some_and(below)
}

/// [`base`] with `change`, a JSON merge patch (RFC 7386).
fn changed(change: &str) -> Value {
    let mut config = base();
    merge(&mut config, serde_json::from_str(change).expect("a change is JSON"));
    config
}

fn merge(target: &mut Value, change: Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (key, value) in change {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, change) => *target = change,
    }
}

/// Reads and plans a configuration as `create` does.
fn planned(config: &Value) -> Result<SandboxPlan, Failure> {
    let directory = tempfile::tempdir().expect("temp dir");
    std::fs::write(directory.path().join(CONFIG), config.to_string()).expect("config.json");
    let Config { spec, .. } = bundle::read_spec(directory.path())?;
    plan_it(spec)
}

fn plan_it(spec: Spec) -> Result<SandboxPlan, Failure> {
    Ok(plan(&"c".parse().expect("an id"), Path::new("/b"), spec, &Policy::default())?)
}

/// `linux.devices[0] (x)` as `linux.devices[] (x)`.
fn without_indices(text: &str) -> String {
    let mut parts = text.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| match part.split_once(']') {
        Some((index, rest)) if index.bytes().all(|b| b.is_ascii_digit()) => all + "[]" + rest,
        _ => all + "[" + part,
    })
}

/// Where the row is applied, and what is said of it.
fn description(row: &Row) -> (&'static str, String) {
    match row.1 {
        Fate::Guest(text) => ("guest", text.to_owned()),
        Fate::Host(text) => ("host", text.to_owned()),
        Fate::Both(text) => ("host and guest", text.to_owned()),
        Fate::Meaningless(change) => ("dropped", dropped(row, change)),
        Fate::Refused(change) => ("refused", refused(row, change)),
    }
}

/// What the note about the row's field says.
fn dropped(row: &Row, change: &str) -> String {
    let plan = planned(&changed(change)).unwrap_or_else(|e| panic!("{}: {e}", row.0));
    let about = |note: &&super::Note| names(row, &note.field) || covers(row, &note.field);
    let note = plan.notes.iter().find(about);
    note.unwrap_or_else(|| panic!("{}: {:?}", row.0, plan.notes)).reason.to_owned()
}

/// What the message that refuses the row's field says.
fn refused(row: &Row, change: &str) -> String {
    let Err(failure) = planned(&changed(change)) else { panic!("{} is not refused", row.0) };
    let cause = without_indices(&failure.cause);
    let rest = cause.strip_prefix(field(row)).unwrap_or_else(|| panic!("{}: {cause}", row.0));
    let (_, reason) = rest.split_once(": ").unwrap_or_else(|| panic!("{}: {cause}", row.0));
    reason.to_owned()
}

/// The table of the document.
fn document() -> String {
    let mut text = "| field | applied | what happens |\n|---|---|---|\n".to_owned();
    for row in table::ROWS {
        let (place, what) = description(row);
        text += &format!("| `{}` | {place} | {} |\n", row.0, what.replace('|', "\\|"));
    }
    text
}
