//! The packet with which git refuses a request.

/// The reason in a packet with which git refuses a request (gitprotocol-common(5), "pkt-line Format":
/// `error-line`).
pub(super) struct Refusal<'a>(pub(super) &'a [u8]);

impl<'a> Refusal<'a> {
    /// The size of the length at the beginning of a packet: four hexadecimal digits.
    const LENGTH: usize = 4;
    const MARK: &'static [u8] = b"ERR ";

    /// The length of the packet that the text begins with, those digits included.
    fn length(text: &[u8]) -> Option<usize> {
        let digits = text.get(..Self::LENGTH)?;
        let digits = str::from_utf8(digits).ok().filter(|_| is_hex(digits))?;
        usize::from_str_radix(digits, 16).ok()
    }

    /// Whether the text may be the beginning of a refusal that is not complete yet. A packet has at most 64 KiB.
    pub(super) fn may_begin(text: &[u8]) -> bool {
        let Some((digits, mark)) = text.split_at_checked(Self::LENGTH) else {
            return is_hex(text);
        };
        let matches = mark.starts_with(Self::MARK) || Self::MARK.starts_with(mark);
        matches && Self::length(digits).is_some_and(|length| text.len() < length)
    }

    pub(super) fn read(text: &'a [u8]) -> Option<Self> {
        let packet = text.get(Self::LENGTH..Self::length(text)?)?;
        packet.strip_prefix(Self::MARK).map(Self)
    }
}

fn is_hex(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_hexdigit)
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
            ("zz", false),
            ("zzzzERR odd", false),
            ("+fffERR odd", false),
        ] {
            assert_eq!(Refusal::may_begin(answer.as_bytes()), waits, "{answer}");
        }
    }
}
