package main

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/charmbracelet/x/ansi"
	"github.com/dustin/go-humanize"
	"golang.org/x/term"
)

// longestLine is where a line of plain output is cut: a build may print a
// megabyte without a line end.
const longestLine = 400

// clean makes a line of somebody else's output fit to print: without colours and
// cursor movements, of a line that was drawn over itself, the last state, and cut.
func clean(line string) string {
	return ansi.Truncate(plain(line), longestLine, "…")
}

// plain is clean without the cut, for what must be read to its end.
func plain(line string) string {
	line = ansi.Strip(strings.TrimRight(line, "\r\n"))
	line = line[strings.LastIndexByte(line, '\r')+1:]
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case unicode.IsControl(r):
			return -1
		}
		return r
	}, line)
}

// lastLines are the last n lines of text.
func lastLines(text string, n int) []string {
	lines := strings.Split(strings.TrimRight(text, "\r\n"), "\n")
	return lines[max(0, len(lines)-n):]
}

// headline is an error of libmol's in one line, without its hint and log.
func headline(detail *mol.Error) string {
	text := detail.Message
	if text == "" {
		text = detail.Code.String()
	}
	if detail.Step != "" && !strings.Contains(text, detail.Step) {
		text += ": " + detail.Step
	}
	if detail.URL != "" && !strings.Contains(text, detail.URL) {
		text += " (" + detail.URL + ")"
	}
	return plain(text)
}

// seconds is a duration as the displays write it.
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

// short is a commit as people write it.
func short(sha string) string { return sha[:min(len(sha), 12)] }

func termSize(f *os.File) (width, height int, err error) { return term.GetSize(int(f.Fd())) }
