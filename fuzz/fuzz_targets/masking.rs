//! A byte that selects the spelling, then text, a token and more text, separated by NUL bytes. No spelling of the token
//! may remain after masking.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use properties::masking::{self, Spelling};

#[path = "../../tests/properties/mod.rs"]
#[allow(dead_code)]
mod properties;

fuzz_target!(|data: &[u8]| -> Corpus {
    let (Some(&kind), Some(rest)) = (data.first(), data.get(1..)) else {
        return Corpus::Reject;
    };
    let mut parts = rest.splitn(3, |byte| *byte == 0).map(str::from_utf8);
    let (Some(Ok(before)), Some(Ok(token)), Some(Ok(after))) =
        (parts.next(), parts.next(), parts.next())
    else {
        return Corpus::Reject;
    };
    if !masking::is_token(token) {
        return Corpus::Reject;
    }
    let spelling = match kind % 5 {
        0 => Spelling::Percent {
            encoded: 0,
            lower: 0,
        },
        1 => Spelling::Percent {
            encoded: u64::from(kind) * 0x0101_0101_0101_0101,
            lower: !0 << kind % 64,
        },
        2 => Spelling::Mixed {
            forms: u64::from(kind / 5) * 0x0123_4567_89ab_cdef,
        },
        3 => Spelling::Hex {
            upper: kind % 2 == 0,
        },
        _ => Spelling::Base64 {
            flavour: kind,
            user: kind / 4,
            after: kind / 16,
        },
    };
    masking::no_spelling_survives(before, token, spelling, after);
    masking::other_lines_stay(before, token, spelling, after);
    masking::text_without_secret_stays(before, token);
    if token.is_ascii() {
        let text = format!("{before}{}{after}", spelling.of(token));
        masking::chunking_does_not_matter(
            text.as_bytes(),
            &[usize::from(kind), before.len() + 3],
            token,
        );
        masking::is_shown_as_one_printable_line(&text, token);
    }
    Corpus::Keep
});
