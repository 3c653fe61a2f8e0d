package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"
	"unicode"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/charmbracelet/x/ansi"
	"github.com/dustin/go-humanize"
	"golang.org/x/term"
)

// longestLine is the maximum length of a line of plain output: a build may print a
// megabyte without a line end.
const longestLine = 400

// clean is plain, truncated to longestLine.
func clean(line string) string {
	return ansi.Truncate(plain(line), longestLine, "…")
}

// plain makes foreign text safe to print as one line: it removes colours, control characters and invisible characters.
// All readable text is kept, also the text before a carriage return.
//
// It does not change texts of libmol, which has already removed the same characters, and masked the token after that.
func plain(text string) string {
	text = colours.ReplaceAllString(strings.TrimRight(text, "\r\n"), "")
	wide := false // the last character that was kept is not ASCII
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t', r == '\n', r == '\v', r == '\f', r == '\r', r == '\u0085', r == '\u2028', r == '\u2029':
			r = ' '
		case unicode.IsControl(r), unicode.Is(deceptive, r), isInvisible(r) && !wide:
			return -1
		}
		wide = r >= 0x80
		return r
	}, text)
}

// colours matches the common control sequences: colours, cursor movement and erasing.
var colours = regexp.MustCompile(`\x1b\[[0-9:;?]*[A-Za-z]`)

// deceptive has the characters that only change how other text looks, such as direction marks, annotations, tags and
// the byte order mark: those of is_deceptive in src/printable.rs.
var deceptive = &unicode.RangeTable{
	R16: []unicode.Range16{
		{Lo: 0x61c, Hi: 0x61c, Stride: 1}, {Lo: 0x200e, Hi: 0x200f, Stride: 1}, {Lo: 0x202a, Hi: 0x202e, Stride: 1},
		{Lo: 0x2066, Hi: 0x206f, Stride: 1}, {Lo: 0xfeff, Hi: 0xfeff, Stride: 1}, {Lo: 0xfff9, Hi: 0xfffb, Stride: 1},
	},
	R32: []unicode.Range32{{Lo: 0xe0000, Hi: 0xe007f, Stride: 1}},
}

// isInvisible reports whether a character is one of Unicode's default ignorable code points, as is_invisible in
// src/printable.rs does; it may be deceptive too. Some scripts need them after a non-ASCII character. Two kinds of format
// characters (Cf) are visible: signs before numbers, such as the Arabic ones (Prepended_Concatenation_Mark), and the
// controls of Egyptian hieroglyphs (U+13430 to U+13440).
func isInvisible(r rune) bool {
	switch {
	case unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point):
		return true
	case unicode.Is(unicode.Prepended_Concatenation_Mark, r), r >= 0x13430 && r <= 0x13440:
		return false
	}
	return unicode.Is(unicode.Cf, r)
}

// lastLines returns the last n lines of text.
func lastLines(text string, n int) []string {
	lines := strings.Split(strings.TrimRight(text, "\r\n"), "\n")
	return lines[max(0, len(lines)-n):]
}

// headline returns an error of libmol as one line, without its hint and log.
func headline(detail *mol.Error) string {
	short := *detail
	short.Hint, short.LogTail, short.Excerpt = "", "", ""
	return plain(short.Error())
}

// seconds formats a duration for the displays.
func seconds(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
}

func size(bytes int64) string { return humanize.IBytes(uint64(max(bytes, 0))) }

func count(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return humanize.Comma(n) + " " + thing + "s"
}

// short returns the first 12 digits of a commit.
func short(sha string) string { return sha[:min(len(sha), 12)] }

func termSize(f *os.File) (width, height int, err error) { return term.GetSize(int(f.Fd())) }
