//! A build's output, line by line.

use crate::mask::{MARGIN, MAX_LINE};

/// A longer line is cut: a build may print megabytes without a line break.
const MAX_KEPT: usize = MAX_LINE + MARGIN;

/// Cuts output into lines, whatever the pieces in which it comes: without escape sequences, and of a
/// bounded length.
#[derive(Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    pub(crate) fn push(&mut self, output: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in output.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_KEPT.saturating_sub(self.partial.len());
            self.partial
                .extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                lines.push(finish_line(&std::mem::take(&mut self.partial)));
            }
        }
        lines.retain(|line| !line.is_empty());
        lines
    }

    pub(crate) fn rest(&mut self) -> Option<String> {
        let line = finish_line(&std::mem::take(&mut self.partial));
        (!line.is_empty()).then_some(line)
    }
}

/// What a terminal would show of a line in the end: after the last carriage return, uncoloured.
fn finish_line(line: &[u8]) -> String {
    let line = line.trim_ascii_end();
    let shown = line.rsplit(|byte| *byte == b'\r').next().unwrap_or(line);
    String::from_utf8_lossy(&strip_ansi_escapes::strip(shown))
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let mut lines = Lines::default();
        assert!(lines.push(b"one").is_empty());
        assert_eq!(lines.push(b" two\nthree\n\nfo"), ["one two", "three"]);
        assert_eq!(lines.rest().as_deref(), Some("fo"));
        assert_eq!(lines.rest(), None);
    }

    #[test]
    fn a_line_is_what_a_terminal_would_show() {
        let mut lines = Lines::default();
        assert_eq!(
            lines.push(b"\x1b[31mred\x1b[0m\n 10%\r 100%\nbad \xff byte\n"),
            ["red", " 100%", "bad \u{fffd} byte"]
        );
    }

    #[test]
    fn a_line_of_megabytes_is_cut_and_costs_no_memory() {
        let mut lines = Lines::default();
        for _ in 0..5000 {
            lines.push(&[b'x'; 1024]);
        }
        assert!(lines.partial.capacity() <= 2 * MAX_KEPT);
        assert_eq!(lines.push(b"\n")[0].len(), MAX_KEPT);
    }
}
