package main

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

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

// The tests of libmol read the same file.
func TestPlainRemovesTheSameCharactersAsTheLibrary(t *testing.T) {
	text, err := os.ReadFile("../../../tests/vectors/printable.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors map[string][][2]rune
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	becomes := map[rune]string{}
	for what, ranges := range vectors {
		for _, r := range ranges {
			for c := r[0]; c <= r[1]; c++ {
				becomes[c] = what
			}
		}
	}
	var given, want strings.Builder
	for c := range unicode.MaxRune + 1 {
		if !utf8.ValidRune(c) {
			continue
		}
		ascii, other := string(c), string(c)
		switch becomes[c] {
		case "a space":
			ascii, other = " ", " "
		case "nothing":
			ascii, other = "", ""
		case "nothing after ASCII":
			ascii = ""
		}
		given.WriteString("a" + string(c) + "é" + string(c))
		want.WriteString("a" + ascii + "é" + other)
	}
	got, expected := []rune(plain(given.String()+"a")), []rune(want.String()+"a")
	for i, c := range expected {
		if i == len(got) || got[i] != c {
			t.Fatalf("after %q: got %q, want %q", string(expected[max(0, i-4):i]), string(got[i:min(len(got), i+4)]), string(expected[i:min(len(expected), i+4)]))
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
