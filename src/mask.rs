//! The one masking layer: whatever leaves the library goes through here.
//!
//! It is deliberately blind to where a text came from. An error made from a server's answer, a line
//! of a build's output and a panic's message are all treated alike, so there is no list of places
//! to keep in step with the code.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use regex::Regex;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::event::Event;
use crate::image::Image;

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// The longest token. Gitea's have 40 characters; a JSON web token has a few hundred.
pub(crate) const MAX_TOKEN: usize = 1024;

/// What is cut before it is masked must be cut this much later than where it ends in the end: a part
/// of a token that the cut has left is no longer recognised, and this is more than its longest
/// spelling, so that the part lies in what is cut off afterwards.
pub(crate) const MARGIN: usize = 4 * MAX_TOKEN;

/// The longest text of an event, and the longest line of an error's log, in bytes.
pub(crate) const MAX_LINE: usize = 4 * 1024;

/// A secret that is wiped from memory when dropped and never shows itself.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes charge of `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself: for the one header it is meant for.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "unset" } else { MASK })
    }
}

/// What a call ends with: it leaves the library only through here.
pub(crate) trait Told: Send + 'static {
    /// Itself, with every text in it masked.
    #[must_use]
    fn masked(self, masker: &Masker) -> Self;
}

impl Told for Image {
    fn masked(self, masker: &Masker) -> Self {
        masker.image(self)
    }
}

/// Replaces a token, in every spelling, and the user information of every URL.
#[derive(Clone, Default)]
pub struct Masker {
    token: Spellings,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masker").finish_non_exhaustive()
    }
}

/// The user information of a URL, up to the last `@` before the path (RFC 3986, section 3.2.1; a
/// password with an unescaped `@` in it must not survive in part).
static USERINFO: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"([A-Za-z][A-Za-z0-9+.\-]*://)[^/?#\s"'<>\\]*@"#).ok());

impl Masker {
    /// A masker for `token`. The empty token masks nothing but the user information of URLs.
    pub fn new(token: &Secret) -> Self {
        Self {
            token: Spellings::of(token.expose().as_bytes()),
        }
    }

    /// Masks `text`.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut masked = self.without_token(text);
        if masked.contains("://")
            && let Some(userinfo) = USERINFO.as_ref()
            && let Cow::Owned(without) = userinfo.replace_all(&masked, "${1}***@")
        {
            masked = Cow::Owned(without);
        }
        masked
    }

    fn without_token<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match &self.token.find(text.as_bytes())[..] {
            [] => Cow::Borrowed(text),
            found => Cow::Owned(replace(text, found)),
        }
    }

    /// Masks `text` where it is.
    pub(crate) fn in_place(&self, text: &mut String) {
        if let Cow::Owned(masked) = self.text(text) {
            *text = masked;
        }
    }

    /// Masks `text`, then cuts it to a length at which it can be shown.
    pub(crate) fn shown(&self, text: &str, max: usize) -> String {
        let mut text = self.text(text).into_owned();
        cut(&mut text, max);
        text
    }

    /// Masks every text of an error, and cuts what a peer has made too long to be read.
    pub fn error(&self, mut error: Error) -> Error {
        for text in [
            &mut error.runtime,
            &mut error.url,
            &mut error.message,
            &mut error.hint,
        ] {
            self.in_place(text);
            cut(text, MAX_LINE);
        }
        if let Some(build) = &mut error.build {
            self.in_place(&mut build.step);
            cut(&mut build.step, MAX_LINE);
            self.in_place(&mut build.log_tail);
            let lines = build.log_tail.lines().map(|line| {
                let mut line = line.to_owned();
                cut(&mut line, MAX_LINE);
                line
            });
            build.log_tail = lines.collect::<Vec<_>>().join("\n");
        }
        error
    }

    /// Masks every text of an event.
    pub fn event(&self, mut event: Event) -> Event {
        for text in event.texts_mut() {
            self.in_place(text);
            cut(text, MAX_LINE);
        }
        event
    }

    /// Masks every text of an image.
    pub fn image(&self, mut image: Image) -> Image {
        for text in [
            &mut image.reference,
            &mut image.latest_reference,
            &mut image.commit_sha,
            &mut image.image_id,
            &mut image.platform,
        ] {
            self.in_place(text);
        }
        // It is there to be connected to: `ssh://me@host` without the user is another address. It has
        // no password, which no address of an engine may have.
        image.endpoint = self.without_token(&image.endpoint).into_owned();
        image
    }
}

/// Masks `token` in every spelling, and the user information of every URL, in `text`.
pub fn mask_token(text: &str, token: &str) -> String {
    Masker::new(&Secret::new(token)).text(text).into_owned()
}

/// Cuts a text that is longer than `max` bytes, at a character's boundary.
fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
}

/// The text with the mask in the place of each range.
fn replace(text: &str, ranges: &[Range<usize>]) -> String {
    let mut masked = Vec::with_capacity(text.len());
    let mut done = 0;
    for range in ranges {
        masked.extend_from_slice(&text.as_bytes()[done..range.start]);
        masked.extend_from_slice(MASK.as_bytes());
        done = range.end;
    }
    masked.extend_from_slice(&text.as_bytes()[done..]);
    String::from_utf8(masked)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// What a token looks like in a text:
///
/// - byte by byte, each plain, percent-encoded in either case (RFC 3986, section 2.1; encoders differ
///   in which bytes they leave alone), or escaped as in a JSON or debug string. As it is, in capitals
///   and in small letters: BuildKit repeats an instruction that it does not know in capitals, and a
///   host name is small everywhere;
/// - inside base64 of `user:token` (RFC 7617), in both alphabets, whatever the user is: the part of
///   the encoding that depends on the token alone, for each of the three ways in which the user can
///   shift it, widened to the whole run of base64.
///
/// No regular expression: its automaton would be copies of the token that nobody wipes.
#[derive(Clone, Default)]
struct Spellings {
    plain: Vec<Zeroizing<Vec<u8>>>,
    base64: Vec<Zeroizing<Vec<u8>>>,
}

/// Shorter pieces of base64 would match by chance.
const SHORTEST_BASE64: usize = 4;

impl Spellings {
    fn of(token: &[u8]) -> Self {
        let mut all = Self::default();
        if token.is_empty() {
            return all;
        }
        let add = |list: &mut Vec<Zeroizing<Vec<u8>>>, spelling: Zeroizing<Vec<u8>>| {
            if !list.contains(&spelling) {
                list.push(spelling);
            }
        };
        add(&mut all.plain, Zeroizing::new(token.to_vec()));
        add(&mut all.plain, Zeroizing::new(token.to_ascii_uppercase()));
        add(&mut all.plain, Zeroizing::new(token.to_ascii_lowercase()));
        for before in 0..3 {
            let mut part = Zeroizing::new(Vec::with_capacity(before + token.len()));
            part.resize(before, 0);
            part.extend_from_slice(token);
            // The characters, of six bits each, all of whose bits are the token's.
            let (first, last) = ((before * 8).div_ceil(6), part.len() * 8 / 6);
            if last < first + SHORTEST_BASE64 {
                continue;
            }
            for alphabet in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let encoded = Zeroizing::new(alphabet.encode(&*part));
                let core = encoded.as_bytes()[first..last].to_vec();
                add(&mut all.base64, Zeroizing::new(core));
            }
        }
        all
    }

    /// Where it stands, from left to right. What overlaps is one find.
    fn find(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for token in &self.plain {
            let starts = [token[0], b'%', b'\\', b'+'];
            let mut at = 0;
            while let Some(next) = text[at..].iter().position(|byte| starts.contains(byte)) {
                at += next;
                match spelled(&text[at..], token) {
                    Some(length) => {
                        found.push(at..at + length);
                        at += length;
                    }
                    None => at += 1,
                }
            }
        }
        let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte);
        for core in &self.base64 {
            // A find does not reach back into the one before it.
            let (mut at, mut end) = (0, 0);
            while let Some(next) = text[at..].iter().position(|byte| *byte == core[0]) {
                at += next;
                if !text[at..].starts_with(core) {
                    at += 1;
                    continue;
                }
                let before = text[end..at].iter().rev().take_while(|b| is_base64(b));
                let start = at - before.count();
                let run = text[start..].iter().take_while(|b| is_base64(b)).count();
                let padding = text[start + run..].iter().take_while(|b| **b == b'=');
                end = start + run + padding.count();
                at = end;
                found.push(start..end);
            }
        }
        found.sort_unstable_by_key(|range| range.start);
        found.dedup_by(|next, last| {
            let overlaps = next.start < last.end;
            if overlaps {
                last.end = last.end.max(next.end);
            }
            overlaps
        });
        found
    }
}

/// How much of the beginning of `text` is the token, if it is. Where the token holds a character that
/// also escapes, such as `%25`, several readings may fit: the longest counts, so that none of it stays.
fn spelled(text: &[u8], token: &[u8]) -> Option<usize> {
    let hex = |digit: u8| char::from(digit).to_digit(16);
    let byte_of = |high, low| Some(hex(high)? * 16 + hex(low)?);
    // Where what was read of the token so far may end, in order.
    let (mut ends, mut next) = (vec![0], Vec::new());
    for &byte in token {
        for end in ends.drain(..) {
            let forms = match (byte, &text[end..]) {
                (_, [b'%', high, low, ..]) if byte_of(*high, *low) == Some(byte.into()) => {
                    [Some(3), (byte == b'%').then_some(1)]
                }
                (b'"' | b'\\' | b'\'', [b'\\', escaped, ..]) if *escaped == byte => {
                    [Some(2), (byte == b'\\').then_some(1)]
                }
                (b' ', [b'+', ..]) => [Some(1), None],
                (_, [plain, ..]) if *plain == byte => [Some(1), None],
                _ => continue,
            };
            next.extend(forms.into_iter().flatten().map(|length| end + length));
        }
        next.sort_unstable();
        next.dedup();
        std::mem::swap(&mut ends, &mut next);
        if ends.is_empty() {
            return None;
        }
    }
    ends.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    const TOKEN: &str = "s3cr3t/töken+with spaces&more";

    #[test]
    fn every_spelling_of_the_token_is_masked() {
        let percent =
            percent_encoding::utf8_percent_encode(TOKEN, percent_encoding::NON_ALPHANUMERIC)
                .to_string();
        let mut spellings = vec![
            TOKEN.to_owned(),
            percent.clone(),
            percent.to_lowercase(),
            TOKEN.replace(' ', "+"),
            TOKEN.replace('/', "%2f"),
        ];
        for user in ["", "a", "git", "x-access-token", "oauth2"] {
            spellings.push(STANDARD.encode(format!("{user}:{TOKEN}")));
            spellings.push(URL_SAFE_NO_PAD.encode(format!("{user}:{TOKEN}")));
        }
        for spelling in spellings {
            let masked = mask_token(&format!("before {spelling} after"), TOKEN);
            assert_eq!(masked, "before *** after", "{spelling}");
        }
    }

    #[test]
    fn a_token_in_capitals_or_small_letters_is_masked() {
        let capitals = TOKEN.to_ascii_uppercase();
        let percent =
            percent_encoding::utf8_percent_encode(&capitals, percent_encoding::NON_ALPHANUMERIC);
        for spelling in [&capitals, &TOKEN.to_ascii_lowercase(), &percent.to_string()] {
            let masked = mask_token(&format!("unknown instruction: {spelling}!"), TOKEN);
            assert_eq!(masked, "unknown instruction: ***!", "{spelling}");
        }
    }

    #[test]
    fn a_token_full_of_what_is_escaped_is_masked_escaped_and_not() {
        for token in [
            "a\\\\b%25c",
            "%25%25x",
            "\"\\'\"",
            "+ +\\+",
            "%%%",
            "a%",
            "a\\",
        ] {
            let escaped = format!("{token:?}");
            let percent: String = token.bytes().map(|byte| format!("%{byte:02x}")).collect();
            for spelling in [token, &escaped[1..escaped.len() - 1], &percent] {
                let masked = mask_token(&format!("<{spelling}>"), token);
                assert_eq!(masked, "<***>", "{spelling} of {token}");
            }
        }
    }

    #[test]
    fn neither_a_masker_nor_what_holds_one_shows_the_token() {
        let masker = Masker::new(&Secret::new(TOKEN));
        assert_eq!(format!("{masker:?}"), "Masker { .. }");
    }

    #[test]
    fn an_empty_token_changes_nothing() {
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
    fn text_around_a_token_keeps_its_letters() {
        assert_eq!(mask_token("ä=tok;ö=tok", "tok"), "ä=***;ö=***");
    }

    #[test]
    fn a_text_is_masked_before_it_is_cut() {
        let masker = Masker::new(&Secret::new(TOKEN));
        for before in 0..TOKEN.len() + 4 {
            let text = format!("{}{TOKEN} and more", "x".repeat(before));
            let shown = masker.shown(&text, TOKEN.len());
            assert!(!shown.contains("s3c"), "{shown}");
        }
    }

    #[test]
    #[cfg(feature = "silent")]
    fn no_dependency_logs_anything_at_any_level() {
        assert_eq!(log::STATIC_MAX_LEVEL, log::LevelFilter::Off);
        let tracing = tracing::level_filters::STATIC_MAX_LEVEL;
        assert_eq!(tracing, tracing::level_filters::LevelFilter::OFF);
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new("x")), "***");
    }
}
