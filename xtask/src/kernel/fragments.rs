//! The files of `kernel-config/`: `NAME=VALUE` lines, each with its reason on the comment lines
//! directly above. Pure text in, pure data out.

use std::collections::HashMap;

use anyhow::{Result, bail};

/// One `NAME=VALUE` line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// Left of the equals sign.
    pub name: String,
    /// Right of it, as it stands.
    pub value: String,
}

/// Read the settings of the file `file` with contents `text`.
pub fn parse(file: &str, text: &str) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let mut reason = false;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.is_empty() {
            reason = false;
        } else if let Some(comment) = line.strip_prefix('#') {
            reason |= !comment.trim().is_empty();
        } else {
            let Some((name, value)) = line.split_once('=') else {
                bail!("{file}:{number}: not a comment and not NAME=VALUE: {line}");
            };
            if !reason {
                bail!("{file}:{number}: {name} has no reason on the line above it");
            }
            settings.push(Setting { name: name.to_owned(), value: value.to_owned() });
            reason = false;
        }
    }
    Ok(settings)
}

/// Join the settings of several files; a name that stands twice is an error.
pub fn join(files: &[(String, Vec<Setting>)]) -> Result<Vec<Setting>> {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    let mut all = Vec::new();
    for (file, settings) in files {
        for setting in settings {
            if let Some(first) = seen.insert(&setting.name, file) {
                bail!("{} stands in {first} and again in {file}", setting.name);
            }
            all.push(setting.clone());
        }
    }
    Ok(all)
}

/// The settings that `config`, a resolved `.config`, does not have as they were asked for.
pub fn unmet<'a>(wanted: &'a [Setting], config: &str) -> Vec<&'a Setting> {
    let resolved: HashMap<&str, &str> =
        config.lines().filter_map(|line| line.split_once('=')).collect();
    wanted
        .iter()
        .filter(|setting| resolved.get(setting.name.as_str()) != Some(&setting.value.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str) -> Setting {
        Setting { name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn parse_lines_with_reasons_are_read() {
        let text =
            "# About the file.\n\n# Why A.\nCONFIG_A=y\n# Why B,\n# at length.\nCONFIG_B=15\n";
        let settings = parse("x.config", text).unwrap();
        assert_eq!(settings, [setting("CONFIG_A", "y"), setting("CONFIG_B", "15")]);
    }

    #[test]
    fn parse_line_without_reason_is_refused_by_name_and_line() {
        for text in ["CONFIG_A=y\n", "# Why.\n\nCONFIG_A=y\n", "#\nCONFIG_A=y\n"] {
            let error = parse("x.config", text).unwrap_err().to_string();
            assert!(error.contains("CONFIG_A has no reason"), "{error}");
        }
        let error = parse("x.config", "# Why A.\nCONFIG_A=y\nCONFIG_B=y\n").unwrap_err();
        assert!(error.to_string().contains("x.config:3: CONFIG_B"), "{error}");
    }

    #[test]
    fn parse_other_text_is_refused() {
        assert!(parse("x.config", "# Why.\nCONFIG_A\n").is_err());
    }

    #[test]
    fn join_name_in_two_files_is_refused() {
        let one = ("a.config".to_owned(), vec![setting("CONFIG_A", "y")]);
        let two = ("b.config".to_owned(), vec![setting("CONFIG_A", "y")]);
        let error = join(&[one, two]).unwrap_err().to_string();
        assert_eq!(error, "CONFIG_A stands in a.config and again in b.config");
    }

    #[test]
    fn unmet_missing_and_changed_options_are_found() {
        let wanted =
            [setting("CONFIG_A", "y"), setting("CONFIG_B", "15"), setting("CONFIG_C", "y")];
        let config = "CONFIG_A=y\nCONFIG_B=17\n# CONFIG_C is not set\n";
        let names: Vec<&str> = unmet(&wanted, config).iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["CONFIG_B", "CONFIG_C"]);
    }
}
