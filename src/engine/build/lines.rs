//! Splits a build's output into lines.

use crate::printable;
use crate::redact::{MAX_KEPT, whole_words};

/// The most bytes of a raw line: a build may print megabytes without a line break. Twice what is kept of it,
/// because its escape sequences are not kept.
const MAX_RAW: usize = 2 * MAX_KEPT;

/// Splits chunks of output into printable lines of a bounded length.
#[derive(Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    cut: bool,
}

impl Lines {
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn push(&mut self, output: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        self.each(output, |line| lines.push(line));
        lines
    }

    /// Adds a chunk, and passes each complete line to `take`. One by one, because millions of short lines take
    /// more memory than the output.
    pub(crate) fn each(&mut self, output: &[u8], mut take: impl FnMut(String)) {
        for piece in output.split_inclusive(|byte| *byte == b'\n') {
            self.keep(piece);
            if piece.ends_with(b"\n") {
                let line = self.finish();
                if !line.is_empty() {
                    take(line);
                }
            }
        }
    }

    /// The size of the unfinished line in bytes.
    pub(crate) fn unfinished(&self) -> usize {
        self.partial.len()
    }

    /// The unfinished line, at the end of the output.
    pub(crate) fn rest(&mut self) -> Option<String> {
        let line = self.finish();
        (!line.is_empty()).then_some(line)
    }

    fn keep(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() && !self.cut {
            if self.partial.len() == MAX_RAW {
                // Of a line that is redrawn, only the last state counts.
                match self.partial.iter().rposition(|byte| *byte == b'\r') {
                    Some(last @ 1..) => drop(self.partial.drain(..last)),
                    _ => self.cut = true,
                }
                continue;
            }
            let room = MAX_RAW - self.partial.len();
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.partial.extend_from_slice(now);
            piece = later;
        }
    }

    fn finish(&mut self) -> String {
        let (line, cut) = (
            std::mem::take(&mut self.partial),
            std::mem::take(&mut self.cut),
        );
        let mut shown = last_state(&String::from_utf8_lossy(&line));
        if shown.len() > MAX_KEPT {
            shown.truncate(shown.floor_char_boundary(MAX_KEPT));
        } else if cut {
            // The cut may have left a fragment of a token, which masking would not recognise.
            shown.truncate(whole_words(&shown).len());
        }
        shown
    }
}

/// What a terminal finally shows of a line: the text after the last carriage return. If that is blank, the line
/// was erased, and the text before it is shown.
fn last_state(line: &str) -> String {
    let states = line.rsplit('\r').map(printable::line);
    let shown = states
        .map(|state| state.trim_end().to_owned())
        .find(|state| !state.is_empty());
    shown.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_across_chunks() {
        let mut lines = Lines::default();
        assert!(lines.push(b"one").is_empty());
        assert_eq!(lines.push(b" two\nthree\n\nfo"), ["one two", "three"]);
        assert_eq!(lines.rest().as_deref(), Some("fo"));
        assert_eq!(lines.rest(), None);
    }

    #[test]
    fn a_line_is_shown_as_a_terminal_shows_it() {
        let mut lines = Lines::default();
        assert_eq!(
            lines.push(b"\x1b[31mred\x1b[0m\n 10%\r 100%\nbad \xff byte\n"),
            ["red", " 100%", "bad \u{fffd} byte"]
        );
    }

    #[test]
    fn an_erased_line_shows_its_last_text() {
        let mut lines = Lines::default();
        assert_eq!(
            lines.push(b"error: no\r   \r\x1b[K\r\n 1%\r 2%\r\r\n\r\x1b[2K\r\n"),
            ["error: no", " 2%"]
        );
    }

    #[test]
    fn a_huge_line_is_cut_and_uses_little_memory() {
        let mut lines = Lines::default();
        for _ in 0..5000 {
            lines.push(&[b'x'; 1024]);
        }
        assert!(lines.partial.capacity() <= 2 * MAX_RAW);
        assert_eq!(lines.push(b"\n")[0].len(), MAX_KEPT);
    }

    #[test]
    fn a_huge_progress_bar_shows_its_last_state() {
        let mut lines = Lines::default();
        for done in 0..100_000 {
            lines.push(format!("\r\x1b[32m{done:>6} of 100000\x1b[0m").as_bytes());
        }
        assert!(lines.partial.capacity() <= 2 * MAX_RAW);
        assert_eq!(lines.push(b"\n"), [" 99999 of 100000"]);
    }

    #[test]
    fn a_cut_line_with_many_escapes_ends_with_a_whole_word() {
        let mut lines = Lines::default();
        lines.push("\x1b[0;31;42m".repeat(MAX_RAW / 10 - 1).as_bytes());
        assert_eq!(lines.push(b"a token s3cr3t-t0ken\n"), ["a token"]);
    }
}
