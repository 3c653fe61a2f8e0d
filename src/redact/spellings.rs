//! The ways in which a text can spell a token, and the search for them.
//!
//! Go has the same rules in go/mol/mask_spellings.go. A test in go/mol compares the results of both.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// The longest form of one byte, in bytes: `&amp;#x0041;`.
pub(crate) const LONGEST_FORM: usize = 12;

/// The patterns that find a token in a text:
///
/// - The token, each byte in one of its [`forms`], in any mixture, because encoders differ in which bytes
///   they escape. As it is, in upper case and in lower case: BuildKit quotes an unknown instruction in
///   upper case, and host names are lower case.
/// - The same three in hexadecimal, in upper-case or in lower-case digits.
/// - Base64 of any text that contains the token, such as `user:token` (RFC 7617), in both alphabets. The
///   text before the token shifts it by 0, 1 or 2 bytes in a group of three. Each shift has a pattern, of
///   the characters that depend on the token alone. A match extends to the whole run of base64.
///
/// Not a regular expression, because its automaton would hold copies of the token that are not wiped.
#[derive(Clone, Default)]
pub(crate) struct Spellings {
    patterns: Vec<Pattern>,
    /// For each byte, the set of patterns whose matches can begin with it, as bits.
    starts: Zeroizing<Vec<u16>>,
}

/// There are at most 15 for a token: 3 of the token itself, 6 in hexadecimal, 6 in base64.
#[derive(Clone)]
struct Pattern {
    kind: Kind,
    text: Zeroizing<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The token, each byte in any form.
    Token,
    /// The token in hexadecimal.
    Hex,
    /// A part of a run of base64.
    Base64,
}

/// Shorter patterns of base64, and shorter tokens in hexadecimal, would match ordinary words.
const SHORTEST: usize = 4;

impl Spellings {
    pub(crate) fn new(token: &[u8]) -> Self {
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
            all.add(Kind::Token, text);
        }
        if token.len() >= SHORTEST {
            for text in &cases {
                all.add(Kind::Hex, &hexadecimal(text, *b"0123456789abcdef"));
                all.add(Kind::Hex, &hexadecimal(text, *b"0123456789ABCDEF"));
            }
        }
        for shift in 0..3 {
            let mut shifted = Zeroizing::new(Vec::with_capacity(shift + token.len()));
            shifted.resize(shift, 0);
            shifted.extend_from_slice(token);
            // The characters, of six bits each, that have no bit of another byte.
            let (first, last) = ((shift * 8).div_ceil(6), shifted.len() * 8 / 6);
            if last < first + SHORTEST {
                continue;
            }
            for alphabet in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let encoded = Zeroizing::new(alphabet.encode(&*shifted));
                all.add(Kind::Base64, &encoded.as_bytes()[first..last]);
            }
        }
        all.starts.resize(256, 0);
        for (index, pattern) in all.patterns.iter().enumerate() {
            let escapes: &[u8] = match pattern.kind {
                Kind::Token => ESCAPES,
                _ => &[],
            };
            for byte in escapes.iter().chain(&pattern.text[..1]) {
                all.starts[usize::from(*byte)] |= 1 << index;
            }
        }
        all
    }

    fn add(&mut self, kind: Kind, text: &[u8]) {
        let same = |pattern: &Pattern| pattern.kind == kind && **pattern.text == *text;
        if !self.patterns.iter().any(same) {
            let text = Zeroizing::new(text.to_vec());
            self.patterns.push(Pattern { kind, text });
        }
    }

    /// The matches in `text`, from left to right. Matches of one pattern never overlap: the search for it
    /// continues after each match. Overlapping matches of different patterns are merged into one.
    pub(crate) fn find(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        if self.patterns.is_empty() {
            return found;
        }
        // The end of the last match of each pattern.
        let mut from = [0; u16::BITS as usize];
        for (at, byte) in text.iter().enumerate() {
            let mut candidates = self.starts[usize::from(*byte)];
            while candidates != 0 {
                let index = candidates.trailing_zeros() as usize;
                candidates &= candidates - 1;
                if at < from[index] {
                    continue;
                }
                if let Some(range) = self.patterns[index].match_at(text, at, from[index]) {
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

impl Pattern {
    /// The match at `at`, if there is one. It does not begin before `from`.
    fn match_at(&self, text: &[u8], at: usize, from: usize) -> Option<Range<usize>> {
        let here = &text[at..];
        match self.kind {
            Kind::Token => token_length(here, &self.text).map(|length| at..at + length),
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

/// The first bytes of all [`forms`] other than the byte itself.
const ESCAPES: &[u8] = b"%\\&+";

/// The length of the token at the beginning of `text`, each byte in any form. If the token contains a character that
/// also begins an escape, such as `%`, several readings may match. The longest counts, so that no part of it stays.
fn token_length(text: &[u8], token: &[u8]) -> Option<usize> {
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
    // The ends of all readings of the token up to here, in ascending order.
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

/// Calls `report` with the length of each form of `byte` that `text` begins with:
///
/// - the byte itself, and `+` for a space;
/// - percent-encoded in upper or lower case (RFC 3986, section 2.1), up to three times (`%252541`);
/// - escaped with a backslash, as in strings of JSON, C, Python or Go and in file names that git quotes:
///   `\u0041` (ASCII only), `\x41`, `\101`, or a [letter](letter_escape), with up to four backslashes, for
///   strings in strings;
/// - as an HTML character reference of ASCII (`&#65;`, `&#x41;`, `&lt;`), up to twice (`&amp;lt;`).
fn forms(text: &[u8], byte: u8, mut report: impl FnMut(usize)) {
    let is_number = |at: usize, digits: usize, base: u32| {
        let digits = text.get(at..at + digits);
        digits.and_then(|digits| number(digits, base)) == Some(byte.into())
    };
    let Some(&first) = text.first() else {
        return;
    };
    if first == byte || (first == b'+' && byte == b' ') {
        report(1);
    }
    match first {
        b'%' => {
            for at in [1, 3, 5] {
                if is_number(at, 2, 16) {
                    report(at + 2);
                }
                if text.get(at..at + 2) != Some(b"25") {
                    break;
                }
            }
        }
        b'\\' => {
            for at in 1..=4 {
                let Some(&escape) = text.get(at) else {
                    break;
                };
                if letter_escape(escape) == Some(byte) {
                    report(at + 1);
                }
                match escape {
                    b'u' if byte.is_ascii() && is_number(at + 1, 4, 16) => report(at + 5),
                    b'x' if is_number(at + 1, 2, 16) => report(at + 3),
                    b'0'..=b'3' if is_number(at, 3, 8) => report(at + 3),
                    _ => {}
                }
                if escape != b'\\' {
                    break;
                }
            }
        }
        b'&' if byte.is_ascii() => {
            for at in [1, 5] {
                let Some(semicolon) = text[at..].iter().take(8).position(|b| *b == b';') else {
                    break;
                };
                if referenced(&text[at..at + semicolon]) == Some(byte.into()) {
                    report(at + semicolon + 1);
                }
                if !text[at..].starts_with(b"amp;") {
                    break;
                }
            }
        }
        _ => {}
    }
}

/// The character that is escaped by a backslash and this letter or sign.
fn letter_escape(letter: u8) -> Option<u8> {
    Some(match letter {
        b'"' | b'\'' | b'/' | b'\\' => letter,
        b'a' => 0x07,
        b'b' => 0x08,
        b't' => b'\t',
        b'n' => b'\n',
        b'v' => 0x0b,
        b'f' => 0x0c,
        b'r' => b'\r',
        _ => return None,
    })
}

/// The character that `&name;` stands for in HTML.
fn referenced(name: &[u8]) -> Option<u32> {
    Some(match name {
        b"lt" => b'<'.into(),
        b"gt" => b'>'.into(),
        b"amp" => b'&'.into(),
        b"quot" => b'"'.into(),
        b"apos" => b'\''.into(),
        [b'#', b'x' | b'X', digits @ ..] if (1..=4).contains(&digits.len()) => number(digits, 16)?,
        [b'#', digits @ ..] if (1..=4).contains(&digits.len()) => number(digits, 10)?,
        _ => return None,
    })
}

fn number(digits: &[u8], base: u32) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| {
        Some(value * base + char::from(*digit).to_digit(base)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::mask_token;
    use base64::engine::general_purpose::STANDARD;

    const TOKEN: &str = "s3cr3t/töken+with spaces&\tmore";

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
            TOKEN.replace('\t', "\\t"),
            TOKEN.replace('\t', "\\\\t"),
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
    fn a_token_in_upper_or_lower_case_is_masked() {
        let capitals = TOKEN.to_ascii_uppercase();
        let percent =
            percent_encoding::utf8_percent_encode(&capitals, percent_encoding::NON_ALPHANUMERIC);
        for spelling in [&capitals, &TOKEN.to_ascii_lowercase(), &percent.to_string()] {
            let masked = mask_token(&format!("unknown instruction: {spelling}!"), TOKEN);
            assert_eq!(masked, "unknown instruction: ***!", "{spelling}");
        }
    }

    #[test]
    fn a_token_of_escape_characters_is_masked() {
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
    fn each_escape_of_a_character_is_masked() {
        for (character, escape) in [
            ('\x07', "\\a"),
            ('\x08', "\\b"),
            ('\t', "\\t"),
            ('\n', "\\n"),
            ('\x0b', "\\v"),
            ('\x0c', "\\f"),
            ('\r', "\\r"),
            ('"', "\\\""),
            ('\'', "\\'"),
            ('/', "\\/"),
            ('\\', "\\\\"),
            ('<', "&lt;"),
            ('>', "&gt;"),
            ('&', "&amp;"),
            ('"', "&quot;"),
            ('\'', "&apos;"),
        ] {
            let masked = mask_token(&format!("to{escape}ken"), &format!("to{character}ken"));
            assert_eq!(masked, "***", "{escape}");
        }
    }

    #[test]
    fn an_escape_of_another_character_is_not_masked() {
        for (character, escape) in [
            ('/', "+"),
            ('/', "\\u0041"),
            ('/', "\\x41"),
            ('/', "\\101"),
            ('/', "\\t"),
            ('/', "%41"),
            ('/', "&#65;"),
            ('/', "&lt;"),
            // These two are Ã and ©; the bytes of é have the same numbers.
            ('é', "\\u00c3\\u00a9"),
            ('é', "&#xc3;&#xa9;"),
        ] {
            let text = format!("to{escape}ken");
            assert_eq!(mask_token(&text, &format!("to{character}ken")), text);
        }
    }

    #[test]
    fn each_token_has_its_own_mask_unless_they_overlap() {
        for (text, masked) in [("1a11A1", "******"), ("1a1A1", "***"), ("1A1a1A1", "***")] {
            assert_eq!(mask_token(text, "1a1"), masked);
        }
    }

    #[test]
    fn non_ascii_text_around_a_token_stays() {
        assert_eq!(mask_token("ä=tok;ö=tok", "tok"), "ä=***;ö=***");
    }
}
