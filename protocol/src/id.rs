//! Identifiers. A checked id is safe as one path component, a cgroup name and a log field.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::ID_MAX;

/// Why a text is not an id; the first words are runc's.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdError {
    /// Empty text.
    #[error("container id cannot be empty")]
    Empty,
    /// Longer than [`ID_MAX`] bytes.
    #[error("invalid container ID format: {0} bytes are too long (at most {ID_MAX})")]
    Long(usize),
    /// A byte outside runc's set, or a name that is a path (`.` or `..`).
    #[error("invalid container ID format: {0:?} (allowed are letters, digits and _ + - .)")]
    Invalid(String),
}

/// Id of a container, with runc's rule: `[A-Za-z0-9_+.-]+`, not `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContainerId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let valid = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
        match text.len() {
            0 => Err(IdError::Empty),
            n if n > ID_MAX => Err(IdError::Long(n)),
            _ if !text.bytes().all(valid) || text == "." || text == ".." => {
                Err(IdError::Invalid(text))
            }
            _ => Ok(Self(text)),
        }
    }
}

impl std::str::FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_runc_alphabet_is_accepted() {
        for id in ["a", "web-1", "A_b+c.d", "..."] {
            assert_eq!(id.parse::<ContainerId>().unwrap().as_str(), id);
        }
    }

    #[test]
    fn id_that_is_a_path_is_refused() {
        for id in [".", "..", "a/b", "../x", "a\0", "a b", "é"] {
            assert!(matches!(id.parse::<ContainerId>(), Err(IdError::Invalid(_))), "{id:?}");
        }
        assert_eq!("".parse::<ContainerId>(), Err(IdError::Empty));
        assert_eq!("x".repeat(256).parse::<ContainerId>(), Err(IdError::Long(256)));
    }
}
