package mol

import (
	"encoding/base64"
	"encoding/hex"
	"math/bits"
	"slices"
	"strings"
)

// The ways in which a text can spell a token, and the search for them. The rules are those of the Rust library,
// src/redact/spellings.rs; TestMaskingAgreesWithTheLibrary compares the results of both.

// tokenPattern is a text to search for.
type tokenPattern struct {
	kind patternKind
	text string
}

type patternKind uint8

const (
	// patternToken is the token itself, each byte in any form.
	patternToken patternKind = iota
	// patternHex is the token in hexadecimal.
	patternHex
	// patternBase64 is the base64 that depends on the token alone; the match is the whole base64 run around it.
	patternBase64
)

// maxPatterns is the most patterns of one token: 3 of the token itself, 6 in hexadecimal, 6 in base64.
const maxPatterns = 15

// Shorter patterns of base64, and shorter tokens in hexadecimal, would match ordinary words.
const minPatternLen = 4

// tokenPatterns are the patterns that find a token. In base64 the text before the token shifts it by 0, 1 or 2
// bytes in a group of three. Each shift has a pattern, of the characters that depend on the token alone.
func tokenPatterns(token string) []tokenPattern {
	patterns := make([]tokenPattern, 0, maxPatterns)
	add := func(kind patternKind, text string) {
		if p := (tokenPattern{kind, text}); !slices.Contains(patterns, p) {
			patterns = append(patterns, p)
		}
	}
	cases := [...]string{token, asciiUpper(token), asciiLower(token)}
	for _, text := range cases {
		add(patternToken, text)
	}
	if len(token) >= minPatternLen {
		for _, text := range cases {
			digits := hex.EncodeToString([]byte(text))
			add(patternHex, digits)
			add(patternHex, asciiUpper(digits))
		}
	}
	for shift := range 3 {
		shifted := []byte("\x00\x00"[:shift] + token)
		// The characters, of six bits each, that have no bit of another byte.
		first, last := (shift*8+5)/6, len(shifted)*8/6
		if last-first >= minPatternLen {
			add(patternBase64, base64.RawStdEncoding.EncodeToString(shifted)[first:last])
			add(patternBase64, base64.RawURLEncoding.EncodeToString(shifted)[first:last])
		}
	}
	return patterns
}

// asciiUpper and asciiLower change only ASCII letters, as the programs do whose output is masked.
func asciiUpper(s string) string { return changeCase(s, 'a', 'z') }

func asciiLower(s string) string { return changeCase(s, 'A', 'Z') }

func changeCase(s string, first, last byte) string {
	var changed []byte
	for i := range len(s) {
		if first <= s[i] && s[i] <= last {
			if changed == nil {
				changed = []byte(s)
			}
			changed[i] ^= 0x20
		}
	}
	if changed == nil {
		return s
	}
	return string(changed)
}

// tokenSpans finds the token in s. Matches of one pattern never overlap: the search for it continues after each
// match.
func tokenSpans(s, token string) []span {
	if token == "" {
		return nil
	}
	patterns := tokenPatterns(token)
	// first[b] and second[b]: bit sets of the patterns whose match can have byte b at its first or second position.
	var first, second [256]uint16
	for i, p := range patterns {
		first[p.text[0]] |= 1 << i
		if len(p.text) > 1 {
			second[p.text[1]] |= 1 << i
		}
		if p.kind == patternToken {
			for _, c := range []byte(escapes) {
				first[c] |= 1 << i
				second[c] |= 1 << i
			}
		}
	}
	var spans []span
	var from [maxPatterns]int // the end of the last match of each pattern
	for at := range len(s) {
		candidates := first[s[at]]
		if candidates == 0 {
			continue
		}
		// Any byte can follow the one that begins an escape, or a token of one byte.
		if at+1 < len(s) && !isEscape(s[at]) && len(token) > 1 {
			candidates &= second[s[at+1]]
		}
		for ; candidates != 0; candidates &= candidates - 1 {
			i := bits.TrailingZeros16(candidates)
			if at < from[i] {
				continue
			}
			if found, ok := patterns[i].matchAt(s, at, from[i]); ok {
				spans = append(spans, found)
				from[i] = found.end
			}
		}
	}
	return spans
}

// matchAt returns the match at s[at:], if there is one. It does not begin before from.
func (p tokenPattern) matchAt(s string, at, from int) (span, bool) {
	if p.kind == patternToken {
		end := tokenEnd(s, at, p.text)
		return span{at, end}, end >= 0
	}
	if !strings.HasPrefix(s[at:], p.text) {
		return span{}, false
	}
	start, end := at, at+len(p.text)
	if p.kind == patternBase64 {
		for start > from && isBase64(s[start-1]) {
			start--
		}
		for end < len(s) && isBase64(s[end]) {
			end++
		}
		for end < len(s) && s[end] == '=' {
			end++
		}
	}
	return span{start, end}, true
}

func isBase64(c byte) bool {
	return isAlnum(c) || c == '+' || c == '/' || c == '-' || c == '_'
}

// escapes are the first bytes of all forms other than the byte itself.
const escapes = `%\&+`

func isEscape(c byte) bool { return c == '%' || c == '\\' || c == '&' || c == '+' }

// tokenEnd returns the end of the token at s[at:], each byte in any form, or -1. If the token contains a character
// that also begins an escape, such as `%`, several readings may match. The longest counts, so that no part of it
// stays.
func tokenEnd(s string, at int, token string) int {
	plain := 0
	for plain < len(token) && at < len(s) && s[at] == token[plain] && !isEscape(s[at]) {
		plain++
		at++
	}
	if plain == len(token) {
		return at
	}
	if at == len(s) || !isEscape(s[at]) {
		return -1
	}
	// The ends of all readings of the token up to here, in ascending order.
	var buffers [2][16]int
	ends, next := append(buffers[0][:0], at), buffers[1][:0]
	for _, c := range []byte(token[plain:]) {
		next = next[:0]
		for _, end := range ends {
			next = appendForms(next, s, end, c)
		}
		if len(next) == 0 {
			return -1
		}
		slices.Sort(next)
		ends, next = slices.Compact(next), ends
	}
	return ends[len(ends)-1]
}

// appendForms appends the end of each form of the byte c that s[at:] begins with:
//
//   - the byte itself, and + for a space,
//   - percent-encoded up to three times (%252541),
//   - escaped with up to four backslashes, for strings in strings: \u0041 (ASCII only), \x41, \101, or as letterEscape
//     says,
//   - as an HTML character reference of ASCII up to twice (&amp;lt;).
func appendForms(ends []int, s string, at int, c byte) []int {
	if at >= len(s) {
		return ends
	}
	if s[at] == c || s[at] == '+' && c == ' ' {
		ends = append(ends, at+1)
	}
	switch s[at] {
	case '%':
		for i := at + 1; i <= at+5; i += 2 {
			if isNumber(s, i, 2, 16, c) {
				ends = append(ends, i+2)
			}
			if !strings.HasPrefix(s[i:], "25") {
				break
			}
		}
	case '\\':
		for i := at + 1; i <= at+4 && i < len(s); i++ {
			escape := s[i]
			if escaped, ok := letterEscape(escape); ok && escaped == c {
				ends = append(ends, i+1)
			}
			switch {
			case escape == 'u' && c < 0x80 && isNumber(s, i+1, 4, 16, c):
				ends = append(ends, i+5)
			case escape == 'x' && isNumber(s, i+1, 2, 16, c):
				ends = append(ends, i+3)
			case '0' <= escape && escape <= '3' && isNumber(s, i, 3, 8, c):
				ends = append(ends, i+3)
			}
			if escape != '\\' {
				break
			}
		}
	case '&':
		for i := at + 1; i <= at+5 && c < 0x80; i += 4 {
			semicolon := strings.IndexByte(s[i:min(len(s), i+8)], ';')
			if semicolon < 0 {
				break
			}
			if isReference(s[i:i+semicolon], c) {
				ends = append(ends, i+semicolon+1)
			}
			if !strings.HasPrefix(s[i:], "amp;") {
				break
			}
		}
	}
	return ends
}

// letterEscape returns the character that is escaped by a backslash and this letter or sign.
func letterEscape(letter byte) (byte, bool) {
	if strings.IndexByte(`"'/\`, letter) >= 0 {
		return letter, true
	}
	if i := strings.IndexByte("abtnvfr", letter); i >= 0 {
		return "\a\b\t\n\v\f\r"[i], true
	}
	return 0, false
}

// isReference reports whether &name; stands for the character c in HTML.
func isReference(name string, c byte) bool {
	switch name {
	case "lt":
		return c == '<'
	case "gt":
		return c == '>'
	case "amp":
		return c == '&'
	case "quot":
		return c == '"'
	case "apos":
		return c == '\''
	}
	number, ok := strings.CutPrefix(name, "#")
	base := 10
	if ok && number != "" && number[0]|0x20 == 'x' {
		number, base = number[1:], 16
	}
	return ok && number != "" && len(number) <= 4 && isNumber(number, 0, len(number), base, c)
}

// isNumber reports whether the digits s[at:at+n] are the number c.
func isNumber(s string, at, n, base int, c byte) bool {
	if at+n > len(s) {
		return false
	}
	value := 0
	for _, digit := range []byte(s[at : at+n]) {
		v := digitValue(digit)
		if v >= base {
			return false
		}
		value = value*base + v
	}
	return value == int(c)
}

func digitValue(c byte) int {
	switch {
	case isDigit(c):
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return 16
}
