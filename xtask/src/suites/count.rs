//! Counts of passed and failed tests, read from what test programs print.

/// A result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and programs that did not come to an end.
    pub failed: u64,
}

impl Count {
    /// Add another result.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Add what a line of output tells: `test result: …` of a test program. Other lines tell
    /// nothing.
    pub fn line(&mut self, line: &str) {
        let text = line.trim();
        if text.starts_with("test result:") {
            self.passed += before(text, " passed");
            self.failed += before(text, " failed");
        }
    }

    /// A program that ended with a failure nobody counted is one failed test.
    pub fn settle(mut self, succeeded: bool) -> Self {
        if !succeeded && self.failed == 0 {
            self.failed = 1;
        }
        self
    }
}

/// The number before `word`; 0 when there is none.
fn before(text: &str, word: &str) -> u64 {
    let Some((left, _)) = text.split_once(word) else { return 0 };
    let digits = left.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(line: &str) -> (u64, u64) {
        let mut count = Count::default();
        count.line(line);
        (count.passed, count.failed)
    }

    #[test]
    fn line_of_libtest_is_counted() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(counted(line), (12, 3));
    }

    #[test]
    fn line_of_a_test_is_not_counted() {
        assert_eq!(counted("test 5 passed ... ok"), (0, 0));
    }

    #[test]
    fn settle_uncounted_failure_counts_once() {
        assert_eq!(Count::default().settle(false).failed, 1);
        assert_eq!(Count { passed: 1, failed: 2 }.settle(false).failed, 2);
        assert_eq!(Count::default().settle(true).failed, 0);
    }
}
