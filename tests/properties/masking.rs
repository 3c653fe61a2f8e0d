//! No spelling of the token survives, whatever stands around it and in whatever pieces it comes; and
//! what is no token stays as it is.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use mol::fuzzing::log_lines;
use mol::mask::{MASK, mask_token};

/// How a token may be written. The numbers choose among the ways of a kind.
#[derive(Clone, Copy, Debug)]
pub enum Spelling {
    /// Byte by byte as it is, or percent-encoded where the bit of its place is set; a second bit
    /// decides on the case of the digits.
    Percent { encoded: u64, lower: u64 },
    /// In base64 of `user:token`, in one of four flavours, with this many letters of a user.
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

/// A token that can be told from what stands in its place, and that some server could give: shorter
/// ones are refused as an option, or are part of other words by chance.
pub fn is_token(token: &str) -> bool {
    let graphic = |c: char| c.is_ascii_graphic() || !c.is_ascii();
    (8..200).contains(&token.len()) && !token.contains('*') && token.chars().all(graphic)
}

/// Can the token be read out of a text, in any of the ways in which it is written?
pub fn reveals(text: &str, token: &str) -> bool {
    holds(text, token.as_bytes())
}

fn holds(text: &str, token: &[u8]) -> bool {
    let has = |text: &[u8]| text.windows(token.len()).any(|part| part == token);
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(text).collect();
    let alphabets: [fn(char) -> bool; 2] = [
        |c| c.is_ascii_alphanumeric() || c == '+' || c == '/',
        |c| c.is_ascii_alphanumeric() || c == '-' || c == '_',
    ];
    has(text.as_bytes())
        || has(&decoded)
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

/// The token between any two texts.
pub fn no_spelling_survives(before: &str, token: &str, spelling: Spelling, after: &str) {
    let text = format!("{before}{}{after}", spelling.of(token));
    let masked = mask_token(&text, token);
    assert!(
        !reveals(&masked, token),
        "{token:?} in {text:?}: {masked:?}"
    );

    // What is left is the text, with parts taken out; unless it has stars of its own.
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

/// The token on a line of its own: the other lines stay as they were without it.
pub fn the_rest_stays(before: &str, token: &str, spelling: Spelling, after: &str) {
    let alone = |text: &str| mask_token(text, token);
    let text = format!("{before}\n{}\n{after}", spelling.of(token));
    let wanted = format!("{}\n{MASK}\n{}", alone(before), alone(after));
    assert_eq!(mask_token(&text, token), wanted, "{token:?} in {text:?}");
}

/// A text with neither an address in it nor as much as four bytes of the token, in small letters or
/// capitals or as it is.
pub fn what_holds_no_secret_stays(text: &str, token: &str) {
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

/// A build's output that comes in pieces: the lines are the same however it is cut, and none has the
/// token.
pub fn pieces_do_not_matter(output: &[u8], cuts: &[usize], token: &str) {
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
