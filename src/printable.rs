//! Makes text from outside printable: one line without control characters.
//!
//! Text from a server reaches terminals and log files. A control character in it could move the cursor,
//! change the window's title, start a new line, or hide the text before it. An invisible character could
//! split a token so that it is not recognised. So they are removed before the token is masked
//! ([`crate::redact`]), and nothing is removed afterwards.
//!
//! Readable text is never removed: of an unterminated sequence, only the introducer is.
//!
//! Libraries looked at: strip-ansi-escapes 0.2 and anstream 0.6 take all text after an unterminated OSC for a part of
//! it, and keep invisible characters and those that change the direction of text.

use std::borrow::Cow;

/// The text as one line:
///
/// - a line break or a tab becomes a space;
/// - escape sequences (ECMA-48, xterm's OSC) are removed whole, also in their 8-bit form;
/// - all other control characters are removed, and so are the characters that change the direction of
///   text, tag characters, and the byte order mark (U+FEFF);
/// - invisible characters (Unicode's default ignorable code points) are kept only after a non-ASCII
///   character, where scripts and emoji need them.
///
/// A second pass changes nothing.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    let Some(first) = text.bytes().position(|byte| !is_plain(byte)) else {
        return Cow::Borrowed(text);
    };
    let (plain, mut rest) = text.split_at(first);
    let mut shown = String::with_capacity(text.len());
    shown.push_str(plain);
    let mut after_non_ascii = false;
    while let Some(next) = rest.chars().next() {
        let mut length = next.len_utf8();
        let kept = match next {
            ' '..='~' => Some(next),
            '\t' | '\n' | '\x0b' | '\x0c' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}' => Some(' '),
            '\0'..='\u{9f}' => {
                length = sequence(rest).max(length);
                None
            }
            _ if is_deceptive(next) || (is_invisible(next) && !after_non_ascii) => None,
            _ => Some(next),
        };
        if let Some(kept) = kept {
            after_non_ascii = !kept.is_ascii();
            shown.push(kept);
        }
        rest = &rest[length..];
    }
    Cow::Owned(shown)
}

/// The text in quotation marks, made printable first: an escape such as `\u{7f}` in the middle of a token
/// would keep it from being recognised.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", line(text))
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

/// The length in bytes of the escape sequence at the beginning of `text`, or only of its introducer if the
/// sequence is malformed or unterminated. 0 if there is none.
fn sequence(text: &str) -> usize {
    let bytes = text.as_bytes();
    let at = |index: usize| bytes.get(index).copied().unwrap_or_default();
    // U+0080 to U+009F are the 8-bit forms of `ESC @` to `ESC _` (ECMA-48, section 5.3). In UTF-8 they
    // have two bytes, too.
    let kind = match (at(0), at(1)) {
        (0x1b, kind) => kind,
        (0xc2, second @ 0x80..=0x9f) => second - 0x40,
        _ => return 0,
    };
    match kind {
        b'[' => control_sequence(bytes),
        b'P' | b'X' | b']' | b'^' | b'_' => control_string(text),
        // Type nF, such as the choice of a character set (ECMA-35).
        b'#' | b'%' | b'('..=b'/' if matches!(at(2), b'0'..=b'~') => 3,
        b'0'..=b'9' | b'<'..=b'>' | b'@'..=b'~' => 2,
        _ => 1,
    }
}

/// The length of `CSI … final` (ECMA-48, section 5.4). The limits are higher than any sequence in use
/// needs. They keep a malformed sequence from removing the text that follows it.
fn control_sequence(bytes: &[u8]) -> usize {
    const PARAMETERS: usize = 64;
    const INTRODUCER: usize = 2;
    let rest = &bytes[INTRODUCER..];
    let parameters = rest
        .iter()
        .take(PARAMETERS)
        .take_while(|byte| matches!(byte, b'0'..=b'?'))
        .count();
    match rest[parameters..] {
        [b'@'..=b'~', ..] => INTRODUCER + parameters + 1,
        [b'!'..=b'/', b'@'..=b'~', ..] | [b' ', b'q', ..] => INTRODUCER + parameters + 2,
        _ => INTRODUCER,
    }
}

/// The length of `OSC … BEL`, or of any control string that ends with `ESC \` (ECMA-48, section 5.6; xterm).
/// It has no control character inside.
fn control_string(text: &str) -> usize {
    const INTRODUCER: usize = 2;
    let inside = &text[INTRODUCER..];
    let Some(end) = inside.find(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
    else {
        return INTRODUCER;
    };
    let terminator = match &inside.as_bytes()[end..] {
        [0x07, ..] => 1,
        [0x1b, b'\\', ..] | [0xc2, 0x9c, ..] => 2,
        _ => return INTRODUCER,
    };
    INTRODUCER + end + terminator
}

/// Characters that only change how other text looks: direction marks (UAX 9) and the deprecated format
/// characters beside them, annotations, tags, the byte order mark.
fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `Default_Ignorable_Code_Point` of Unicode 16, except those that [`is_deceptive`] has.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0080}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::RangeInclusive;

    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    #[test]
    fn printable_text_of_any_script_stays() {
        for text in [
            "",
            "main is at 0123456789ab",
            "größe 日本語 العربية עברית ไทย\u{200b}ไทย",
            "می\u{200c}خواهم 👩\u{200d}💻 ❤\u{fe0f} \u{fffd}",
            "[31m ]0;x 100 % \\e[0m",
        ] {
            assert_eq!(line(text), text);
        }
        assert!(matches!(line("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_quoted_text_is_printable_first() {
        assert_eq!(quoted("feature\u{7f}/\"x\"\n"), r#""feature/\"x\" ""#);
    }

    #[test]
    fn line_breaks_and_tabs_become_a_space() {
        assert_eq!(
            line("a\nb\rc\r\nd\te\x0bf\x0cg\u{85}h\u{2028}i\u{2029}j"),
            "a b c  d e f g h i j"
        );
    }

    #[test]
    fn escape_sequences_are_removed_whole() {
        for sequence in [
            "\x1b[31m",
            "\x1b[38;5;196;1m",
            "\x1b[?25l",
            "\x1b[2 q",
            "\x1b[!p",
            "\x1b[H\x1b[2J",
            "\x1b]0;title\x07",
            "\x1b]8;;https://host/ü\x1b\\",
            "\x1bPq#0;2\x1b\\",
            "\x1b_payload\x1b\\",
            "\x1b^payload\u{9c}",
            "\x1bXpayload\x1b\\",
            "\x1b(B",
            "\x1b%G",
            "\x1bc",
            "\x1b7",
            "\x1b=",
            "\x1bM",
            "\u{9b}31m",
            "\u{9d}0;title\u{9c}",
            "\u{9d}0;title\x07",
            "\u{90}q\u{9c}",
            "\u{8d}",
        ] {
            assert_eq!(line(&format!("to{sequence}ken")), "token", "{sequence:?}");
        }
    }

    #[test]
    fn control_and_invisible_characters_are_removed() {
        let controls = (0..=0x1f).chain(0x7f..=0x9f);
        let others = [
            0xad, 0x34f, 0x61c, 0x115f, 0x180e, 0x200b, 0x200c, 0x200d, 0x200e, 0x200f, 0x202a,
            0x202b, 0x202c, 0x202d, 0x202e, 0x2060, 0x2064, 0x2066, 0x2067, 0x2068, 0x2069, 0x206f,
            0x3164, 0xfe0f, 0xfeff, 0xfff9, 0xe0001, 0xe0041, 0xe007f, 0xe0100,
        ];
        for code in controls.chain(others) {
            let c = char::from_u32(code).unwrap();
            let shown = line(&format!("to{c}~ken")).replace("to ~", "to~");
            // `~` terminates the sequence that ESC or CSI begins.
            let wanted = match c {
                '\x1b' | '\u{9b}' => "token",
                _ => "to~ken",
            };
            assert_eq!(shown, wanted, "{c:?}");
        }
    }

    /// The vectors list ranges of characters by what becomes of them. The tests of the command mol read the same file.
    #[test]
    fn each_character_is_shown_as_in_the_vectors() {
        let mut found = BTreeMap::<&str, Vec<[u32; 2]>>::new();
        for c in '\0'..=char::MAX {
            let shown = |before: &str| line(&format!("{before}{c}"))[before.len()..].to_owned();
            let becomes = match (shown("a").as_str(), shown("é").as_str()) {
                (" ", " ") => "a space",
                ("", "") => "nothing",
                ("", kept) if kept.chars().eq([c]) => "nothing after ASCII",
                (kept, also) => {
                    assert!(kept.chars().eq([c]) && kept == also, "{c:?}");
                    continue;
                }
            };
            let ranges = found.entry(becomes).or_default();
            let c = u32::from(c);
            match ranges.last_mut() {
                Some([_, last]) if *last + 1 == c => *last = c,
                _ => ranges.push([c, c]),
            }
        }
        let vectors = include_str!("../tests/vectors/printable.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        assert_eq!(serde_json::json!(found), vectors);
    }

    #[test]
    fn an_unterminated_sequence_hides_no_text() {
        for begun in [
            "\x1b",
            "\x1b[",
            "\x1b[31",
            "\x1b]",
            "\x1b]0;x",
            "\x1bP",
            "\x1b_",
            "\u{9b}",
            "\u{9d}",
            "\u{90}",
            "\x1b]0;x\n",
            "\x1b]\x1b]",
            "\x1b[\x1b[",
            "\x1b[?",
        ] {
            for own in [
                " at https://host/a (commit 0123456789ab)",
                ": again",
                "; see git",
            ] {
                let shown = line(&format!("{begun}{own}")).into_owned();
                assert!(shown.ends_with(own), "{begun:?}: {shown:?}");
            }
        }
    }

    #[test]
    fn many_unterminated_sequences_are_fast() {
        for begun in [
            "\x1b[",
            "\x1b]",
            "\u{9d}",
            "\u{9b}1",
            "\x1b",
            "\x1b]\u{ad}",
            "\u{9d}é",
        ] {
            let begin = std::time::Instant::now();
            line(&begun.repeat(1 << 16));
            assert!(begin.elapsed().as_secs() < 5, "{begun:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_line_and_a_second_pass_changes_nothing(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::char::ranges(Cow::Borrowed(UNUSUAL)).prop_map(String::from),
                    any::<char>().prop_map(String::from),
                    select(vec!["\x1b[", "\x1b]"]).prop_map(str::to_owned),
                ],
                0..41,
            )
        ) {
            let once = line(&parts.concat()).into_owned();
            prop_assert!(!once.chars().any(|c| c.is_control() || is_deceptive(c)), "{:?}", once);
            prop_assert_eq!(&line(&once), &once);
        }
    }

    /// Control and invisible characters, and what escape sequences are made of.
    const UNUSUAL: &[RangeInclusive<char>] = &[
        '\0'..=' ',
        '\u{7f}'..='\u{9f}',
        '['..=']',
        '0'..=';',
        'm'..='m',
        'é'..='é',
        '\u{ad}'..='\u{ad}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2066}'..='\u{2066}',
        '\u{feff}'..='\u{feff}',
        '\u{e0041}'..='\u{e0041}',
        '~'..='~',
    ];
}
