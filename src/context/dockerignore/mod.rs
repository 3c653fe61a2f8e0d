//! `.dockerignore`, with the rules of moby/patternmatcher.
//!
//! The classic builder does not apply the file to an uploaded archive: the docker CLI applies it before it sends, and
//! so does libmol. Buildah would apply it with its own rules; the parameter `excludes` prevents that.
//!
//! The rules are those of `patternmatcher` and its `ignorefile` package at v0.6: one pattern per line, cleaned and
//! anchored at the root of the context; `*` and `?` do not match a `/`; `**` matches any number of folders; a pattern
//! that matches a folder matches its entries; the last pattern that matches decides.
//!
//! One rule is stricter than in docker: a pattern that is not a valid regular expression is always an error. Docker
//! reports it only if a path is matched against it.
//!
//! Libraries looked at: `ignore` and `globset` have the rules of `.gitignore` and of the shell, in which a pattern
//! without `/` matches at any depth, or `*` may match a `/`. use-dockerignore only classifies lines. microvms-core 1.3
//! has a matcher for its own use, which tests whole paths: nothing is inherited from a folder, and it cannot stop.

mod go_regexp;

use std::io;
use std::iter::Peekable;
use std::str::Chars;

use regex::bytes::Regex;

pub(super) use go_regexp::Budget;

use crate::context::stop::Stop;

/// The longest line that docker accepts (Go's `bufio.MaxScanTokenSize`).
const LONGEST_LINE: usize = 64 * 1024 - 1;

/// How many patterns are matched between two checks of the stop flag.
const PATTERNS_PER_CHECK: usize = 64;

/// The patterns of an ignore file.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    patterns: Vec<Pattern>,
    descent: Descent,
}

#[derive(Debug)]
struct Pattern {
    text: String,
    /// Whether it starts with `!`: the paths that it matches are not ignored.
    is_exception: bool,
    matcher: Matcher,
}

/// A pattern for a single path element, with the same syntax.
#[derive(Debug)]
pub(super) struct Glob(Matcher);

impl Glob {
    /// # Errors
    ///
    /// Why the pattern is invalid.
    pub(super) fn new(pattern: &str) -> Result<Self, &'static str> {
        Self::within(pattern, &mut Budget::default())
    }

    /// Like [`Glob::new`], for one of several patterns that share a budget.
    ///
    /// # Errors
    ///
    /// Also if the pattern exceeds the rest of the budget.
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

/// Which ignored folders are searched for exceptions.
#[derive(Debug)]
enum Descent {
    /// These paths, and the folders that contain them.
    To(Vec<String>),
    Everywhere,
}

impl Default for Descent {
    fn default() -> Self {
        Self::To(Vec::new())
    }
}

/// The match results of a folder, which its entries inherit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inherited {
    /// Whether each pattern matches the folder.
    matches: Vec<bool>,
    /// Whether everything in the folder is ignored.
    closed: bool,
}

impl Inherited {
    /// Whether everything in the folder is ignored.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}

impl Patterns {
    /// Parses the text of a `.dockerignore` as the docker CLI does for a context that it sends as an archive
    /// (`ignorefile.ReadAll`, then `archive.TarWithOptions`). Exceptions are searched for only in the folders that
    /// they name literally: for `!a/b` in `a`, for `!**/b` in no ignored folder.
    ///
    /// # Errors
    ///
    /// Which pattern is invalid, and why.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if without_mark(text)
            .split('\n')
            .any(|line| line.len() > LONGEST_LINE)
        {
            return Err("it has a line of 64 KiB or more".to_owned());
        }
        let lines = pattern_lines(text).map(|line| match line.strip_prefix('!') {
            Some(rest) => format!("!{}", anchored(rest.trim())),
            None => anchored(line),
        });
        let patterns = Self::new(lines)?;
        let named = patterns.exceptions().map(|kept| kept.text.clone());
        Ok(Self {
            descent: Descent::To(named.collect()),
            ..patterns
        })
    }

    /// Compiles the list of patterns with which BuildKit names the files to leave out (`patternmatcher.New`). If one
    /// exception has a wildcard, such as `!**/b`, all exceptions are searched for in every folder
    /// (`fsutil.NewFilterFS`, with which buildx sends the folder).
    ///
    /// # Errors
    ///
    /// Which pattern is invalid, and why.
    pub(crate) fn new(patterns: impl IntoIterator<Item: AsRef<str>>) -> Result<Self, String> {
        let mut compiled = Vec::new();
        let mut budget = Budget::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            // patternmatcher cleans the pattern before it strips `!`, so `!` is still part of the first element here.
            let cleaned = clean(pattern);
            let (is_exception, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err("the pattern \"!\" is empty after the \"!\"".to_owned()),
                Some(rest) => (true, rest),
                None => (false, &*cleaned),
            };
            compiled.push(Pattern {
                is_exception,
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
        self.patterns.iter().filter(|pattern| pattern.is_exception)
    }

    /// Whether `path` (relative, with `/`) is ignored, given the results of its folder.
    pub(crate) fn ignores(&self, path: &str, folder: &Inherited) -> (bool, Inherited) {
        self.verdict(path, folder, || Ok(())).unwrap_or_default()
    }

    /// Like [`Patterns::ignores`], and stops when `stop` is set: a long path with thousands of patterns takes long.
    ///
    /// # Errors
    ///
    /// The error of [`Stop::check`].
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
        check_stop: impl Fn() -> io::Result<()>,
    ) -> io::Result<(bool, Inherited)> {
        if folder.closed {
            return Ok((true, folder.clone()));
        }
        let mut ignored = false;
        let mut matches = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            if index % PATTERNS_PER_CHECK == 0 {
                check_stop()?;
            }
            let inherited = folder.matches.get(index).copied().unwrap_or(false);
            // Like in patternmatcher, a pattern that cannot change the result is not matched, and does not count as
            // a match of the folder. This is visible: with `a/b` and then `!a`, `a/b` stays ignored.
            let matched =
                inherited || (pattern.is_exception == ignored && pattern.matcher.matches(path));
            matches[index] = matched;
            if matched {
                ignored = !pattern.is_exception;
            }
        }
        let closed = ignored && !self.descends_into(path);
        Ok((ignored, Inherited { matches, closed }))
    }

    /// Whether exceptions are searched for in an ignored folder.
    fn descends_into(&self, folder: &str) -> bool {
        match &self.descent {
            Descent::Everywhere => true,
            Descent::To(named) => named.iter().any(|path| {
                let below = path.strip_prefix(folder);
                below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }),
        }
    }
}

/// The lines of an ignore file that are patterns, without the spaces around them. Only a `#` in the first column begins
/// a comment.
pub(super) fn pattern_lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = without_mark(text).split('\n');
    lines
        .filter(|line| !line.starts_with('#'))
        .map(str::trim)
        .filter(|line| !line.is_empty())
}

/// The text without a byte order mark at its beginning.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
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

/// A line of the file as a path relative to the root of the context. An empty line stays empty.
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

/// Go's `path.Clean`: removes `.`, double `/`, and `..` with the element before it.
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

/// How a pattern is matched, cheapest first.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Exact,
    Prefix,
    Suffix,
    Regex,
}

/// Matches any number of folders.
const FOLDERS: &str = "(.*/)?";

/// Compiles a pattern as `patternmatcher` does: to a plain text comparison if possible, otherwise to a regular
/// expression in Go's syntax.
fn compile(pattern: &str, budget: &mut Budget) -> Result<Matcher, &'static str> {
    check(pattern)?;
    let mut regexp = String::from("^");
    let mut form = Form::Exact;
    // patternmatcher reads the pattern with Go's text/scanner, which skips a byte-order mark.
    let mut chars = without_mark(pattern).chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // `**/` is equivalent to `**`.
                chars.next_if_eq(&'/');
                form = match chars.peek() {
                    None if form == Form::Exact => Form::Prefix,
                    None => {
                        regexp.push_str(".*");
                        Form::Regex
                    }
                    Some(_) => {
                        // A repetition would match the same, and cost much more.
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

/// `patternmatcher` first validates a pattern with Go's `filepath.Match`, on the name `.`. That function checks the
/// pieces between stars, up to the first piece that does not match.
fn check(pattern: &str) -> Result<(), &'static str> {
    let mut rest = pattern.trim_start_matches('*').chars().peekable();
    if piece(&mut rest)? {
        while rest.next_if_eq(&'*').is_some() {}
        piece(&mut rest)?;
    }
    Ok(())
}

/// Checks a pattern up to the next star outside of a class. A class is a `[`, an optional `^`, at least one character
/// or range (characters may be escaped with `\`), and a `]`. Returns whether the piece matches a single `.`.
fn piece(chars: &mut Peekable<Chars<'_>>) -> Result<bool, &'static str> {
    const OPEN: &str = "has a [ without its ]";
    const BACKSLASH: &str = "ends in a backslash";
    fn member(chars: &mut Peekable<Chars<'_>>) -> Result<char, &'static str> {
        match chars.next().ok_or(OPEN)? {
            '\\' => chars.next().ok_or(BACKSLASH),
            '-' | ']' => Err("has a - or a ] in a class where a character is expected"),
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

    /// Matches `path` as the walk does, folder by folder.
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
    fn the_last_matching_pattern_decides() {
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
    fn patterns_can_use_the_syntax_of_go_regular_expressions() {
        for (pattern, path, expected) in [
            // Go's classes, and text that Rust would read differently.
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
            // A star or a question mark in a class ends it, and its translation starts another.
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
    fn exceptions_are_searched_for_as_by_each_builders_client() {
        let wild = "*\n!**/keep";
        assert!(ignored(wild, "folder/keep"));
        let session = Patterns::new(wild.lines()).unwrap();
        let (_, folder) = session.ignores("folder", &Inherited::default());
        assert!(!session.ignores("folder/keep", &folder).0);
        // There, a wildcard at the end does not count.
        let session = Patterns::new(["*", "!folder/*/**"]).unwrap();
        let (_, folder) = session.ignores("folder", &Inherited::default());
        let (ignored, inner) = session.ignores("folder/inner", &folder);
        assert!(ignored && session.ignores("folder/inner/keep", &inner).0);
    }

    #[test]
    fn matching_a_path_against_many_patterns_stops() {
        let patterns = Patterns::parse(&"a\n".repeat(10_000)).unwrap();
        let checks = std::cell::Cell::new(0);
        let end = patterns.verdict("b", &Inherited::default(), || {
            checks.set(checks.get() + 1);
            match checks.get() {
                1 => Ok(()),
                _ => Err(io::ErrorKind::BrokenPipe.into()),
            }
        });
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(checks.get(), 2);
    }

    #[test]
    fn every_64th_pattern_asks_whether_to_stop() {
        let patterns = Patterns::parse(&"a\n".repeat(129)).unwrap();
        let checks = std::cell::Cell::new(0);
        let count = || {
            checks.set(checks.get() + 1);
            Ok(())
        };
        let (ignored, _) = patterns.verdict("a", &Inherited::default(), count).unwrap();
        assert_eq!((ignored, checks.get()), (true, 3));
    }

    #[test]
    fn the_longest_line_is_allowed() {
        let line = "a".repeat(LONGEST_LINE);
        assert!(ignored(&line, &line));
        assert!(Patterns::parse(&format!("{line}a")).is_err());
    }

    #[test]
    fn a_pattern_of_the_root_ignores_nothing() {
        assert_eq!(anchored("/"), "/");
        assert!(!ignored("/", "a"));
    }

    #[test]
    fn a_file_made_to_be_expensive_is_rejected() {
        let long = "?".repeat(64 * 1024);
        let lines = "?{1000}\n".repeat(1000);
        for text in [&long, &long[1..], &lines, &"[^a]{1000}".repeat(5000)] {
            assert!(Patterns::parse(text).is_err());
        }
        assert!(!ignored(&"*a".repeat(30_000), &"a".repeat(4000)));
    }

    #[test]
    fn a_list_of_patterns_has_no_comments() {
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
    fn an_invalid_pattern_is_an_error() {
        for text in [
            "!", "!/", "[", "[]", "[a", "[a-", "[-a]", "a\\", "[z-a]", "\\8", "\\m", "a*{2}",
            "*[z-a]", "|{2}*", "a{1001}*", "a{2,1}*", "[[:x:]]", "a*[b",
        ] {
            let error = Patterns::parse(text).unwrap_err();
            assert!(!error.contains("too large"), "{text:?}: {error}");
        }
    }

    /// The results are those of Go's `filepath.Match(pattern, ".")`.
    #[test]
    fn what_follows_a_star_is_checked_only_if_a_dot_matches_before_it() {
        for pattern in [
            "*[", "**[", ".*[", "?*[", "\\.*[", "[.]*[", "[.a]*[", "[a.]*[", "[+-/]*[", "[^a]*[",
        ] {
            assert!(check(pattern).is_err(), "{pattern}");
        }
        for pattern in ["a*[", "\\a*[", "..*[", "a.*[", ".a*[", "[a]*[", "[^.]*["] {
            assert!(check(pattern).is_ok(), "{pattern}");
        }
    }
}
