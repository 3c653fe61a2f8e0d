//! The packet with which git refuses a request.

use gix_transport::packetline::ErrorRef;
use gix_transport::packetline::decode::{Stream, streaming};

/// The reason in a packet with which git refuses a request (gitprotocol-common(5), "pkt-line Format":
/// `error-line`).
pub(super) struct Refusal<'a>(pub(super) &'a [u8]);

/// The size of the length that a packet begins with: four hexadecimal digits.
const LENGTH: usize = 4;
const MARK: &[u8] = b"ERR ";

impl<'a> Refusal<'a> {
    /// Whether the text may be the beginning of a refusal that is not complete yet. A packet has at most 64 KiB.
    pub(super) fn may_begin(text: &[u8]) -> bool {
        let mark = text.get(LENGTH..).unwrap_or_default();
        let matches = mark.starts_with(MARK) || MARK.starts_with(mark);
        matches && matches!(streaming(text), Ok(Stream::Incomplete { .. }))
    }

    pub(super) fn read(text: &'a [u8]) -> Option<Self> {
        let Ok(Stream::Complete { line, .. }) = streaming(text) else {
            return None;
        };
        line.check_error().map(|ErrorRef(reason)| Self(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_recognized_by_its_packet() {
        for (answer, reason) in [
            ("0010ERR not here", Some("not here")),
            ("000dERR gone\nx", Some("gone\n")),
            ("0008ERR ", Some("")),
            ("0008NAK\n", None),
            ("0000", None),
            ("000cERR whole", Some("whol")),
            ("0010ERR cut", None),
            ("zzzzERR odd", None),
            ("+00fERR odd", None),
            ("ERR bare", None),
            ("0003ERR x", None),
            ("", None),
        ] {
            let read = Refusal::read(answer.as_bytes());
            let read = read.map(|Refusal(reason)| str::from_utf8(reason).unwrap());
            assert_eq!(read, reason, "{answer}");
        }
    }

    #[test]
    fn only_an_incomplete_refusal_is_waited_for() {
        for (answer, waits) in [
            ("", true),
            ("00", true),
            ("0010", true),
            ("0010E", true),
            ("0010ERR ", true),
            ("0010ERR not her", true),
            ("0010ERR not here", false),
            ("0010EN", false),
            ("0008NAK\n", false),
            ("0000", false),
            ("0001000D", false),
            ("PACK", false),
            ("zz", true),
            ("zzzzERR odd", false),
            ("+fffERR odd", false),
        ] {
            assert_eq!(Refusal::may_begin(answer.as_bytes()), waits, "{answer}");
        }
    }
}
