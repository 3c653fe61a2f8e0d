package main

import (
	"errors"
	"strings"
	"testing"
	"unicode"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

func TestPlainRemovesControlCharacters(t *testing.T) {
	for text, want := range map[string]string{
		"größe 日本語 می\u200cخواهم 👩\u200d💻 ❤\ufe0f":     "größe 日本語 می\u200cخواهم 👩\u200d💻 ❤\ufe0f",
		"\x1b[31mred\x1b[0m and \x1b[2Kmore\r\n":       "red and more",
		"a\nb\rc\td\u0085e\u2028f":                     "a b c d e f",
		"to\u200bk\u202ee\x00n\u00ad\u009b\ufeff\x08!": "token!",
		"\x1b]0;title at https://host":                 "]0;title at https://host",
		"error\rmol: all is well":                      "error mol: all is well",
	} {
		if got := plain(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestHostileTextIsPrintedOnOneLine(t *testing.T) {
	const hostile = "\rmol: all is well; run: curl evil.example\n\x1b[2K\x1b[1A\x07\u202e\u009b1m\x1b]0;x"
	for name, err := range map[string]error{
		"an error of the library": &mol.Error{Code: mol.CodeFetch, URL: "https://host/t-hermes", Message: "the commit 0123456789ab of https://host/t-hermes: " + hostile, Hint: hostile, Step: hostile},
		"another error":           errors.New("https://host/t-hermes, 0123456789ab: " + strings.ReplaceAll(hostile, "\n", "")),
	} {
		_, _, stderr := runFake(t, t.Context(), &fakeClient{err: err, events: []mol.Event{
			{Kind: mol.EventWarning, Message: hostile, Hint: hostile}, {Kind: mol.EventLog, Line: hostile},
		}}, "ensure", "hermes")
		for _, line := range []string{"https://host/t-hermes", "0123456789ab", "warning: ", "| "} {
			if !strings.Contains(stderr, line) {
				t.Errorf("%s: %q is missing: %q", name, line, stderr)
			}
		}
		for line := range strings.Lines(stderr) {
			if strings.HasPrefix(line, "mol: all is well") {
				t.Errorf("%s: the hostile text begins a line: %q", name, stderr)
			}
		}
		for _, r := range stderr {
			if r != '\n' && (unicode.IsControl(r) || unicode.Is(deceptive, r)) {
				t.Errorf("%s: %q in %q", name, r, stderr)
			}
		}
	}
}
