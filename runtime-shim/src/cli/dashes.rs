//! Flags with the dashes of Go's `flag`: runc takes `-bundle DIR` for `--bundle DIR` and `--b DIR`
//! for `-b DIR`, which clap would read as letters and refuse.
//!
//! Only the dashes of a flag that the command has are changed. What a flag takes as its value, what
//! follows `--`, and the words of a process or of ps(1) stay as they are.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{Arg, Command};

/// The command with the flags of `docker run`, where `-env` has always been `-e nv`.
const OF_DOCKER: &str = "launch";

/// `arguments`, the program's name first, as clap reads them by the definition `command`.
pub(super) fn for_clap<T: Into<OsString>>(
    command: &Command,
    arguments: impl IntoIterator<Item = T>,
) -> Vec<OsString> {
    let mut words = arguments.into_iter().map(Into::into);
    let mut read: Vec<OsString> = words.next().into_iter().collect();
    let mut command = command;
    while let Some(word) = words.next() {
        match word.as_bytes() {
            b"--" => {
                read.push(word);
                break;
            }
            [b'-', _, ..] => {
                let flag = Flag::of(command, word);
                read.push(flag.word);
                if flag.takes_next {
                    read.extend(words.next());
                }
            }
            _ => {
                let below = command.find_subcommand(&word);
                read.push(word);
                match below {
                    Some(below) if below.get_name() == OF_DOCKER => break,
                    Some(below) => command = below,
                    // The container's id; what follows belongs to somebody else.
                    None if command.get_positionals().any(Arg::is_trailing_var_arg_set) => break,
                    None => {}
                }
            }
        }
    }
    read.extend(words);
    read
}

/// A word that begins with a dash.
struct Flag {
    /// With the dashes that clap wants.
    word: OsString,
    /// Whether its value is the word behind it.
    takes_next: bool,
}

impl Flag {
    fn of(command: &Command, word: OsString) -> Self {
        let bytes = word.as_bytes();
        let dashes = if bytes.starts_with(b"--") { 2 } else { 1 };
        let text = &bytes[dashes..];
        let mut parts = text.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let alone = parts.next().is_none();
        let long =
            |argument: &&Arg| argument.get_long().is_some_and(|long| long.as_bytes() == name);
        if let Some(argument) = command.get_arguments().find(long) {
            let takes_next = alone && wants_value(argument);
            return Self { word: dashed("--", text), takes_next };
        }
        if dashes == 2 && name.len() > 1 {
            return Self { word, takes_next: false };
        }
        let takes_next = last_letter_wants_value(command, text);
        Self { word: dashed("-", text), takes_next }
    }
}

fn dashed(dashes: &str, text: &[u8]) -> OsString {
    let mut word = OsString::from(dashes);
    word.push(OsStr::from_bytes(text));
    word
}

/// A truth value stands behind `=`, every other one may be the next word.
fn wants_value(argument: &Arg) -> bool {
    argument.get_action().takes_values() && !argument.is_require_equals_set()
}

/// Letters in one word, as clap reads them and Go does not: the first one that takes a value has the
/// rest of the word, or, without a rest, the next word.
fn last_letter_wants_value(command: &Command, letters: &[u8]) -> bool {
    let wants = |letter: u8| {
        let mut arguments = command.get_arguments();
        let argument = arguments.find(|argument| argument.get_short() == Some(char::from(letter)));
        argument.is_some_and(wants_value)
    };
    letters.iter().position(|letter| wants(*letter)) == letters.len().checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> String {
        let words = std::iter::once("bulkhead").chain(line.split_ascii_whitespace());
        let read = for_clap(&super::super::command(), words);
        let words = read.iter().skip(1).map(|word| word.to_str().unwrap());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn flags_of_one_dash_get_two_and_letters_of_two_dashes_one() {
        for (given, expected) in [
            (
                "-root /r -debug run -bundle /b -detach c",
                "--root /r --debug run --bundle /b --detach c",
            ),
            ("-root=/x -systemd-cgroup=false list", "--root=/x --systemd-cgroup=false list"),
            ("run --b /b --d=false c", "run -b /b -d=false c"),
            ("run c -pid-file /p", "run c --pid-file /p"),
            ("exec -user 1:2 -tty -env A=-b c ls", "exec --user 1:2 --tty --env A=-b c ls"),
            ("update -memory -1 c", "update --memory -1 c"),
            ("-version", "--version"),
        ] {
            assert_eq!(read(given), expected);
        }
    }

    #[test]
    fn what_is_no_flag_of_the_command_keeps_its_dashes() {
        for line in [
            "run -b /b -nonsense --nonsense c",
            "-bundle /b run c",
            // Values, even those that look like flags.
            "--root -debug list",
            "run -b -detach c",
            "exec -te -tty c ls",
            "exec -eA=-tty -u1:2 c ls",
            "exec -e=A c ls",
            // Words of others.
            "exec c ls -tty --t",
            "exec c -tty",
            "ps c -format",
            "run -- -bundle",
            // docker's flags.
            "launch -it -env -rm img -tty",
        ] {
            assert_eq!(read(line), line);
        }
    }

    #[test]
    fn value_of_any_bytes_is_kept() {
        let value = OsStr::from_bytes(b"-bundle=/\xff");
        let words = [OsStr::new("bulkhead"), OsStr::new("run"), value];
        let read = for_clap(&super::super::command(), words);
        assert_eq!(read[2], OsStr::from_bytes(b"--bundle=/\xff"));
    }
}
