//! Why a specification cannot be run, by the name of the field.

use thiserror::Error;

use super::POLICY_FILE;
use crate::failure::Explain;

/// Why a specification cannot be run.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that the specification does not allow.
    #[error("{field}: {value:?} is invalid: {reason}")]
    Invalid {
        /// Name of the field.
        field: String,
        /// What it holds.
        value: String,
        /// What is allowed.
        reason: &'static str,
    },
    /// A value that is allowed, but cannot be had here.
    #[error("{field}: {reason}")]
    Refused {
        /// Name of the field.
        field: String,
        /// Why.
        reason: &'static str,
    },
    /// A value that could be had, but that the host's operator does not allow.
    #[error("{field}: {value:?} is not allowed: {reason}")]
    Forbidden {
        /// Name of the field.
        field: String,
        /// What it holds.
        value: String,
        /// What is allowed.
        reason: String,
    },
}

impl Explain for PlanError {
    fn phase(&self) -> &'static str {
        "planning the sandbox"
    }

    fn fix(&self) -> String {
        match self {
            Self::Missing(field) => format!("add {field} to config.json"),
            Self::Invalid { .. } => "correct config.json".into(),
            Self::Refused { .. } => "remove it from config.json".into(),
            Self::Forbidden { .. } => format!("{POLICY_FILE} says what is"),
        }
    }
}

impl PlanError {
    pub(super) fn invalid(
        field: impl Into<String>,
        value: impl ToString,
        reason: &'static str,
    ) -> Self {
        let (field, value) = (field.into(), value.to_string());
        Self::Invalid { field, value, reason }
    }

    pub(super) fn refused(field: impl Into<String>, reason: &'static str) -> Self {
        Self::Refused { field: field.into(), reason }
    }

    pub(super) fn forbidden(
        field: impl Into<String>,
        value: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        let (field, value, reason) = (field.into(), value.to_string(), reason.into());
        Self::Forbidden { field, value, reason }
    }
}
