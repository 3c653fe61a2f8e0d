//! No spelling of the token survives masking, whatever text surrounds it and however it is chunked. Text
//! without the token does not change.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use mol::redact::{MASK, mask_token};
use mol::testing::internals::{log_lines, shown_line};

/// A spelling of a token. The numbers select a variant.
#[derive(Clone, Copy, Debug)]
pub enum Spelling {
    /// Each byte is plain, or percent-encoded if its bit in `encoded` is set. Its bit in `lower` selects
    /// lower case digits.
    Percent { encoded: u64, lower: u64 },
    /// Each byte in a different form, selected by four bits of the number.
    Mixed { forms: u64 },
    /// In hexadecimal.
    Hex { upper: bool },
    /// Base64 of `user:token`, in one of four flavours, with this many letters of a user name before and of
    /// other text after the token.
    Base64 { flavour: u8, user: u8, after: u8 },
}

impl Spelling {
    pub fn of(self, token: &str) -> String {
        let bit = |bits: u64, place: usize| bits >> (place % 64) & 1 == 1;
        match self {
            Spelling::Percent { encoded, lower } => {
                let mut spelled = Vec::new();
                for (place, byte) in token.bytes().enumerate() {
                    if !bit(encoded, place) && byte.is_ascii() {
                        spelled.push(byte);
                    } else if bit(lower, place) {
                        spelled.extend(format!("%{byte:02x}").bytes());
                    } else {
                        spelled.extend(format!("%{byte:02X}").bytes());
                    }
                }
                String::from_utf8(spelled).unwrap()
            }
            Spelling::Mixed { forms } => {
                let bits = |place: usize| forms.rotate_right(4 * (place % 16) as u32) & 15;
                let mut spelled = Vec::new();
                for (place, byte) in token.bytes().enumerate() {
                    spelled.extend(form(bits(place), byte));
                }
                String::from_utf8(spelled).unwrap()
            }
            Spelling::Hex { upper } => {
                let digits: String = token.bytes().map(|byte| format!("{byte:02x}")).collect();
                if upper { digits.to_uppercase() } else { digits }
            }
            Spelling::Base64 {
                flavour,
                user,
                after,
            } => {
                let user = &"x-access-token"[..usize::from(user % 15)];
                let after = &" and more"[..usize::from(after % 10)];
                let plain = format!("{user}:{token}{after}");
                match flavour % 4 {
                    0 => STANDARD.encode(plain),
                    1 => STANDARD_NO_PAD.encode(plain),
                    2 => URL_SAFE.encode(plain),
                    _ => URL_SAFE_NO_PAD.encode(plain),
                }
            }
        }
    }
}

/// A byte in one of the forms that must be masked. Bytes outside ASCII have fewer forms.
fn form(which: u64, byte: u8) -> Vec<u8> {
    let plain = char::from(byte);
    let text = match (which, plain) {
        (0 | 1, _) if byte.is_ascii() => return vec![byte],
        (3, _) => format!("%25{byte:02X}"),
        (4, _) => format!("%2525{byte:02x}"),
        (5, _) => format!("\\x{byte:02x}"),
        (6, _) => format!("\\\\x{byte:02X}"),
        (7, _) => format!("\\{byte:03o}"),
        (8, _) if byte.is_ascii() => format!("\\u{byte:04x}"),
        (9, _) if byte.is_ascii() => format!("\\\\\\u{byte:04X}"),
        (10, _) if byte.is_ascii() => format!("&#{byte};"),
        (11, _) if byte.is_ascii() => format!("&#x{byte:04x};"),
        (12, _) if byte.is_ascii() => format!("&amp;#X{byte:X};"),
        (13..=15, '<') => "&lt;".to_owned(),
        (13..=15, '>') => "&gt;".to_owned(),
        (13..=15, '"') => "&quot;".to_owned(),
        (13..=15, '&') => "&amp;amp;".to_owned(),
        (13, '/' | '\\' | '\'') => format!("\\{plain}"),
        _ => format!("%{byte:02x}"),
    };
    text.into_bytes()
}

/// Whether this could be a real token that differs from its mask. Shorter tokens are refused as an option,
/// or occur in other words by accident.
pub fn is_token(token: &str) -> bool {
    let graphic = |c: char| c.is_ascii_graphic() || !c.is_ascii();
    (8..200).contains(&token.len()) && !token.contains('*') && token.chars().all(graphic)
}

/// Whether the token can be decoded from a text, in any of its spellings.
pub fn reveals(text: &str, token: &str) -> bool {
    holds(text, token.as_bytes())
}

fn holds(text: &str, token: &[u8]) -> bool {
    let has = |text: &[u8]| text.windows(token.len()).any(|part| part == token);
    let mut decoded = text.as_bytes().to_vec();
    let mut found = false;
    for _ in 0..4 {
        decoded = unescaped(&decoded);
        found |= has(&decoded);
    }
    let alphabets: [fn(char) -> bool; 2] = [
        |c| c.is_ascii_alphanumeric() || c == '+' || c == '/',
        |c| c.is_ascii_alphanumeric() || c == '-' || c == '_',
    ];
    has(text.as_bytes())
        || found
        || text
            .split(|c: char| !c.is_ascii_hexdigit())
            .any(|run| (0..2.min(run.len())).any(|start| has(&unhexed(&run.as_bytes()[start..]))))
        || alphabets.iter().any(|alphabet| {
            text.split(|c| !alphabet(c)).any(|run| {
                let run = run.replace('-', "+").replace('_', "/");
                (0..4.min(run.len())).any(|start| {
                    let whole = (run.len() - start) / 4 * 4;
                    let part = &run[start..];
                    has(&STANDARD_NO_PAD.decode(&part[..whole]).unwrap_or_default())
                        || has(&STANDARD_NO_PAD.decode(part).unwrap_or_default())
                })
            })
        })
}

/// The text with one level of escapes decoded.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let number = |from: usize, digits: usize, base: u32| {
            let digits = str::from_utf8(text.get(from..from + digits)?).ok()?;
            u8::try_from(u32::from_str_radix(digits, base).ok()?).ok()
        };
        let reference = || {
            let end = text[at..].iter().take(9).position(|byte| *byte == b';')?;
            let name = str::from_utf8(&text[at + 1..at + end]).ok()?;
            let byte = match (name, name.strip_prefix('#')) {
                ("lt", _) => b'<',
                ("gt", _) => b'>',
                ("amp", _) => b'&',
                ("quot", _) => b'"',
                ("apos", _) => b'\'',
                (_, Some(number)) => match number.strip_prefix(['x', 'X']) {
                    Some(digits) => u8::from_str_radix(digits, 16).ok()?,
                    None => number.parse().ok()?,
                },
                _ => return None,
            };
            Some((byte, end + 1))
        };
        let escape = match text[at..] {
            [b'%', ..] => number(at + 1, 2, 16).map(|byte| (byte, 3)),
            [b'\\', b'u', ..] => number(at + 2, 4, 16).map(|byte| (byte, 6)),
            [b'\\', b'x', ..] => number(at + 2, 2, 16).map(|byte| (byte, 4)),
            [b'\\', b'0'..=b'3', ..] => number(at + 1, 3, 8).map(|byte| (byte, 4)),
            [b'\\', escaped, ..] if b"\"'/\\".contains(&escaped) => Some((escaped, 2)),
            [b'&', ..] => reference(),
            _ => None,
        };
        let (byte, length) = escape.unwrap_or((text[at], 1));
        plain.push(byte);
        at += length;
    }
    plain
}

fn unhexed(digits: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
    let pairs = digits.chunks_exact(2);
    pairs
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

/// The token between two arbitrary texts.
pub fn no_spelling_survives(before: &str, token: &str, spelling: Spelling, after: &str) {
    let text = format!("{before}{}{after}", spelling.of(token));
    let masked = mask_token(&text, token);
    assert!(
        !reveals(&masked, token),
        "{token:?} in {text:?}: {masked:?}"
    );

    // The masked text is the original with parts removed. Not checked if the original contains stars.
    if text.contains('*') {
        return;
    }
    let mut rest = text.as_str();
    let mut parts = masked.split(MASK);
    let first = parts.next().unwrap();
    assert!(rest.starts_with(first), "{text:?}: {masked:?}");
    rest = &rest[first.len()..];
    for part in parts {
        let found = rest.find(part);
        let found = found.unwrap_or_else(|| panic!("{part:?} is new in {text:?}: {masked:?}"));
        rest = &rest[found + part.len()..];
    }
}

/// The token on a separate line: the other lines are the same as without it.
pub fn other_lines_stay(before: &str, token: &str, spelling: Spelling, after: &str) {
    let alone = |text: &str| mask_token(text, token);
    let text = format!("{before}\n{}\n{after}", spelling.of(token));
    let expected = format!("{}\n{MASK}\n{}", alone(before), alone(after));
    assert_eq!(mask_token(&text, token), expected, "{token:?} in {text:?}");
}

/// A text with no URL and without four consecutive bytes of the token, in any case, does not change.
pub fn text_without_secret_stays(text: &str, token: &str) {
    let cases = [
        token.to_owned(),
        token.to_ascii_uppercase(),
        token.to_ascii_lowercase(),
    ];
    let may_hold = cases
        .iter()
        .any(|token| token.as_bytes().windows(4).any(|part| holds(text, part)));
    if !text.contains("://") && !may_hold {
        assert_eq!(mask_token(text, token), text, "{token:?}");
    }
}

/// Any text, with a token in the middle, is shown as one printable line. The token cannot be decoded from
/// it, and showing it again does not change it.
pub fn is_shown_as_one_printable_line(text: &str, token: &str) {
    let once = shown_line(text, token);
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    assert!(!once.contains(harmful), "{text:?}: {once:?}");
    assert!(!reveals(&once, token), "{token:?} in {text:?}: {once:?}");
    assert_eq!(shown_line(&once, token), once, "{text:?}");
}

/// The lines of a build's output are the same however it is chunked, and none contains the token.
pub fn chunking_does_not_matter(output: &[u8], cuts: &[usize], token: &str) {
    let whole = log_lines(&[output], token);
    for line in &whole {
        assert!(!reveals(line, token), "{token:?}: {line:?}");
    }
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (output.len() + 1)).collect();
    cuts.extend([0, output.len()]);
    cuts.sort_unstable();
    let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &output[cut[0]..cut[1]]).collect();
    assert_eq!(log_lines(&pieces, token), whole, "{pieces:?}");
}
