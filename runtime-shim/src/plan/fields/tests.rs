//! The table against the types, the schema, the code and the document.

use std::collections::BTreeSet;

use super::table::ROWS;
use super::*;

/// Configuration with every field that is applied.
const SAMPLE: &str = include_str!("sample.json");

#[test]
fn every_field_of_the_types_has_a_row() {
    let fields = walk::fields::<Spec>();
    for known in ["linux.seccomp.syscalls[].args[].valueTwo", "hooks.poststop[].timeout"] {
        assert!(fields.contains(known), "{fields:?}");
    }
    assert_covered(fields.iter().map(String::as_str));
}

#[test]
fn every_field_of_the_published_schema_has_a_row() {
    assert_covered(schema::FIELDS.into_iter());
}

#[track_caller]
fn assert_covered<'a>(fields: impl Iterator<Item = &'a str>) {
    let has_row = |path: &&str| ROWS.iter().any(|row| covers(row, path));
    let missing: Vec<&str> = fields.filter(|path| !has_row(path)).collect();
    assert!(missing.is_empty(), "without a row: {missing:#?}");
}

#[test]
fn every_row_is_about_a_field_and_there_once() {
    let fields = walk::fields::<Spec>();
    let all = || fields.iter().map(String::as_str).chain(schema::FIELDS);
    let mut seen = BTreeSet::new();
    for row in ROWS {
        assert!(seen.insert(row.0), "{} is there twice", row.0);
        let element = field(row).strip_suffix("[]").unwrap_or(field(row));
        let about = all().any(|path| names(row, path) || path == element);
        assert!(about, "{} is no field", row.0);
    }
}

/// That each is in truth refused, or dropped with a note, is a part of making the document.
#[test]
fn document_has_the_table_that_the_code_makes() {
    super::super::document::assert_current("fields", &document());
}

/// Paths of all values of `value`.
fn paths(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = match path {
                    "" => key.clone(),
                    outer => format!("{outer}.{key}"),
                };
                all.insert(path.clone());
                paths(value, &path, all);
            }
        }
        Value::Array(list) => list.iter().for_each(|v| paths(v, &format!("{path}[]"), all)),
        _ => {}
    }
}

#[test]
fn what_is_applied_is_where_the_table_has_it() {
    let sample: Value = serde_json::from_str(SAMPLE).unwrap();
    let plan = planned(&sample).unwrap_or_else(|e| panic!("{e}"));
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);
    let (mut given, mut in_guest) = (BTreeSet::new(), BTreeSet::new());
    paths(&sample, "", &mut given);
    paths(&serde_json::to_value(&plan.guest_spec).unwrap(), "", &mut in_guest);
    for row in ROWS.iter().filter(|row| field(row) == row.0) {
        let of_row = |all: &BTreeSet<String>| all.iter().any(|path| names(row, path));
        match row.1 {
            Fate::Guest(_) | Fate::Both(_) => {
                assert!(of_row(&given), "{} is not in the sample", row.0);
                assert!(of_row(&in_guest), "{} does not reach the guest", row.0);
            }
            Fate::Host(_) => {
                assert!(of_row(&given), "{} is not in the sample", row.0);
                assert!(!of_row(&in_guest), "{} reaches the guest", row.0);
            }
            Fate::Meaningless(_) | Fate::Refused(_) => {
                assert!(!of_row(&in_guest), "{} reaches the guest", row.0);
            }
        }
    }
    // Each field that is applied at all is in the sample.
    let applied = |path: &&str| {
        let row = ROWS.iter().find(|row| covers(row, path));
        !row.is_some_and(|row| matches!(row.1, Fate::Meaningless(_) | Fate::Refused(_)))
    };
    let is_given = |path: &str| given.contains(path);
    let missing: Vec<&str> =
        schema::FIELDS.into_iter().filter(applied).filter(|path| !is_given(path)).collect();
    assert!(missing.is_empty(), "not in the sample: {missing:?}");
}
