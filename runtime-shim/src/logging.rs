//! How a command tells its failure: one line on standard error, and an entry in the file of
//! `--log` in runc's text or JSON form, which clients read.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::Failure;
use crate::state::timestamp;

/// Form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `time="..." level=error msg="..."`.
    #[default]
    Text,
    /// One JSON object in each line.
    Json,
}

/// Where and how a command logs.
#[derive(Debug, Default)]
pub struct Log {
    /// The file of `--log`, if there is one, and if it could be opened.
    file: Option<(PathBuf, io::Result<File>)>,
    /// Form of its entries.
    format: LogFormat,
    /// Show what is behind a failure on standard error, too.
    debug: bool,
}

#[derive(Serialize)]
struct Entry<'a> {
    level: &'a str,
    msg: &'a str,
    time: &'a str,
}

impl Log {
    /// Opens the file `path`, which is made if it does not exist. A command may be in a mount
    /// namespace of a container when it fails, so that is done before.
    pub fn open(path: Option<&Path>, format: LogFormat, debug: bool) -> Self {
        let open = |path: &Path| File::options().create(true).append(true).open(path);
        Self { file: path.map(|path| (path.to_owned(), open(path))), format, debug }
    }

    /// Tells a failure. What cannot be written to the log is still on standard error.
    pub fn failure(&self, failure: &Failure) {
        let text = failure.to_string();
        if self.debug {
            let _ = io::stderr().write_all(failure.details.as_bytes());
        }
        let _ = writeln!(io::stderr(), "bulkhead: {text}");
        // The failure comes last: clients show the last error of the log.
        let details = match failure.details.as_str() {
            "" => Ok(()),
            details => self.append("info", details),
        };
        if let Err(e) = details.and_then(|()| self.append("error", &text))
            && let Some((path, _)) = &self.file
        {
            let _ = writeln!(io::stderr(), "bulkhead: writing log {}: {e}", path.display());
        }
    }

    fn append(&self, level: &str, text: &str) -> io::Result<()> {
        let entry = self.entry(level, text, &timestamp(SystemTime::now()));
        match &self.file {
            None => Ok(()),
            Some((_, Ok(file))) => (&*file).write_all(entry.as_bytes()),
            Some((_, Err(e))) => Err(io::Error::new(e.kind(), e.to_string())),
        }
    }

    fn entry(&self, level: &str, msg: &str, time: &str) -> String {
        match self.format {
            LogFormat::Text => format!("time=\"{time}\" level={level} msg={msg:?}\n"),
            LogFormat::Json => {
                // Three texts always have a JSON form.
                let json = serde_json::to_string(&Entry { level, msg, time }).unwrap_or_default();
                json + "\n"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_one_json_line_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        let log = Log::open(Some(&path), LogFormat::Json, false);
        log.failure(&Failure::new("p", "a \"b\"", ""));
        let words = "console:\nlast\n".to_owned();
        log.failure(&Failure::new("p", "c", "").with_details(words));
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1]["level"], "info");
        assert_eq!(lines[1]["msg"], "console:\nlast\n");
        assert_eq!(lines[0]["level"], "error");
        assert_eq!(lines[0]["msg"], "p: a \"b\"");
        assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn text_entry_quotes_its_message() {
        let log = Log::default();
        assert_eq!(
            log.entry("error", "a\n\"b\"", "t"),
            "time=\"t\" level=error msg=\"a\\n\\\"b\\\"\"\n"
        );
    }
}
