//! Translates Go's regular expressions, as they occur in patterns, to Rust's.
//!
//! `patternmatcher` passes syntax that it does not handle on to Go's `regexp` package, so undocumented Go syntax works
//! in `.dockerignore`: `\d` is a digit, `[[:alpha:]]` a letter, `^` the start of the path. `|`, `{` and `}` are not
//! escaped, although they should be: patternmatcher's table of characters to escape has no bits for them. This is
//! reproduced for fidelity.
//!
//! The syntax is that of Go's `regexp/syntax` at Go 1.26. Syntax that Go and Rust share can differ in meaning
//! (`[a&&b]`, `\s`, `\<`), so each element is translated.

use std::fmt::Write as _;

use regex::bytes::{Regex, RegexBuilder};

/// The remaining budget for the patterns of one file, which limits time and memory. The unit is the cost of one
/// character, about a hundred bytes; repetitions count each time.
#[derive(Debug)]
pub(in crate::context) struct Budget(u32);

impl Default for Budget {
    fn default() -> Self {
        Self(1 << 18)
    }
}

impl Budget {
    /// Whether a pattern exceeded it.
    pub(in crate::context) fn is_used_up(&self) -> bool {
        self.0 == 0
    }
}

/// The cost of a class, which is a small automaton over the bytes of UTF-8.
const CLASS: u32 = 16;

/// The base cost of a pattern.
const PATTERN: u32 = 16;

/// The largest compiled program of a pattern, in case the estimate is wrong.
const MOST_BYTES: usize = 1 << 26;

/// An inclusive range of characters.
type Range = (char, char);

/// Go's `\d`, `\s` and `\w`, which are ASCII only.
const DIGIT: &[Range] = &[('0', '9')];
const SPACE: &[Range] = &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')];
const WORD: &[Range] = &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];

/// The POSIX classes, also ASCII only.
const NAMED: [(&str, &[Range]); 14] = [
    ("alnum", &[('0', '9'), ('A', 'Z'), ('a', 'z')]),
    ("alpha", &[('A', 'Z'), ('a', 'z')]),
    ("ascii", &[('\0', '\x7f')]),
    ("blank", &[('\t', '\t'), (' ', ' ')]),
    ("cntrl", &[('\0', '\x1f'), ('\x7f', '\x7f')]),
    ("digit", DIGIT),
    ("graph", &[('!', '~')]),
    ("lower", &[('a', 'z')]),
    ("print", &[(' ', '~')]),
    ("punct", &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')]),
    ("space", &[('\t', '\r'), (' ', ' ')]),
    ("upper", &[('A', 'Z')]),
    ("word", WORD),
    ("xdigit", &[('0', '9'), ('A', 'F'), ('a', 'f')]),
];

/// Compiles a regular expression in Go's syntax.
///
/// # Errors
///
/// If Go rejects the expression, if it contains `\p` (whose tables would make the library larger), or if it is too
/// large.
pub(super) fn compile(expression: &str, budget: &mut Budget) -> Result<Regex, &'static str> {
    const TOO_LARGE: &str = "is too large, or too many patterns come before it";
    const INVALID: &str = "is not valid";
    let mut parser = Parser {
        rest: expression,
        repeated: false,
        cost: PATTERN,
        regex: String::with_capacity(4 * expression.len()),
    };
    parser.all().ok_or(INVALID)?;
    let Some(left) = budget.0.checked_sub(parser.cost) else {
        budget.0 = 0;
        return Err(TOO_LARGE);
    };
    budget.0 = left;
    RegexBuilder::new(&parser.regex)
        .size_limit(MOST_BYTES)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => TOO_LARGE,
            _ => INVALID,
        })
}

struct Parser<'a> {
    rest: &'a str,
    /// Whether the last element was a repetition, which cannot be repeated.
    repeated: bool,
    /// What the expression takes from the budget.
    cost: u32,
    regex: String,
}

impl Parser<'_> {
    fn all(&mut self) -> Option<()> {
        let mut before = self.cost;
        loop {
            // The cost of the element that a repetition repeats.
            let last = self.cost - std::mem::replace(&mut before, self.cost);
            // The most frequent elements are matched as bytes, which compiles to small programs. The path is UTF-8,
            // so the next element still starts at a character boundary.
            if self.take("[^/]*") {
                self.regex.push_str("(?-u:[^/]*)");
                self.cost += 1;
                self.repeated = true;
                continue;
            }
            if self.take(".*") {
                self.regex.push_str(r"(?-u:[^\n]*)");
                self.cost += 1;
                self.repeated = true;
                continue;
            }
            let after_repetition = std::mem::take(&mut self.repeated);
            let Some(c) = self.next() else {
                return Some(());
            };
            match c {
                '^' => self.regex.push_str(r"\A"),
                '$' => self.regex.push_str(r"\z"),
                '(' => self.regex.push_str("(?:"),
                ')' | '|' => self.regex.push(c),
                '*' | '?' => {
                    self.regex.push(c);
                    self.repeated = true;
                }
                '{' => match self.times()? {
                    Some((least, most)) => {
                        let times = most.unwrap_or(least);
                        self.cost = self.cost.saturating_add(last.saturating_mul(times));
                        let most = most.map(|most| most.to_string()).unwrap_or_default();
                        let _ = write!(self.regex, "{{{least},{most}}}");
                        self.repeated = true;
                    }
                    None => self.literal(c),
                },
                '[' => self.class()?,
                '\\' => self.escape()?,
                c => self.literal(c),
            }
            if self.repeated && after_repetition {
                return None;
            }
        }
    }

    /// Parses `{2}`, `{2,}` or `{2,3}` after the brace; the inner `None` means a literal brace.
    fn times(&mut self) -> Option<Option<(u32, Option<u32>)>> {
        const MOST: u32 = 1000;
        fn number(text: &str) -> Option<(u32, &str)> {
            let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = text.split_at(digits);
            let zeros = digits > 1 && number.starts_with('0');
            // A number that overflows is too large in any case.
            (digits > 0 && !zeros).then(|| (number.parse().unwrap_or(u32::MAX), rest))
        }
        fn all(text: &str) -> Option<(u32, Option<u32>, &str)> {
            let (least, rest) = number(text)?;
            let Some(rest) = rest.strip_prefix(',') else {
                return Some((least, Some(least), rest.strip_prefix('}')?));
            };
            if let Some(rest) = rest.strip_prefix('}') {
                return Some((least, None, rest));
            }
            let (most, rest) = number(rest)?;
            Some((least, Some(most), rest.strip_prefix('}')?))
        }
        let Some((least, most, rest)) = all(self.rest) else {
            return Some(None);
        };
        if least > MOST || most.is_some_and(|most| most > MOST || most < least) {
            return None;
        }
        self.rest = rest;
        Some(Some((least, most)))
    }

    /// Translates an escape outside of a class, after the backslash.
    fn escape(&mut self) -> Option<()> {
        if let Some((members, negated)) = self.perl_class() {
            self.write_class(&ranges(members, negated), false);
            return Some(());
        }
        match self.rest.chars().next()? {
            'A' => self.regex.push_str(r"\A"),
            'z' => self.regex.push_str(r"\z"),
            'b' => self.regex.push_str(r"(?-u:\b)"),
            'B' => self.regex.push_str(r"(?-u:\B)"),
            'Q' => {
                let quoted = &self.rest[1..];
                let (quoted, rest) = quoted.split_once(r"\E").unwrap_or((quoted, ""));
                self.rest = rest;
                quoted.chars().for_each(|c| self.literal(c));
                return Some(());
            }
            _ => {
                let c = self.escaped()?;
                self.literal(c);
                return Some(());
            }
        }
        self.next();
        Some(())
    }

    /// Translates a class, after the `[`.
    fn class(&mut self) -> Option<()> {
        let negated = self.take("^");
        let mut members: Vec<Range> = Vec::new();
        let mut first = true;
        while first || !self.take("]") {
            first = false;
            if let Some(named) = self.named_class()? {
                members.extend(named);
                continue;
            }
            if let Some(escaped) = self.rest.strip_prefix('\\') {
                let before = std::mem::replace(&mut self.rest, escaped);
                if let Some((of, negated)) = self.perl_class() {
                    members.extend(ranges(of, negated));
                    continue;
                }
                self.rest = before;
            }
            let from = self.class_char()?;
            let to = match self.rest.strip_prefix('-') {
                Some(rest) if !rest.is_empty() && !rest.starts_with(']') => {
                    self.rest = rest;
                    self.class_char()?
                }
                _ => from,
            };
            if to < from {
                return None;
            }
            members.push((from, to));
        }
        self.write_class(&members, negated);
        Some(())
    }

    /// Parses a named class such as `[:alpha:]`; the outer `None` means an unknown name.
    fn named_class(&mut self) -> Option<Option<Vec<Range>>> {
        let Some((name, rest)) = self
            .rest
            .strip_prefix("[:")
            .and_then(|rest| rest.split_once(":]"))
        else {
            return Some(None);
        };
        let (name, negated) = match name.strip_prefix('^') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let (_, of) = NAMED.iter().find(|(known, _)| *known == name)?;
        self.rest = rest;
        Some(Some(ranges(of, negated)))
    }

    /// Parses `\d`, `\s`, `\w` or their negations, after the backslash: the members, and whether it is negated.
    fn perl_class(&mut self) -> Option<(&'static [Range], bool)> {
        let c = self.rest.chars().next()?;
        let members = match c.to_ascii_lowercase() {
            'd' => DIGIT,
            's' => SPACE,
            'w' => WORD,
            _ => return None,
        };
        self.next();
        Some((members, c.is_ascii_uppercase()))
    }

    fn class_char(&mut self) -> Option<char> {
        match self.next()? {
            '\\' => self.escaped(),
            c => Some(c),
        }
    }

    /// Parses an escape that means one character, after the backslash.
    fn escaped(&mut self) -> Option<char> {
        match self.next()? {
            // A single digit would be a back-reference.
            '1'..='7' if self.octal_digit().is_none() => None,
            c @ '0'..='7' => {
                let mut value = c.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.octal_digit() else {
                        break;
                    };
                    value = 8 * value + digit;
                    self.next();
                }
                char::from_u32(value)
            }
            'x' if self.take("{") => {
                let (digits, rest) = self.rest.split_once('}')?;
                self.rest = rest;
                // `from_str_radix` would also accept a sign.
                let all = digits.chars().all(|c| c.is_ascii_hexdigit());
                char::from_u32(u32::from_str_radix(digits, 16).ok().filter(|_| all)?)
            }
            'x' => {
                let digits = (self.next()?.to_digit(16)?, self.next()?.to_digit(16)?);
                char::from_u32(16 * digits.0 + digits.1)
            }
            'a' => Some('\x07'),
            'f' => Some('\x0c'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\x0b'),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c),
            _ => None,
        }
    }

    fn octal_digit(&self) -> Option<u32> {
        self.rest.chars().next()?.to_digit(8)
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        Some(c)
    }

    fn take(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn literal(&mut self, c: char) {
        self.cost = self.cost.saturating_add(1);
        let _ = write!(self.regex, r"\x{{{:x}}}", u32::from(c));
    }

    fn write_class(&mut self, members: &[Range], negated: bool) {
        self.cost = self.cost.saturating_add(CLASS);
        self.regex.push_str(if negated { "[^" } else { "[" });
        for (from, to) in members {
            self.literal(*from);
            self.regex.push('-');
            self.literal(*to);
        }
        self.regex.push(']');
    }
}

/// The ranges of a class of ASCII characters, or of all characters outside of it.
fn ranges(members: &[Range], negated: bool) -> Vec<Range> {
    if !negated {
        return members.to_vec();
    }
    let mut others = Vec::new();
    let mut next = 0;
    for (from, to) in members {
        if u32::from(*from) > next {
            others.extend(char::from_u32(next).zip(char::from_u32(u32::from(*from) - 1)));
        }
        next = u32::from(*to) + 1;
    }
    others.extend(char::from_u32(next).map(|next| (next, char::MAX)));
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results are those of Go 1.26.
    #[test]
    fn expressions_match_what_they_match_in_go() {
        for (expression, text, matches) in [
            ("^a{0}b$", "b", true),
            ("^a{02}$", "a{02}", true),
            ("^a{02}$", "aa", false),
            ("^a{10}$", "aaaaaaaaaa", true),
            ("^a{2,2}$", "aa", true),
            ("^a{2,}$", "aaa", true),
            ("^[a-]$", "-", true),
            ("^[a-]$", "b", false),
            (r"^\a$", "\x07", true),
            (r"^\f$", "\x0c", true),
            (r"^\n$", "\n", true),
            (r"^\r$", "\r", true),
            (r"^\t$", "\t", true),
            (r"^\v$", "\x0b", true),
            (r"^\12$", "\n", true),
            (r"^\0$", "\0", true),
            (r"^\D$", "9", false),
            (r"^\D$", ":", true),
            (r"^\D$", "/", true),
            ("^[[:^digit:]]$", "9", false),
            ("^[[:^digit:]]$", "/", true),
        ] {
            let regex = compile(expression, &mut Budget::default()).unwrap();
            let found = regex.is_match(text.as_bytes());
            assert_eq!(found, matches, "{expression} {text:?}");
        }
    }

    /// The results are those of Go 1.26.
    #[test]
    fn repetitions_and_escapes_have_the_limits_of_go() {
        for (expression, is_valid) in [
            ("^a{1000}$", true),
            ("^a{1000,1000}$", true),
            ("^a{1001}$", false),
            ("^a{1001,}$", false),
            ("^a{2,1001}$", false),
            ("^a{2,1}$", false),
            (r"^\1$", false),
            ("^[a-", false),
        ] {
            let compiled = compile(expression, &mut Budget::default());
            assert_eq!(compiled.is_ok(), is_valid, "{expression}");
        }
    }

    #[test]
    fn an_expression_costs_its_elements_and_their_repetitions() {
        for (expression, cost) in [
            ("^$", 0),
            ("^ab$", 2),
            ("^[^/]*[^/]*$", 2),
            ("^.*.*$", 2),
            ("^ab{3}$", 2 + 3),
            ("^ab{3,5}$", 2 + 5),
            ("^[a-c]{10}$", 11 * (CLASS + 2)),
        ] {
            let mut budget = Budget::default();
            compile(expression, &mut budget).unwrap();
            let spent = Budget::default().0 - budget.0;
            assert_eq!(spent, PATTERN + cost, "{expression}");
        }
    }
}
