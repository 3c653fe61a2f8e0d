//! The one masking layer: whatever leaves the library goes through here.
//!
//! It is deliberately blind to where a text came from. An error made from a server's answer, a line
//! of a build's output and a panic's message are all treated alike, so there is no list of places
//! to keep in step with the code. What is the library's own is told by its type: a hint that is a
//! `&'static str` stays as it is written, and so do references, which are checked when they are made.
//!
//! First a text becomes one printable line ([`printable`]), then the token is masked, then the text is
//! cut: taking something out later could put a token together, and cutting earlier could leave a part.

pub(crate) mod printable;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use regex::Regex;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::event::Event;
use crate::names::image::{EngineHost, Image};

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// The longest token. Gitea's have 40 characters; a JSON web token has a few hundred.
pub(crate) const MAX_TOKEN: usize = 1024;

/// A shorter token is none that a server would give: it may well be part of a name by chance, and what
/// is shown would be full of masks.
pub(crate) const MIN_TOKEN: usize = 8;

/// The longest spelling of one byte: `&amp;#x0041;`.
const LONGEST_FORM: usize = 12;

/// No spelling of a token is longer. A part of a token that a cut has left is no longer recognised, so
/// what is cut before it is masked is cut this much later than where it ends in the end.
const MARGIN: usize = LONGEST_FORM * MAX_TOKEN;

/// The longest text of an event, and the longest line of an error's log, in bytes.
pub(crate) const MAX_LINE: usize = 4 * 1024;

/// Where a text may be cut before it is masked, in bytes. Of a text that is as long as that, what stems
/// from the last [`MARGIN`] bytes is not shown, however short the rest becomes.
pub(crate) const MAX_KEPT: usize = MAX_LINE + MARGIN;

/// A cut may fall into a character, and go back to its beginning.
const WITHIN_CHAR: usize = 3;

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
pub(crate) trait Redact: Send + 'static {
    /// Itself, with every text in it masked.
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

    /// Masks `text`, and changes nothing else in it.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.up_to(text, text.len()).0
    }

    /// Masks all of `text`, and tells where in the result is what stood at `end`.
    fn up_to<'t>(&self, text: &'t str, end: usize) -> (Cow<'t, str>, usize) {
        let (mut masked, mut end) = replaced(text, &self.token.find(text.as_bytes()), end);
        if masked.contains("://")
            && let Some(userinfo) = USERINFO.as_ref()
        {
            let found: Vec<Range<usize>> = userinfo
                .captures_iter(&masked)
                .filter_map(|found| Some(found.get(1)?.end()..found.get(0)?.end() - 1))
                .collect();
            if let (Cow::Owned(without), moved) = replaced(&masked, &found, end) {
                (masked, end) = (Cow::Owned(without), moved);
            }
        }
        (masked, end)
    }

    /// Is the token in `text`, in any spelling?
    pub(crate) fn is_in(&self, text: &str) -> bool {
        !self.token.find(text.as_bytes()).is_empty()
    }

    /// `text` as one printable line, masked, and cut to a length at which it can be shown.
    pub(crate) fn shown(&self, text: &str, max: usize) -> String {
        let text = printable::line(text);
        let end = match text.len() {
            length if length < MAX_KEPT - WITHIN_CHAR => length,
            length => text.floor_char_boundary(length - MARGIN),
        };
        let (masked, masked_end) = self.up_to(&text, end);
        let mut shown = masked.into_owned();
        if end < text.len() {
            shown.truncate(masked_end);
        }
        cut(&mut shown, max);
        if end < text.len() && !shown.ends_with(MORE) {
            shown.push(MORE);
        }
        shown
    }

    /// The same for a text of many lines, each by itself.
    pub(crate) fn log(&self, text: &str) -> String {
        let lines = text.lines().map(|line| self.shown(line, MAX_LINE));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Makes `text` fit to be shown where it is.
    pub(crate) fn in_place(&self, text: &mut String) {
        *text = self.shown(text, MAX_LINE);
    }

    /// The same, unless the text is the library's own.
    pub(crate) fn outside(&self, text: &mut Cow<'static, str>) {
        if let Cow::Owned(text) = text {
            self.in_place(text);
        }
    }

    /// Makes every text of an error fit to be shown.
    pub fn error(&self, mut error: Error) -> Error {
        for text in [&mut error.runtime, &mut error.url, &mut error.message] {
            self.in_place(text);
        }
        self.outside(&mut error.hint);
        if let Some(build) = &mut error.build {
            self.in_place(&mut build.step);
            build.log_tail = self.log(&build.log_tail);
        }
        error
    }

    /// Makes every text of an event fit to be shown.
    pub fn event(&self, mut event: Event) -> Event {
        event.texts_mut().for_each(|text| self.in_place(text));
        event.names_mut().for_each(clean);
        if let Some(hint) = &mut event.hint {
            self.outside(hint);
        }
        event
    }

    /// Makes every text of an image fit to be shown, and leaves fit to be used what is to be used.
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

    /// An engine's address is there to be connected to: `ssh://me@host` without the user is another one. It has no
    /// password, which no address of an engine may have.
    fn endpoint(&self, endpoint: &mut String) {
        clean(endpoint);
        let found = self.token.find(endpoint.as_bytes());
        if let (Cow::Owned(masked), _) = replaced(endpoint, &found, 0) {
            *endpoint = masked;
        }
    }
}

/// For a name that is given to an engine, such as a reference: it is never masked. That it does not
/// hold the token was seen to when it was made, and no name that an engine takes changes here.
pub(crate) fn clean(name: &mut String) {
    if let Cow::Owned(cleaned) = printable::line(name) {
        *name = cleaned;
    }
}

/// Masks `token` in every spelling, and the user information of every URL, in `text`.
pub fn mask_token(text: &str, token: &str) -> String {
    Masker::new(&Secret::new(token)).text(text).into_owned()
}

/// The beginning of a text that was cut somewhere, up to its last white space. No spelling of a token
/// has white space in it, so what is left holds no part of one.
pub(crate) fn whole_words(text: &str) -> &str {
    let end = text.rfind(char::is_whitespace);
    &text[..end.unwrap_or_default()]
}

/// What stands where a text was cut.
const MORE: char = '…';

/// Cuts a text that is longer than `max` bytes, at a character's boundary.
fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push(MORE);
    }
}

/// The text with the mask in the place of each range, and where in it is what stood at `end`.
fn replaced<'t>(text: &'t str, ranges: &[Range<usize>], end: usize) -> (Cow<'t, str>, usize) {
    if ranges.is_empty() {
        return (Cow::Borrowed(text), end);
    }
    let mut masked = Vec::with_capacity(text.len());
    let (mut done, mut moved) = (0, None);
    for range in ranges {
        if end <= range.start && moved.is_none() {
            moved = Some(masked.len() + (end - done));
        }
        masked.extend_from_slice(&text.as_bytes()[done..range.start]);
        masked.extend_from_slice(MASK.as_bytes());
        done = range.end;
        if end < range.end && moved.is_none() {
            moved = Some(masked.len());
        }
    }
    let moved = moved.unwrap_or(masked.len() + (end - done));
    masked.extend_from_slice(&text.as_bytes()[done..]);
    let masked = String::from_utf8(masked)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    let moved = masked.floor_char_boundary(moved);
    (Cow::Owned(masked), moved)
}

/// What a token looks like in a text:
///
/// - byte by byte, each in one of its [`forms`], in any mixture: encoders differ in which bytes they
///   leave alone. As it is, in capitals and in small letters: BuildKit repeats an instruction that it
///   does not know in capitals, and a host name is small everywhere;
/// - the same three in hexadecimal, in digits of either case;
/// - inside base64 of `user:token` (RFC 7617), in both alphabets, whatever the user is: the part of
///   the encoding that depends on the token alone, for each of the three ways in which the user can
///   shift it, widened to the whole run of base64.
///
/// No regular expression: its automaton would be copies of the token that nobody wipes.
#[derive(Clone, Default)]
struct Spellings {
    pieces: Vec<Piece>,
    /// For each byte, the pieces that a find beginning with it can be of, a bit for each.
    starts: Zeroizing<Vec<u16>>,
}

/// What is looked for. There are at most 15: three of bytes, and six each of the others.
#[derive(Clone)]
struct Piece {
    kind: Kind,
    text: Zeroizing<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The token itself, each of its bytes in any form.
    Bytes,
    /// In hexadecimal, to the letter.
    Hex,
    /// A part of base64, which stands for all of it.
    Base64,
}

/// Shorter pieces of base64 would match by chance, and so would shorter tokens in hexadecimal.
const SHORTEST: usize = 4;

impl Spellings {
    fn of(token: &[u8]) -> Self {
        let mut all = Self::default();
        if token.is_empty() {
            return all;
        }
        let cases = [
            Zeroizing::new(token.to_vec()),
            Zeroizing::new(token.to_ascii_uppercase()),
            Zeroizing::new(token.to_ascii_lowercase()),
        ];
        for text in &cases {
            all.add(Kind::Bytes, text);
        }
        if token.len() >= SHORTEST {
            for text in &cases {
                all.add(Kind::Hex, &hexadecimal(text, *b"0123456789abcdef"));
                all.add(Kind::Hex, &hexadecimal(text, *b"0123456789ABCDEF"));
            }
        }
        for before in 0..3 {
            let mut part = Zeroizing::new(Vec::with_capacity(before + token.len()));
            part.resize(before, 0);
            part.extend_from_slice(token);
            // The characters, of six bits each, all of whose bits are the token's.
            let (first, last) = ((before * 8).div_ceil(6), part.len() * 8 / 6);
            if last < first + SHORTEST {
                continue;
            }
            for alphabet in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let encoded = Zeroizing::new(alphabet.encode(&*part));
                all.add(Kind::Base64, &encoded.as_bytes()[first..last]);
            }
        }
        all.starts.resize(256, 0);
        for (index, piece) in all.pieces.iter().enumerate() {
            let escapes: &[u8] = match piece.kind {
                Kind::Bytes => ESCAPES,
                _ => &[],
            };
            for byte in escapes.iter().chain(&piece.text[..1]) {
                all.starts[usize::from(*byte)] |= 1 << index;
            }
        }
        all
    }

    fn add(&mut self, kind: Kind, text: &[u8]) {
        let same = |piece: &Piece| piece.kind == kind && **piece.text == *text;
        if !self.pieces.iter().any(same) {
            let text = Zeroizing::new(text.to_vec());
            self.pieces.push(Piece { kind, text });
        }
    }

    /// Where it stands, from left to right. What overlaps is one find; those of one piece never do.
    fn find(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        if self.pieces.is_empty() {
            return found;
        }
        // Where the last find of each piece has ended.
        let mut from = [0; u16::BITS as usize];
        for (at, byte) in text.iter().enumerate() {
            let mut which = self.starts[usize::from(*byte)];
            while which != 0 {
                let index = which.trailing_zeros() as usize;
                which &= which - 1;
                if at < from[index] {
                    continue;
                }
                if let Some(range) = self.pieces[index].found(text, at, from[index]) {
                    from[index] = range.end;
                    found.push(range);
                }
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

impl Piece {
    /// What it stands for, if it is found at `at`; not reaching back beyond `from`.
    fn found(&self, text: &[u8], at: usize, from: usize) -> Option<Range<usize>> {
        let here = &text[at..];
        match self.kind {
            Kind::Bytes => spelled(here, &self.text).map(|length| at..at + length),
            _ if !here.starts_with(&self.text) => None,
            Kind::Hex => Some(at..at + self.text.len()),
            Kind::Base64 => {
                let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte);
                let before = text[from..at].iter().rev().take_while(|b| is_base64(b));
                let run = here.iter().take_while(|b| is_base64(b)).count();
                let padding = here[run..].iter().take_while(|b| **b == b'=').count();
                Some(at - before.count()..at + run + padding)
            }
        }
    }
}

fn hexadecimal(text: &[u8], digits: [u8; 16]) -> Zeroizing<Vec<u8>> {
    let mut encoded = Zeroizing::new(Vec::with_capacity(2 * text.len()));
    for byte in text {
        encoded.push(digits[usize::from(byte >> 4)]);
        encoded.push(digits[usize::from(byte & 15)]);
    }
    encoded
}

/// What a byte that is not written as it is can begin with.
const ESCAPES: &[u8] = b"%\\&+";

/// How much of the beginning of `text` is the token, if it is. Where the token holds a character that
/// also escapes, such as `%25`, several readings may fit: the longest counts, so that none of it stays.
fn spelled(text: &[u8], token: &[u8]) -> Option<usize> {
    let plain = text
        .iter()
        .zip(token)
        .take_while(|(found, byte)| found == byte && !ESCAPES.contains(found))
        .count();
    match (text.get(plain), token.len() - plain) {
        (_, 0) => return Some(plain),
        (Some(byte), _) if ESCAPES.contains(byte) => {}
        _ => return None,
    }
    // Where what was read of the token so far may end, in order.
    let (mut ends, mut next) = (vec![plain], Vec::new());
    for &byte in &token[plain..] {
        for end in ends.drain(..) {
            forms(&text[end..], byte, |length| next.push(end + length));
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

/// Tells the length of each form of `byte` that `text` begins with:
///
/// - as it is; a space as `+` too;
/// - percent-encoded in either case (RFC 3986, section 2.1), and that up to twice more (`%2541`);
/// - behind a backslash, as in the strings of JSON, C, Python or a shell: `\u0041`, `\x41`, `\101` (git
///   quotes file names so), and itself if it is a quotation mark, a slash or a backslash. Up to four
///   backslashes, for strings in strings;
/// - as a character reference of HTML: `&#65;`, `&#x41;`, `&lt;`, and once more (`&amp;lt;`).
fn forms(text: &[u8], byte: u8, mut tell: impl FnMut(usize)) {
    let number = |digits: &[u8], base: u32| -> Option<u32> {
        digits.iter().try_fold(0, |value, digit| {
            Some(value * base + char::from(*digit).to_digit(base)?)
        })
    };
    let is = |digits: Option<&[u8]>, base| {
        digits.and_then(|digits| number(digits, base)) == Some(byte.into())
    };
    let Some(&first) = text.first() else {
        return;
    };
    if first == byte || (first == b'+' && byte == b' ') {
        tell(1);
    }
    match first {
        b'%' => {
            for at in [1, 3, 5] {
                if is(text.get(at..at + 2), 16) {
                    tell(at + 2);
                }
                if text.get(at..at + 2) != Some(b"25") {
                    break;
                }
            }
        }
        b'\\' => {
            for at in 1..=4 {
                match text.get(at) {
                    Some(&escaped) if escaped == byte && b"\"'/\\".contains(&byte) => tell(at + 1),
                    Some(b'u') if byte.is_ascii() && is(text.get(at + 1..at + 5), 16) => {
                        tell(at + 5);
                    }
                    Some(b'x') if is(text.get(at + 1..at + 3), 16) => tell(at + 3),
                    Some(b'0'..=b'3') if is(text.get(at..at + 3), 8) => tell(at + 3),
                    _ => {}
                }
                if text.get(at) != Some(&b'\\') {
                    break;
                }
            }
        }
        b'&' if byte.is_ascii() => {
            for at in [1, 5] {
                let end = text[at.min(text.len())..].iter().take(8);
                let Some(end) = end.clone().position(|byte| *byte == b';') else {
                    break;
                };
                let fits = match (&text[at..at + end], byte) {
                    ([b'#', b'x' | b'X', digits @ ..], _) if (1..=4).contains(&digits.len()) => {
                        is(Some(digits), 16)
                    }
                    ([b'#', digits @ ..], _) if (1..=4).contains(&digits.len()) => {
                        is(Some(digits), 10)
                    }
                    (b"lt", b'<') | (b"gt", b'>') | (b"amp", b'&') | (b"quot", b'"') => true,
                    (b"apos", b'\'') => true,
                    _ => false,
                };
                if fits {
                    tell(at + end + 1);
                }
                if !text[at..].starts_with(b"amp;") {
                    break;
                }
            }
        }
        _ => {}
    }
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
        let each = |form: fn(u8) -> String| TOKEN.bytes().map(form).collect::<String>();
        let mut spellings = vec![
            TOKEN.to_owned(),
            percent.clone(),
            percent.to_lowercase(),
            TOKEN.replace(' ', "+"),
            TOKEN.replace('/', "%2f"),
            percent.replace('%', "%25"),
            percent.replace('%', "%2525"),
            each(|byte| format!("{byte:02x}")),
            each(|byte| format!("{byte:02X}")),
            each(|byte| format!("\\x{byte:02x}")),
            each(|byte| format!("\\\\{byte:03o}")),
            format!("{TOKEN:?}").trim_matches('"').replace('/', "\\/"),
            TOKEN.replace('&', "&amp;"),
            TOKEN.replace('&', "&amp;amp;"),
            TOKEN.replace('/', "&#47;").replace('+', "&#x2B;"),
            TOKEN
                .replace('/', "&amp;#0047;")
                .replace(' ', "&amp;#X0020;"),
            TOKEN.replace('&', "\\u0026").replace('+', "\\\\u002B"),
            TOKEN.replace('&', "\\046").replace("ö", "\\303\\266"),
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
    fn a_text_that_was_cut_before_shows_no_part_of_the_token() {
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
    fn a_token_with_something_invisible_in_it_is_masked() {
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
    fn what_is_shown_stays_as_it_is_when_it_is_shown_again() {
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
    fn words_of_the_library_s_own_are_not_spoilt() {
        let masker = Masker::new(&Secret::new("molecule-local"));
        let error = Error::new(crate::Code::InvalidOption, "no ssh://me@host")
            .hint("use ssh://user@host, or molecule-local");
        let error = masker.error(error);
        assert_eq!(error.message, "no ssh://***@host");
        assert_eq!(error.hint, "use ssh://user@host, or molecule-local");
        let error = masker.error(error.hint("use ssh://user@host".to_owned()));
        assert_eq!(error.hint, "use ssh://***@host");
        let event = Event::warning("ssh://me@host", "use ssh://user@host");
        let event = masker.event(event);
        assert_eq!(event.message, "ssh://***@host");
        assert_eq!(event.hint.unwrap(), "use ssh://user@host");
    }

    #[test]
    fn a_log_keeps_its_lines_and_a_message_has_one() {
        let text = "one\r\n\x1b[31mtwo\tthree\rfour\n";
        let error =
            Error::new(crate::Code::BuildFailed, text).in_build(crate::error::FailedBuild {
                step: text.to_owned(),
                log_tail: text.to_owned(),
                ..Default::default()
            });
        let error = Masker::default().error(error);
        assert_eq!(error.message, "one  two three four ");
        let build = error.build.unwrap();
        assert_eq!(build.step, "one  two three four ");
        assert_eq!(build.log_tail, "one\ntwo three four");
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
