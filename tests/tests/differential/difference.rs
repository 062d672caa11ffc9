//! What two outcomes do not have in common.

use bulkhead_tests::Outcome;

use crate::case::Explained;

/// What only one of both has, and whether the rest is the same in the same order.
pub struct Difference {
    ours: Vec<String>,
    theirs: Vec<String>,
    rest_agrees: bool,
}

impl Difference {
    /// Compares what two runtimes did.
    pub fn between(ours: &Outcome, theirs: &Outcome) -> Self {
        let lines = |outcome: &Outcome, other: &Outcome| -> Vec<String> {
            let mut lines: Vec<_> =
                outcome.text().lines().map(|line| line.trim_end().to_owned()).collect();
            if outcome.code != other.code {
                lines.push(format!("ended with {}", outcome.code));
            }
            lines
        };
        let (of_ours, of_theirs) = (lines(ours, theirs), lines(theirs, ours));
        let (ours, our_rest) = split(&of_ours, &of_theirs);
        let (theirs, their_rest) = split(&of_theirs, &of_ours);
        Self { ours, theirs, rest_agrees: our_rest == their_rest }
    }

    /// Whether it is what was explained, line by line.
    pub fn is(&self, explained: &Explained) -> bool {
        let all = |patterns: &[String], lines: &[String]| {
            patterns.len() == lines.len()
                && patterns.iter().zip(lines).all(|(pattern, line)| matches(pattern, line))
        };
        self.rest_agrees && all(&explained.peer, &self.theirs) && all(&explained.ours, &self.ours)
    }

    /// These lines, and how each ended.
    pub fn described(&self, ours: &Outcome, theirs: &Outcome) -> String {
        let mut text = String::new();
        for (mark, lines) in [("peer    ", &self.theirs), ("bulkhead", &self.ours)] {
            for line in lines {
                text += &format!("    {mark} | {line}\n");
            }
        }
        text += &format!("    peer     ended with {}: {}\n", theirs.code, theirs.stderr.trim());
        text += &format!("    bulkhead ended with {}: {}", ours.code, ours.stderr.trim());
        text
    }
}

/// The lines that `others` does not have, and those that it has.
fn split(lines: &[String], others: &[String]) -> (Vec<String>, Vec<String>) {
    let mut left: Vec<&String> = others.iter().collect();
    lines.iter().cloned().partition(|line| {
        let place = left.iter().position(|other| *other == line);
        place.map(|index| left.swap_remove(index)).is_none()
    })
}

/// Whether `line` is what `pattern` says, in which `*` stands for any text.
fn matches(pattern: &str, line: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == line };
    let Some(rest) = line.strip_prefix(before) else { return false };
    (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| matches(after, rest)))
}

#[test]
fn pattern_stands_for_any_text_where_a_star_is() {
    for (pattern, line, same) in [
        ("", "", true),
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "", true),
        ("a*", "abc", true),
        ("*c", "abc", true),
        ("a*c*e", "abcde", true),
        ("a*c*e", "abcd", false),
        ("*b", "ä", false),
    ] {
        assert_eq!(matches(pattern, line), same, "{pattern} {line}");
    }
}

#[test]
fn difference_in_order_is_no_explained_one() {
    let outcome = |text: &str| Outcome { code: 0, stdout: text.into(), stderr: String::new() };
    let explained = |peer: &str, ours: &str| Explained {
        id: "",
        peer: vec![peer.to_owned()],
        ours: vec![ours.to_owned()],
    };
    let swapped = Difference::between(&outcome("b\na\n1\n"), &outcome("a\nb\n2\n"));
    assert!(!swapped.is(&explained("2", "1")));
    let kept = Difference::between(&outcome("a\nb\n1\n"), &outcome("a\nb\n2\n"));
    assert!(kept.is(&explained("2", "1")));
    assert!(!kept.is(&explained("2", "2")));
}
