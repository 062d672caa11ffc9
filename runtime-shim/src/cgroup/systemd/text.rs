//! Values of properties as annotations have them: GVariant's text format (docs.gtk.org, "GVariant
//! Text Format"), as far as properties of units need it. Pure.
//!
//! Trust: the text is the container's.

use super::property::Value;

/// Longest text.
const LENGTH_MAX: usize = 4096;

/// The value that `text` is; none if it is no value, or one of a type that no property has.
pub fn parse(text: &str) -> Option<Value> {
    let mut parser = Parser { rest: text.trim() };
    let value = (text.len() <= LENGTH_MAX).then(|| parser.value())??;
    parser.rest.is_empty().then_some(value)
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    /// A value with its type in front of it, or one that shows it.
    fn value(&mut self) -> Option<Value> {
        let kind = self.kind();
        let value = match self.rest.chars().next()? {
            '\'' | '"' => Value::Text(self.string()?),
            '[' => Value::Texts(self.strings()?),
            _ => self.word(kind)?,
        };
        self.rest = self.rest.trim_start();
        kind.is_none_or(|kind| kind == value.signature()).then_some(value)
    }

    /// A type before a value, as its signature.
    fn kind(&mut self) -> Option<&'static str> {
        const KINDS: [(&str, &str, &str); 7] = [
            ("boolean ", "@b ", "b"),
            ("int32 ", "@i ", "i"),
            ("uint32 ", "@u ", "u"),
            ("int64 ", "@x ", "x"),
            ("uint64 ", "@t ", "t"),
            ("string ", "@s ", "s"),
            ("@as ", "@as ", "as"),
        ];
        let (rest, kind) = KINDS.iter().find_map(|(word, sign, kind)| {
            let rest = self.rest.strip_prefix(word).or(self.rest.strip_prefix(sign))?;
            Some((rest, *kind))
        })?;
        self.rest = rest.trim_start();
        Some(kind)
    }

    /// A truth value or a number, which is an `int32` unless `kind` says something else.
    fn word(&mut self, kind: Option<&str>) -> Option<Value> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-".contains(c));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        match word {
            "true" => return Some(Value::Bool(true)),
            "false" => return Some(Value::Bool(false)),
            _ => {}
        }
        let number = number(word)?;
        match kind.unwrap_or("i") {
            "i" => number.try_into().ok().map(Value::Int32),
            "u" => number.try_into().ok().map(Value::Uint32),
            "x" => number.try_into().ok().map(Value::Int64),
            "t" => number.try_into().ok().map(Value::Uint64),
            _ => None,
        }
    }

    fn string(&mut self) -> Option<String> {
        let mut chars = self.rest.chars();
        let quote = chars.next()?;
        let mut text = String::new();
        loop {
            match chars.next()? {
                c if c == quote => break,
                '\\' => text.push(chars.next().filter(|c| "\\'\"".contains(*c))?),
                // A line of its own in the unit's file.
                c if c.is_control() => return None,
                c => text.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(text)
    }

    fn strings(&mut self) -> Option<Vec<String>> {
        self.rest = self.rest.strip_prefix('[')?.trim_start();
        let mut strings = vec![];
        loop {
            if let Some(rest) = self.rest.strip_prefix(']') {
                self.rest = rest;
                return Some(strings);
            }
            if !strings.is_empty() {
                self.rest = self.rest.strip_prefix(',')?.trim_start();
            }
            if !self.rest.starts_with(['\'', '"']) {
                return None;
            }
            strings.push(self.string()?);
            self.rest = self.rest.trim_start();
        }
    }
}

/// An integer, decimal, or hexadecimal behind `0x`.
fn number(word: &str) -> Option<i128> {
    let (sign, digits) = match word.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, word.strip_prefix('+').unwrap_or(word)),
    };
    let (digits, base) = digits.strip_prefix("0x").map_or((digits, 10), |digits| (digits, 16));
    let digits = Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_alphanumeric()));
    u64::from_str_radix(digits?, base).ok().map(|n| sign * i128::from(n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_is_the_value_that_it_shows() {
        let text = |text: &str| Value::Text(text.to_owned());
        let texts = |all: &[&str]| Value::Texts(all.iter().map(|s| (*s).to_owned()).collect());
        for (given, expected) in [
            ("true", Value::Bool(true)),
            (" boolean false ", Value::Bool(false)),
            ("15", Value::Int32(15)),
            ("-0x10", Value::Int32(-16)),
            ("uint64 90000000", Value::Uint64(90_000_000)),
            ("@t 18446744073709551615", Value::Uint64(u64::MAX)),
            ("int64 -5", Value::Int64(-5)),
            ("@u 7", Value::Uint32(7)),
            ("'inactive-or-failed'", text("inactive-or-failed")),
            (r#""a\"b\\c'""#, text("a\"b\\c'")),
            ("['a.service', \"b.service\"]", texts(&["a.service", "b.service"])),
            ("@as []", texts(&[])),
        ] {
            assert_eq!(parse(given), Some(expected), "{given}");
        }
    }

    #[test]
    fn text_of_no_value_is_refused() {
        for given in [
            "",
            "word",
            "15 16",
            "uint32 -1",
            "2147483648",
            "string 5",
            "@t 'a'",
            "'a",
            "'a' b",
            "['a' 'b']",
            "['a',]",
            "[1]",
            "'a\nb'",
            r"'a\n'",
            "1.5",
            "--1",
            "0x",
            "+-1",
        ] {
            assert_eq!(parse(given), None, "{given}");
        }
        assert_eq!(parse(&format!("'{}'", "x".repeat(LENGTH_MAX))), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,64}") {
            let _ = parse(&text);
        }
    }
}
