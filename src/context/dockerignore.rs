//! `.dockerignore`, with the rules of moby/patternmatcher.
//!
//! Neither builder applies the file to a context that is uploaded as an archive: the docker CLI does
//! it before it sends, and so must we. The rules are those of `patternmatcher` and its `ignorefile`
//! package at v0.6: one pattern a line, cleaned and anchored at the root of the context, `*` and `?`
//! never across a `/`, `**` across any number of folders, a folder's match is its content's match,
//! and of all patterns that apply the last one decides.

use regex::Regex;

/// The patterns of one file.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
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
        compile(pattern).map(Self)
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
    Suffix(String),
    Regex(Regex),
}

/// Which patterns match a folder, to be handed down to what is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inherited(Vec<bool>);

impl Patterns {
    /// Reads the text of a `.dockerignore`, as `ignorefile.ReadAll` does.
    ///
    /// # Errors
    ///
    /// The pattern that cannot be understood, and why.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::trim)
            .filter(|line| !line.is_empty());
        Self::new(lines.map(|line| match line.strip_prefix('!') {
            Some(rest) => format!("!{}", anchored(rest.trim())),
            None => anchored(line),
        }))
    }

    /// Takes patterns one by one, as `patternmatcher.New` does: this is the form in which BuildKit
    /// asks for a folder without them.
    ///
    /// # Errors
    ///
    /// The pattern that cannot be understood, and why.
    pub(crate) fn new(patterns: impl IntoIterator<Item: AsRef<str>>) -> Result<Self, String> {
        let mut compiled = Vec::new();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            // The ! is no more than a letter of the first name at this point.
            let cleaned = clean(pattern);
            let (keeps, pattern) = match cleaned.strip_prefix('!') {
                Some("") => return Err("the pattern \"!\" names nothing to keep".to_owned()),
                Some(rest) => (true, rest),
                None => (false, &*cleaned),
            };
            compiled.push(Pattern {
                keeps,
                matcher: compile(pattern)
                    .map_err(|why| format!("the pattern {cleaned:?} {why}"))?,
            });
        }
        Ok(Self { patterns: compiled })
    }

    /// Can anything below an ignored folder be kept?
    pub(crate) fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.keeps)
    }

    /// Is `path` (relative, with `/`) ignored, given what matched the folder it is in?
    pub(crate) fn ignores(&self, path: &str, folder: &Inherited) -> (bool, Inherited) {
        let mut ignored = false;
        let mut matches = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            let inherited = folder.0.get(index).copied().unwrap_or(false);
            // A pattern that could not change the verdict is not asked.
            let matched = inherited || (pattern.keeps == ignored && pattern.matcher.matches(path));
            matches[index] = matched;
            if matched {
                ignored = !pattern.keeps;
            }
        }
        (ignored, Inherited(matches))
    }
}

impl Matcher {
    fn matches(&self, path: &str) -> bool {
        match self {
            Matcher::Exact(text) => path == text,
            Matcher::Prefix(text) => path.starts_with(text.as_str()),
            Matcher::Suffix(text) => {
                path.ends_with(text.as_str()) || text.strip_prefix('/').is_some_and(|t| path == t)
            }
            Matcher::Regex(regex) => regex.is_match(path),
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

/// Translates a pattern the way `patternmatcher` does, into a regular expression where plain text
/// will not do.
fn compile(pattern: &str) -> Result<Matcher, &'static str> {
    let mut regex = String::from("^(?s:");
    let mut form = Form::Exact;
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // `**/` means the same as `**`.
                chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    regex.push_str("(?:.*/)?");
                    form = Form::Regex;
                } else {
                    regex.push_str(".*");
                    form = if form == Form::Exact {
                        Form::Prefix
                    } else {
                        Form::Regex
                    };
                }
                if first {
                    form = Form::Suffix;
                }
            }
            '*' => {
                regex.push_str("[^/]*");
                form = Form::Regex;
            }
            '?' => {
                regex.push_str("[^/]");
                form = Form::Regex;
            }
            '[' => {
                regex.push_str(&class(&mut chars)?);
                form = Form::Regex;
            }
            '\\' => {
                literal(&mut regex, chars.next().ok_or("ends in a backslash")?);
                form = Form::Regex;
            }
            other => literal(&mut regex, other),
        }
        first = false;
    }
    regex.push_str(")$");
    Ok(match form {
        Form::Exact => Matcher::Exact(pattern.to_owned()),
        Form::Prefix => Matcher::Prefix(pattern[..pattern.len() - 2].to_owned()),
        Form::Suffix => Matcher::Suffix(pattern[2..].to_owned()),
        Form::Regex => Matcher::Regex(Regex::new(&regex).map_err(|_| "cannot be understood")?),
    })
}

/// Adds a character that means itself, inside a class and outside.
fn literal(regex: &mut String, c: char) {
    regex.push_str(&format!("\\x{{{:x}}}", u32::from(c)));
}

/// A character class after its `[`, in the grammar of Go's `path.Match`: an optional `^`, then at
/// least one character or range, each character plain or after a `\`.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, &'static str> {
    const OPEN: &str = "has a [ without its ]";
    fn member(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, &'static str> {
        match chars.next().ok_or(OPEN)? {
            '\\' => chars.next().ok_or(OPEN),
            '-' | ']' => Err("has a class with a - or a ] where a character should be"),
            c => Ok(c),
        }
    }
    let mut class = String::from("[");
    if chars.next_if_eq(&'^').is_some() {
        class.push('^');
    }
    loop {
        let from = member(chars)?;
        let to = match chars.next_if_eq(&'-') {
            Some(_) => member(chars)?,
            None => from,
        };
        if from > to {
            return Err("has a range that runs backwards");
        }
        literal(&mut class, from);
        class.push('-');
        literal(&mut class, to);
        if chars.next_if_eq(&']').is_some() {
            class.push(']');
            return Ok(class);
        }
    }
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
    fn patterns_match_as_the_docker_cli_matches_them() {
        for (patterns, path, expected) in [
            ("foo", "foo", true),
            ("foo", "bar/foo", false),
            ("foo", "foo/bar", true),
            ("foo/", "foo/bar", true),
            ("/foo", "foo", true),
            ("./foo", "foo", true),
            ("a/../foo", "foo", true),
            ("*.md", "a.md", true),
            ("*.md", "a/b.md", false),
            ("**/*.md", "a.md", true),
            ("**/*.md", "a/b/c.md", true),
            ("**/foo", "foo", true),
            ("**/foo", "a/b/foo", true),
            ("**/foo", "afoo", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("**", "anything/at/all", true),
            ("?", "a", true),
            ("?", "ab", false),
            ("?", "ä", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[a&&b]", "&", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            ("a.c", "abc", false),
            ("a+", "a+", true),
            ("# comment\nfoo", "foo", true),
            ("\u{feff}foo", "foo", true),
            ("  foo  ", "foo", true),
            ("*\n!keep", "keep", false),
            ("*\n!keep", "drop", true),
            ("*\n!keep", "keep/inner", false),
            ("foo\n!foo/keep", "foo/keep", false),
            ("foo\n!foo/keep", "foo/drop", true),
            ("!foo\nfoo", "foo", true),
            ("foo\n!foo\nfoo/x", "foo/x", true),
            ("*\n! keep", "keep", false),
        ] {
            assert_eq!(
                ignored(patterns, path),
                expected,
                "{patterns:?} on {path:?}"
            );
        }
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
        for text in ["!", "!/", "[", "[]", "[a", "[a-", "[-a]", "a\\", "[z-a]"] {
            assert!(Patterns::parse(text).is_err(), "{text:?}");
        }
    }
}
