//! Redaction: every text that leaves the library goes through [`Masker`].
//!
//! The source of a text does not matter: an error made from a server's answer, a line of a build's output and
//! the message of a panic are handled alike. So no list of sources has to be kept up to date.
//! Only two kinds of text are not masked: hints written in this library (a `&'static str`), and names that
//! an engine or git parses (references, commit and image ids, platforms), which are checked when they are
//! made. In the engine's own address, in an image or a report, only the token is masked, not the user name.
//!
//! The order is: make the text one printable line (`printable`), mask it, truncate it. Removing
//! characters after masking could join the parts of a token, and truncating before masking could leave a
//! part of one.

mod spellings;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::event::Event;
use crate::names::image::{EngineHost, Image};
use crate::printable;
use crate::redact::spellings::{LONGEST_FORM, Spellings};

/// Replaces a secret.
pub const MASK: &str = "***";

/// The longest token, in bytes. Gitea's have 40; a JSON web token has a few hundred.
pub(crate) const MAX_TOKEN: usize = 1024;

/// The shortest token, in bytes. Servers issue longer ones; a shorter one would match parts of ordinary
/// words and mask them.
pub(crate) const MIN_TOKEN: usize = 8;

/// Extra bytes to keep when truncating unmasked text: the length of the longest spelling of a token.
/// Truncating in the middle of a token would leave a part that is no longer recognised, so truncate MARGIN
/// bytes late, mask, then truncate to the final length.
const MARGIN: usize = LONGEST_FORM * MAX_TOKEN;

/// The longest text of an event, and the longest line of an error's log, in bytes.
pub(crate) const MAX_LINE: usize = 4 * 1024;

/// The length to which unmasked text may be truncated, in bytes. [`Masker::shown`] treats a text of this
/// length or more as truncated, and does not show its last [`MARGIN`] bytes.
pub(crate) const MAX_KEPT: usize = MAX_LINE + MARGIN;

/// Truncating at a character boundary can remove up to this many more bytes.
const WITHIN_CHAR: usize = 3;

/// A secret that is wiped from memory when dropped, and that `Debug` does not print.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself. It must not be shown or logged.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no secret.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "unset" } else { MASK })
    }
}

/// A result of a call. Its texts are masked before it leaves the library.
pub(crate) trait Redact: Send + 'static {
    /// The same result with every text masked.
    #[must_use]
    fn masked(self, masker: &Masker) -> Self;
}

impl Redact for EngineHost {
    fn masked(mut self, masker: &Masker) -> Self {
        masker.endpoint(&mut self.docker_host);
        self
    }
}

impl Redact for Image {
    fn masked(self, masker: &Masker) -> Self {
        masker.image(self)
    }
}

/// Masks a token in every spelling, and the user information of every URL.
#[derive(Clone, Default)]
pub struct Masker {
    token: Spellings,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masker").finish_non_exhaustive()
    }
}

/// The user information of a URL: up to the last `@` before the path (RFC 3986, section 3.2.1), so that no
/// part of a password with an unescaped `@` stays. Go's `userinfoSpans` has the same rule.
static USERINFO: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"([A-Za-z][A-Za-z0-9+.\-]*://)[^/?#\s"'<>\\]*@"#).ok());

impl Masker {
    /// A masker for `token`. With an empty token it masks only the user information of URLs.
    pub fn new(token: &Secret) -> Self {
        Self {
            token: Spellings::new(token.expose().as_bytes()),
        }
    }

    /// Masks `text`, and changes nothing else in it.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.mask(text, text.len()).0
    }

    /// Masks `text`. Also returns the position in the result that corresponds to `position` in `text`.
    fn mask<'t>(&self, text: &'t str, position: usize) -> (Cow<'t, str>, usize) {
        let token = self.token.find(text.as_bytes());
        let (masked, position) = replace(text, &token, position);
        if !masked.contains("://") {
            return (masked, position);
        }
        let Some(regex) = USERINFO.as_ref() else {
            return (masked, position);
        };
        let userinfo: Vec<Range<usize>> = regex
            .captures_iter(&masked)
            .filter_map(|found| Some(found.get(1)?.end()..found.get(0)?.end() - 1))
            .collect();
        match replace(&masked, &userinfo, position) {
            (Cow::Owned(masked), position) => (Cow::Owned(masked), position),
            (Cow::Borrowed(_), position) => (masked, position),
        }
    }

    /// Whether `text` contains the token in any spelling.
    pub(crate) fn finds_token_in(&self, text: &str) -> bool {
        !self.token.find(text.as_bytes()).is_empty()
    }

    /// `text` as one printable line, masked, and truncated to about `max` bytes.
    pub(crate) fn shown(&self, text: &str, max: usize) -> String {
        let text = printable::line(text);
        let end = match text.len() {
            length if length < MAX_KEPT - WITHIN_CHAR => length,
            length => text.floor_char_boundary(length - MARGIN),
        };
        let (masked, masked_end) = self.mask(&text, end);
        let mut shown = masked.into_owned();
        if end < text.len() {
            shown.truncate(masked_end);
        }
        truncate(&mut shown, max);
        if end < text.len() && !shown.ends_with(MORE) {
            shown.push(MORE);
        }
        shown
    }

    /// Redacts a text of several lines, each line with [`Self::shown`].
    pub(crate) fn log(&self, text: &str) -> String {
        let lines = text.lines().map(|line| self.shown(line, MAX_LINE));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Redacts `text` in place with [`Self::shown`].
    pub(crate) fn in_place(&self, text: &mut String) {
        *text = self.shown(text, MAX_LINE);
    }

    /// Redacts `text` in place, unless it was written in this library.
    pub(crate) fn in_place_unless_static(&self, text: &mut Cow<'static, str>) {
        if let Cow::Owned(text) = text {
            self.in_place(text);
        }
    }

    /// Redacts every text of an error.
    pub fn error(&self, mut error: Error) -> Error {
        // Joined first: a token could reach from a place into the cause.
        let mut message = error.message();
        for text in [&mut error.runtime, &mut error.url, &mut message] {
            self.in_place(text);
        }
        error.message = vec![message];
        self.in_place_unless_static(&mut error.hint);
        if let Some(build) = &mut error.build {
            self.in_place(&mut build.step);
            build.log_tail = self.log(&build.log_tail);
            build.excerpt = self.log(&build.excerpt);
        }
        error
    }

    /// Redacts every text of an event. Image names are only cleaned.
    pub fn event(&self, mut event: Event) -> Event {
        event.texts_mut().for_each(|text| self.in_place(text));
        event.names_mut().for_each(clean);
        if let Some(hint) = &mut event.hint {
            self.in_place_unless_static(hint);
        }
        event
    }

    /// Redacts an image. Names that the caller passes on to an engine are only cleaned.
    pub fn image(&self, mut image: Image) -> Image {
        for name in [
            &mut image.reference,
            &mut image.latest_reference,
            &mut image.commit_sha,
            &mut image.image_id,
            &mut image.platform,
        ] {
            clean(name);
        }
        self.endpoint(&mut image.endpoint);
        image
    }

    /// Masks only the token in an engine's address. The caller connects to the address, and `ssh://host`
    /// is not the same as `ssh://me@host`. It has no password: an ssh:// address with one is refused, and the
    /// user information of a tcp:// address is dropped.
    pub(crate) fn endpoint(&self, endpoint: &mut String) {
        clean(endpoint);
        let token = self.token.find(endpoint.as_bytes());
        if let (Cow::Owned(masked), _) = replace(endpoint, &token, 0) {
            *endpoint = masked;
        }
    }
}

/// Makes a name that is given to an engine, such as a reference, printable. It is not masked: the token
/// was refused in it when it was made. No name that an engine accepts changes here.
pub(crate) fn clean(name: &mut String) {
    if let Cow::Owned(cleaned) = printable::line(name) {
        *name = cleaned;
    }
}

/// Masks `token` in every spelling, and the user information of every URL, in `text`.
pub fn mask_token(text: &str, token: &str) -> String {
    Masker::new(&Secret::new(token)).text(text).into_owned()
}

/// A truncated text up to its last white space. The token of a client has no white space in any spelling,
/// so the result does not end with a part of it.
pub(crate) fn whole_words(text: &str) -> &str {
    let end = text.rfind(char::is_whitespace);
    &text[..end.unwrap_or_default()]
}

/// Ends a truncated text.
const MORE: char = '…';

/// Truncates a text that is longer than `max` bytes, at a character boundary.
fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push(MORE);
    }
}

/// Replaces each range by the mask. The ranges are in order, do not overlap, and begin and end at character
/// boundaries: a token is whole characters, and all that is not the token's own bytes is ASCII. Also returns
/// the position in the result that corresponds to `position` in `text`.
fn replace<'t>(text: &'t str, ranges: &[Range<usize>], position: usize) -> (Cow<'t, str>, usize) {
    if ranges.is_empty() {
        return (Cow::Borrowed(text), position);
    }
    let mut masked = String::with_capacity(text.len());
    let (mut done, mut moved) = (0, position);
    for range in ranges {
        masked.push_str(&text[done..range.start]);
        masked.push_str(MASK);
        done = range.end;
        if range.start < position {
            moved = masked.len() + position.saturating_sub(range.end);
        }
    }
    masked.push_str(&text[done..]);
    (Cow::Owned(masked), moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "s3cr3t/töken+with spaces&more";

    #[test]
    fn debug_of_a_masker_hides_the_token() {
        let masker = Masker::new(&Secret::new(TOKEN));
        assert_eq!(format!("{masker:?}"), "Masker { .. }");
    }

    #[test]
    fn an_empty_token_masks_nothing() {
        assert_eq!(
            mask_token("nothing to hide: äöü", ""),
            "nothing to hide: äöü"
        );
    }

    #[test]
    fn the_user_information_of_every_url_is_masked() {
        assert_eq!(
            mask_token(
                "from https://u:p@ss@host/x to ssh://git@h, not http://h/a@b",
                ""
            ),
            "from https://***@host/x to ssh://***@h, not http://h/a@b"
        );
    }

    #[test]
    fn a_text_below_the_limit_is_shown_whole() {
        let masker = Masker::new(&Secret::new(TOKEN));
        let shown = |length: usize| masker.shown(&"x".repeat(length), usize::MAX);
        let limit = MAX_KEPT - WITHIN_CHAR;
        assert_eq!(shown(limit - 1), "x".repeat(limit - 1));
        assert_eq!(shown(limit), format!("{}…", "x".repeat(limit - MARGIN)));
        // The mask moves the end of what is shown.
        let text = format!("{TOKEN}{}", "x".repeat(limit));
        let kept = crate::printable::line(&text).len() - MARGIN - TOKEN.len();
        let expected = format!("***{}…", "x".repeat(kept));
        assert_eq!(masker.shown(&text, usize::MAX), expected);
    }

    #[test]
    fn text_is_masked_before_it_is_truncated() {
        let masker = Masker::new(&Secret::new(TOKEN));
        for before in 0..TOKEN.len() + 4 {
            let text = format!("{}{TOKEN} and more", "x".repeat(before));
            let shown = masker.shown(&text, TOKEN.len());
            assert!(!shown.contains("s3c"), "{shown}");
        }
    }

    #[test]
    fn only_a_text_above_the_limit_is_truncated() {
        let masker = Masker::new(&Secret::new(TOKEN));
        assert_eq!(masker.shown("eight...", 8), "eight...");
        assert_eq!(masker.shown("nine.....", 8), "nine....…");
    }

    #[test]
    fn truncated_input_shows_no_part_of_the_token() {
        const LONG: &str = "0123456789abcdefghijklmnopqrstuvwxyz";
        let masker = Masker::new(&Secret::new(LONG));
        let entities: String = LONG.bytes().map(|b| format!("&amp;#x{b:04x};")).collect();
        for spelling in [LONG, &entities] {
            let whole = format!("at https://me:{spelling}@host/ ").repeat(MAX_KEPT / 20);
            for end in (MAX_KEPT - 3..=MAX_KEPT).chain((MAX_KEPT + 500..MAX_KEPT + 900).step_by(13))
            {
                let shown = masker.shown(&whole[..end], MAX_LINE);
                assert!(shown.starts_with("at https://***@host/ at "));
                let rest = shown.replace("at https://***@host/ ", "");
                assert!(rest.len() < 25, "{rest}");
                assert!(!rest.contains('0') && !rest.contains("me"), "{rest}");
            }
        }
    }

    #[test]
    fn the_longest_token_in_its_longest_form_is_not_shown_when_truncated() {
        let token: String = ('a'..='z').cycle().take(MAX_TOKEN).collect();
        let spelled: String = token.bytes().map(|b| format!("&amp;#x{b:04x};")).collect();
        assert_eq!(spelled.len(), LONGEST_FORM * MAX_TOKEN);
        let text = format!("a {spelled} b {spelled}");
        let masker = Masker::new(&Secret::new(token));
        assert_eq!(masker.shown(&text[..MAX_KEPT], MAX_LINE), "a ***…");
    }

    #[test]
    fn a_token_with_invisible_characters_inside_is_masked() {
        let token = "s3cr3t/token+with-more";
        let masker = Masker::new(&Secret::new(token));
        for inside in [
            "\x1b[0m",
            "\x1b]0;x\x07",
            "\x1b]8;;\x1b\\",
            "\u{9b}1m",
            "\0",
            "\x08",
            "\x7f",
            "\u{ad}",
            "\u{200b}",
            "\u{200d}",
            "\u{202e}",
            "\u{2060}",
            "\u{2066}",
            "\u{feff}",
            "\u{fe0f}",
            "\u{e0041}",
            "\u{34f}",
        ] {
            for at in 1..token.len() {
                let text = format!("é{}{inside}{}", &token[..at], &token[at..]);
                assert_eq!(masker.shown(&text, MAX_LINE), "é***", "{inside:?}");
            }
        }
    }

    #[test]
    fn redacting_twice_changes_nothing_more() {
        let masker = Masker::new(&Secret::new(TOKEN));
        for text in [
            "https://me:pw@host/ \x1b[31m\r\n",
            &"https://me:pw@host/ ".repeat(1000),
            &"é".repeat(20_000),
            &TOKEN.repeat(3000),
        ] {
            let once = masker.shown(text, MAX_LINE);
            assert!(once.len() <= MAX_LINE + MORE.len_utf8());
            assert_eq!(masker.shown(&once, MAX_LINE), once);
        }
    }

    #[test]
    fn hints_written_in_the_library_are_not_masked() {
        let masker = Masker::new(&Secret::new("molecule-local"));
        let error = Error::new(crate::Code::InvalidOption, "no ssh://me@host")
            .hint("use ssh://user@host, or molecule-local");
        let error = masker.error(error);
        assert_eq!(error.to_string(), "no ssh://***@host");
        assert_eq!(error.hint, "use ssh://user@host, or molecule-local");
        let error = masker.error(error.hint("use ssh://user@host".to_owned()));
        assert_eq!(error.hint, "use ssh://***@host");
        let event = Event::warning("ssh://me@host", "use ssh://user@host");
        let event = masker.event(event);
        assert_eq!(event.message, "ssh://***@host");
        assert_eq!(event.hint.unwrap(), "use ssh://user@host");
    }

    #[test]
    fn a_log_keeps_its_lines_and_a_message_is_one_line() {
        let text = "one\r\n\x1b[31mtwo\tthree\rfour\n";
        let error =
            Error::new(crate::Code::BuildFailed, text).in_build(crate::error::FailedBuild {
                step: text.to_owned(),
                log_tail: text.to_owned(),
                ..Default::default()
            });
        let error = Masker::default().error(error);
        assert_eq!(error.to_string(), "one  two three four ");
        let build = error.build.unwrap();
        assert_eq!(build.step, "one  two three four ");
        assert_eq!(build.log_tail, "one\ntwo three four");
    }

    #[test]
    #[cfg(feature = "silent")]
    fn log_records_of_dependencies_are_compiled_out() {
        assert_eq!(log::STATIC_MAX_LEVEL, log::LevelFilter::Off);
        let tracing = tracing::level_filters::STATIC_MAX_LEVEL;
        assert_eq!(tracing, tracing::level_filters::LevelFilter::OFF);
    }

    #[test]
    fn debug_of_a_secret_hides_it() {
        assert_eq!(format!("{:?}", Secret::new("x")), "***");
    }
}
