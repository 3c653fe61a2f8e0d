//! `.dockerignore`, with the rules of moby/patternmatcher.
//!
//! Neither builder applies the file to a context that is uploaded as an archive: the docker CLI does
//! it before it sends, and so must we. The rules are those of `patternmatcher` and its `ignorefile`
//! package at v0.6: one pattern a line, cleaned and anchored at the root of the context, `*` and `?`
//! never across a `/`, `**` across any number of folders, a folder's match is its content's match,
//! and of all patterns that apply the last one decides.
//!
//! In one thing it is stricter than docker. A pattern that is no valid one is always an error here;
//! docker finds out only if some path gets as far as that pattern.

mod go_regexp;

use std::io;
use std::iter::Peekable;
use std::str::Chars;

use regex::bytes::Regex;

use super::walk::Stop;
pub(super) use go_regexp::Budget;

/// Where docker's own reader gives up (Go's `bufio.MaxScanTokenSize`).
const LONGEST_LINE: usize = 64 * 1024 - 1;

/// How many patterns are tried on a path before a look at whether to stop.
const PATTERNS_AT_ONCE: usize = 64;

/// The patterns of one file.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    patterns: Vec<Pattern>,
    descent: Descent,
}

#[derive(Debug)]
struct Pattern {
    text: String,
    /// Begins with `!`: what it matches is kept after all.
    keeps: bool,
    matcher: Matcher,
}

/// A pattern for one name, in the same notation.
#[derive(Debug)]
pub(super) struct Glob(Matcher);

impl Glob {
    /// # Errors
    ///
    /// Why it cannot be understood.
    pub(super) fn new(pattern: &str) -> Result<Self, &'static str> {
        Self::within(pattern, &mut Budget::default())
    }

    /// The same, for one of many.
    ///
    /// # Errors
    ///
    /// The same, and that it takes more than what is left of the budget.
    pub(super) fn within(pattern: &str, budget: &mut Budget) -> Result<Self, &'static str> {
        compile(pattern, budget).map(Self)
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

#[derive(Debug)]
enum Matcher {
    Exact(String),
    /// `text**`
    Prefix(String),
    /// `**text`
    Suffix(Vec<u8>),
    Regex(Regex),
}

/// Which ignored folders are looked into, because something in them may be kept.
#[derive(Debug)]
enum Descent {
    /// Those above these paths, and the paths themselves.
    To(Vec<String>),
    Everywhere,
}

impl Default for Descent {
    fn default() -> Self {
        Self::To(Vec::new())
    }
}

/// What is known of a folder, to be handed down to what is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inherited {
    /// For each pattern, whether it matches the folder.
    matches: Vec<bool>,
    /// Nothing in it can be kept.
    closed: bool,
}

impl Inherited {
    /// Is all that is in the folder ignored?
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}

impl Patterns {
    /// Reads the text of a `.dockerignore` as the docker CLI does for a context that it sends as an
    /// archive (`ignorefile.ReadAll`, then `archive.TarWithOptions`). There an exception is looked for
    /// only where its text says: for `!a/b` in `a`, for `!**/b` in no ignored folder.
    ///
    /// # Errors
    ///
    /// What cannot be understood, and why.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.split('\n').any(|line| line.len() > LONGEST_LINE) {
            return Err("it has a line of 64 KiB or more".to_owned());
        }
        let lines = text
            .split('\n')
            .filter(|line| !line.starts_with('#'))
            .map(str::trim)
            .filter(|line| !line.is_empty());
        let patterns = Self::new(lines.map(|line| match line.strip_prefix('!') {
            Some(rest) => format!("!{}", anchored(rest.trim())),
            None => anchored(line),
        }))?;
        let named = patterns.exceptions().map(|kept| kept.text.clone());
        Ok(Self {
            descent: Descent::To(named.collect()),
            ..patterns
        })
    }

    /// Takes patterns one by one (`patternmatcher.New`): BuildKit asks in this form for a folder
    /// without what they match. There `!**/b` is looked for everywhere (`fsutil.NewFilterFS`, which
    /// serves the folder in buildx), as is every other exception once one has a wildcard.
    ///
    /// # Errors
    ///
    /// The pattern that cannot be understood, and why.
    pub(crate) fn new(patterns: impl IntoIterator<Item: AsRef<str>>) -> Result<Self, String> {
        let mut compiled = Vec::new();
        let mut budget = Budget::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            // The ! is no more than a letter of the first name at this point.
            let cleaned = clean(pattern);
            let (keeps, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err("the pattern \"!\" names nothing to keep".to_owned()),
                Some(rest) => (true, rest),
                None => (false, &*cleaned),
            };
            compiled.push(Pattern {
                keeps,
                matcher: compile(text, &mut budget)
                    .map_err(|why| format!("the pattern {cleaned:?} {why}"))?,
                text: text.to_owned(),
            });
        }
        let mut patterns = Self {
            patterns: compiled,
            descent: Descent::Everywhere,
        };
        let named = patterns.exceptions().map(|kept| {
            let text = kept.text.strip_suffix("/**").unwrap_or(&kept.text);
            text.strip_suffix("/*").unwrap_or(text).to_owned()
        });
        let named: Vec<_> = named.collect();
        let is_wild = |text: &String| text.contains(['*', '[', ']', '?', '^', '\\']);
        if !named.iter().any(is_wild) {
            patterns.descent = Descent::To(named);
        }
        Ok(patterns)
    }

    fn exceptions(&self) -> impl Iterator<Item = &Pattern> {
        self.patterns.iter().filter(|pattern| pattern.keeps)
    }

    /// Is `path` (relative, with `/`) ignored, given what is known of the folder it is in?
    pub(crate) fn ignores(&self, path: &str, folder: &Inherited) -> (bool, Inherited) {
        self.verdict(path, folder, || Ok(())).unwrap_or_default()
    }

    /// The same, until it is to stop: thousands of patterns take their time with a long path.
    ///
    /// # Errors
    ///
    /// That of [`Stop::check`].
    pub(super) fn ignores_unless(
        &self,
        stop: &Stop,
        path: &str,
        folder: &Inherited,
    ) -> io::Result<(bool, Inherited)> {
        self.verdict(path, folder, || stop.check())
    }

    fn verdict(
        &self,
        path: &str,
        folder: &Inherited,
        go_on: impl Fn() -> io::Result<()>,
    ) -> io::Result<(bool, Inherited)> {
        if folder.closed {
            return Ok((true, folder.clone()));
        }
        let mut ignored = false;
        let mut matches = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            if index % PATTERNS_AT_ONCE == 0 {
                go_on()?;
            }
            let inherited = folder.matches.get(index).copied().unwrap_or(false);
            // A pattern that could not change the verdict is not asked, and so does not count as one
            // that matches the folder either. That shows: `a/b` and then `!a` do not keep `a/b`.
            let matched = inherited || (pattern.keeps == ignored && pattern.matcher.matches(path));
            matches[index] = matched;
            if matched {
                ignored = !pattern.keeps;
            }
        }
        let closed = ignored && !self.looks_into(path);
        Ok((ignored, Inherited { matches, closed }))
    }

    fn looks_into(&self, folder: &str) -> bool {
        match &self.descent {
            Descent::Everywhere => true,
            Descent::To(named) => named.iter().any(|path| {
                let below = path.strip_prefix(folder);
                below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }),
        }
    }
}

impl Matcher {
    fn matches(&self, path: &str) -> bool {
        match self {
            Matcher::Exact(text) => path == text,
            Matcher::Prefix(text) => path.starts_with(text.as_str()),
            Matcher::Suffix(text) => {
                let path = path.as_bytes();
                path.ends_with(text) || text.strip_prefix(b"/").is_some_and(|t| path == t)
            }
            Matcher::Regex(regex) => regex.is_match(path.as_bytes()),
        }
    }
}

/// A line of the file as a path from the root of the context. The empty one stays empty.
fn anchored(line: &str) -> String {
    if line.is_empty() {
        return String::new();
    }
    let mut path = clean(line);
    if path.len() > 1 && path.starts_with('/') {
        path.remove(0);
    }
    path
}

/// Go's `path.Clean`: no `.`, no doubled `/`, `..` taken back where there is something to take back.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            _ => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// What a pattern needs to be matched; the cheap forms first.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Exact,
    Prefix,
    Suffix,
    Regex,
}

/// Any number of folders.
const FOLDERS: &str = "(.*/)?";

/// Translates a pattern the way `patternmatcher` does, into a regular expression of Go where plain
/// text will not do.
fn compile(pattern: &str, budget: &mut Budget) -> Result<Matcher, &'static str> {
    check(pattern)?;
    let mut regexp = String::from("^");
    let mut form = Form::Exact;
    // Go's text/scanner, which reads the pattern there, takes a byte order mark for none of its own.
    let mut chars = pattern
        .strip_prefix('\u{feff}')
        .unwrap_or(pattern)
        .chars()
        .peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // `**/` means the same as `**`.
                chars.next_if_eq(&'/');
                form = match chars.peek() {
                    None if form == Form::Exact => Form::Prefix,
                    None => {
                        regexp.push_str(".*");
                        Form::Regex
                    }
                    Some(_) => {
                        // Twice in a row is no more than once, and would be much more work.
                        if !regexp.ends_with(FOLDERS) {
                            regexp.push_str(FOLDERS);
                        }
                        Form::Regex
                    }
                };
                if first {
                    form = Form::Suffix;
                }
            }
            '*' => {
                regexp.push_str("[^/]*");
                form = Form::Regex;
            }
            '?' => {
                regexp.push_str("[^/]");
                form = Form::Regex;
            }
            '.' | '+' | '(' | ')' | '$' => regexp.extend(['\\', c]),
            '\\' => {
                regexp.push('\\');
                regexp.extend(chars.next());
                form = Form::Regex;
            }
            '[' | ']' => {
                regexp.push(c);
                form = Form::Regex;
            }
            c => regexp.push(c),
        }
        first = false;
    }
    regexp.push('$');
    Ok(match form {
        Form::Exact => Matcher::Exact(pattern.to_owned()),
        Form::Prefix => Matcher::Prefix(pattern[..pattern.len() - 2].to_owned()),
        Form::Suffix => Matcher::Suffix(pattern.as_bytes()[2..].to_vec()),
        Form::Regex => Matcher::Regex(go_regexp::compile(&regexp, budget)?),
    })
}

/// `patternmatcher` asks Go's `filepath.Match` for an opinion first, on the name `.`. That looks at a
/// pattern in pieces from star to star, and no further than at the first piece which does not match.
fn check(pattern: &str) -> Result<(), &'static str> {
    let mut rest = pattern.trim_start_matches('*').chars().peekable();
    if piece(&mut rest)? {
        while rest.next_if_eq(&'*').is_some() {}
        piece(&mut rest)?;
    }
    Ok(())
}

/// Checks a pattern up to its next star outside of a class. A class is a `[`, an optional `^`, then at
/// least one character or range, each character plain or after a `\`, and a `]`. Returns whether the
/// piece matches a single `.`.
fn piece(chars: &mut Peekable<Chars<'_>>) -> Result<bool, &'static str> {
    const OPEN: &str = "has a [ without its ]";
    const BACKSLASH: &str = "ends in a backslash";
    fn member(chars: &mut Peekable<Chars<'_>>) -> Result<char, &'static str> {
        match chars.next().ok_or(OPEN)? {
            '\\' => chars.next().ok_or(BACKSLASH),
            '-' | ']' => Err("has a class with a - or a ] where a character should be"),
            c => Ok(c),
        }
    }
    let (mut dots, mut others) = (0, 0);
    while let Some(c) = chars.next_if(|c| *c != '*') {
        let dot = match c {
            '\\' => chars.next().ok_or(BACKSLASH)? == '.',
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut dot = false;
                loop {
                    let from = member(chars)?;
                    let to = match chars.next_if_eq(&'-') {
                        Some(_) => member(chars)?,
                        None => from,
                    };
                    dot |= (from..=to).contains(&'.');
                    if chars.next_if_eq(&']').is_some() {
                        break dot != negated;
                    }
                }
            }
            c => c == '?' || c == '.',
        };
        *(if dot { &mut dots } else { &mut others }) += 1;
    }
    Ok((dots, others) == (1, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks down to `path` as the context does, folder by folder.
    fn ignored(patterns: &str, path: &str) -> bool {
        let patterns = Patterns::parse(patterns).unwrap();
        let mut folder = Inherited::default();
        let mut verdict = false;
        for end in path.match_indices('/').map(|(i, _)| i).chain([path.len()]) {
            (verdict, folder) = patterns.ignores(&path[..end], &folder);
        }
        verdict
    }

    #[test]
    fn the_last_pattern_that_applies_decides() {
        for (patterns, path, expected) in [
            ("*\n!keep", "keep/inner", false),
            ("*\n!keep", "drop", true),
            ("!foo\nfoo", "foo", true),
            ("foo\n!foo\nfoo/x", "foo/x", true),
        ] {
            assert_eq!(
                ignored(patterns, path),
                expected,
                "{patterns:?} on {path:?}"
            );
        }
    }

    #[test]
    fn what_go_s_regular_expressions_make_of_a_pattern_holds_here_too() {
        for (pattern, path, expected) in [
            // Classes of Go, and what Rust alone would make of their text.
            (r"\d*", "1x", true),
            (r"\d*", "d", false),
            (r"\w?", "é1", false),
            (r"[\s]", "\u{b}", false),
            ("[[:alpha:]]x", "ax", true),
            ("[[:^alpha:]]x", "1x", true),
            ("[a&&b]", "&", true),
            ("[a~~b]", "~", true),
            (r"\<a*", "<ab", true),
            (r"a\x62*", "abc", true),
            (r"a\x{62}*", "abc", true),
            (r"\141?", "ab", true),
            (r"\Qa*", "a[^/]*$", true),
            // A star or a question mark ends a class and begins another.
            ("[*]", "/]", true),
            ("[*]", "*", false),
            ("[?]", "^]", true),
            // Three characters are not escaped.
            ("a{2}?", "aab", true),
            ("a{2,3}?", "aaaab", false),
            ("a{x}?", "a{x}b", true),
            ("a|b*", "anything", true),
            ("^a*", "ab", true),
            ("^a*", "^ab", false),
        ] {
            assert_eq!(ignored(pattern, path), expected, "{pattern:?} on {path:?}");
        }
    }

    #[test]
    fn exceptions_are_looked_for_where_each_builder_s_client_looks() {
        let wild = "*\n!**/keep";
        assert!(ignored(wild, "folder/keep"));
        let session = Patterns::new(wild.lines()).unwrap();
        let (_, folder) = session.ignores("folder", &Inherited::default());
        assert!(!session.ignores("folder/keep", &folder).0);
        // What ends in a wildcard only counts as none there.
        let session = Patterns::new(["*", "!folder/*/**"]).unwrap();
        let (_, folder) = session.ignores("folder", &Inherited::default());
        let (ignored, inner) = session.ignores("folder/inner", &folder);
        assert!(ignored && session.ignores("folder/inner/keep", &inner).0);
    }

    #[test]
    fn a_file_that_is_made_to_be_expensive_is_refused() {
        let long = "?".repeat(64 * 1024);
        let lines = "?{1000}\n".repeat(1000);
        for text in [&long, &long[1..], &lines, &"[^a]{1000}".repeat(5000)] {
            assert!(Patterns::parse(text).is_err());
        }
        assert!(!ignored(&"*a".repeat(30_000), &"a".repeat(4000)));
    }

    #[test]
    fn patterns_come_one_by_one_too() {
        let patterns = Patterns::new(["*", "", " !keep ", "keep/drop"]).unwrap();
        let root = Inherited::default();
        let (ignored, keep) = patterns.ignores("keep", &root);
        assert!(!ignored);
        assert!(!patterns.ignores("keep/this", &keep).0);
        assert!(patterns.ignores("keep/drop", &keep).0);
        assert!(patterns.ignores("other", &root).0);
        assert!(
            Patterns::new(["#no comment here"])
                .unwrap()
                .ignores("#no comment here", &root)
                .0
        );
        assert!(Patterns::new(["!"]).is_err());
    }

    #[test]
    fn what_cannot_be_understood_is_an_error() {
        for text in [
            "!", "!/", "[", "[]", "[a", "[a-", "[-a]", "a\\", "[z-a]", "\\8", "\\m", "a*{2}",
            "*[z-a]", "|{2}*", "a{1001}*", "a{2,1}*", "[[:x:]]", "a*[b",
        ] {
            assert!(Patterns::parse(text).is_err(), "{text:?}");
        }
    }
}
