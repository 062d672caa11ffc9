//! The environment of a container: Docker's defaults, the image's, and the caller's.

use std::path::Path;

use thiserror::Error;

/// Docker's default.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why variables cannot be taken.
#[derive(Debug, Error)]
pub enum EnvError {
    /// The file of `--env-file`.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A variable without a name, or with blanks in it.
    #[error("{0:?} is not a variable: NAME or NAME=VALUE is wanted")]
    Name(String),
}

/// One `-e`: `NAME=VALUE`, or `NAME` for the caller's own value; a name that the caller does not
/// have takes the image's variable away.
pub fn flag(text: &str, own: impl Fn(&str) -> Option<String>) -> Result<String, EnvError> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    if name.is_empty() {
        return Err(EnvError::Name(text.to_owned()));
    }
    Ok(match text.contains('=') {
        true => text.to_owned(),
        false => own(name).map_or_else(|| name.to_owned(), |value| format!("{name}={value}")),
    })
}

/// The variables of an `--env-file`.
pub fn read_file(
    path: &Path,
    own: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, EnvError> {
    let failed = |source| EnvError::Read { path: path.display().to_string(), source };
    file(&std::fs::read_to_string(path).map_err(failed)?, own)
}

/// Lines `NAME=VALUE`, the value as it is, without quotes or comments behind it; `NAME` takes
/// the caller's value if there is one.
fn file(text: &str, own: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, EnvError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line, None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(EnvError::Name(line.to_owned()));
        }
        if let Some(value) = value.or_else(|| own(name)) {
            variables.push(format!("{name}={value}"));
        }
    }
    Ok(variables)
}

/// `defaults`, overridden by the image's variables and these by the caller's. A caller's entry
/// without `=` takes a variable away; an image's is left out.
pub fn merge(defaults: &[String], image: &[String], caller: &[String]) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    let image = image.iter().filter(|variable| variable.contains('='));
    for variable in defaults.iter().chain(image).chain(caller) {
        let is_same = |known: &String| name(known) == name(variable);
        let at = merged.iter().position(is_same);
        match (at, variable.contains('=')) {
            (Some(at), true) => merged[at].clone_from(variable),
            (Some(at), false) => drop(merged.remove(at)),
            (None, true) if !name(variable).is_empty() => merged.push(variable.clone()),
            (None, _) => {}
        }
    }
    merged
}

/// Name of a variable.
pub fn name(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(name: &str) -> Option<String> {
        (name == "HERE").then(|| "here".to_owned())
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn flags_are_values_or_the_callers_own() {
        for (text, expected) in [
            ("A=1", "A=1"),
            ("A=", "A="),
            ("A=b=c", "A=b=c"),
            ("HERE", "HERE=here"),
            ("NOT", "NOT"),
        ] {
            assert_eq!(flag(text, own).unwrap(), expected);
        }
        assert!(matches!(flag("=x", own), Err(EnvError::Name(_))));
        assert!(matches!(flag("", own), Err(EnvError::Name(_))));
    }

    #[test]
    fn file_is_read_as_docker_does() {
        let text = "\u{feff}# comment\n\n  A=1\nB= x # no comment \nC=\"quoted\"\nHERE\nNOT\n";
        let expected = ["A=1", "B= x # no comment ", "C=\"quoted\"", "HERE=here"];
        assert_eq!(file(text, own).unwrap(), expected);
        for bad in ["=x", "A B=1", "A B"] {
            assert!(matches!(file(bad, own), Err(EnvError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn later_variables_override_and_bare_names_remove() {
        let merged = merge(
            &strings(&["PATH=/default", "HOSTNAME=h"]),
            &strings(&["PATH=/image", "A=image", "GONE=image", "BROKEN", "=x"]),
            &strings(&["A=caller", "GONE", "NEVER", "N=1", "N=2"]),
        );
        assert_eq!(merged, ["PATH=/image", "HOSTNAME=h", "A=caller", "N=2"]);
    }
}
