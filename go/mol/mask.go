package mol

import (
	"slices"
	"strings"
	"unicode"
)

// mask replaces a secret.
const mask = "***"

// MaskTokenInURL replaces the userinfo of a URL by ***: https://user:token@host/path becomes
// https://***@host/path. A URL without userinfo and a text that is not a URL come back unchanged.
//
// The userinfo ends at the last @ before the path, so that no part of a password with an unencoded @ stays.
func MaskTokenInURL(url string) string {
	scheme, rest, found := strings.Cut(url, "://")
	if !found || !validScheme(scheme) {
		return url
	}
	authority := rest
	if end := strings.IndexAny(rest, `/?#\`); end >= 0 {
		authority = rest[:end]
	}
	at := strings.LastIndexByte(authority, '@')
	if at < 0 {
		return url
	}
	return scheme + "://" + mask + rest[at:]
}

// validScheme is RFC 3986, section 3.1.
func validScheme(scheme string) bool {
	for i := range len(scheme) {
		if !isSchemeChar(scheme[i]) || i == 0 && !isLetter(scheme[i]) {
			return false
		}
	}
	return scheme != ""
}

func isSchemeChar(c byte) bool { return isAlnum(c) || c == '+' || c == '-' || c == '.' }

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isAlnum(c byte) bool { return isLetter(c) || isDigit(c) }

// MaskTokenInString replaces every spelling of a token in a text by ***, and then the userinfo of every URL in it. An
// empty token leaves only the URLs. The spellings are
//
//   - the token itself, in upper case (as BuildKit prints an unknown instruction) and in lower case (as in a host
//     name),
//   - each of these with any of its bytes percent-encoded (%2F, and encoded again: %252F), escaped as in a string
//     of JSON, C or Python and in file names that git quotes (\u002F, \x2F, \057, \/, \", \n), or as a character
//     reference of HTML (&#47;, &#x2F;, &amp;, and &amp;#47;), and with + for a space,
//   - the first three in hexadecimal, in upper-case or in lower-case digits,
//   - base64, in the standard or the URL alphabet, of any text that contains the token, such as the user:token of
//     an Authorization header. The whole run of base64 is replaced.
//
// A token of less than four bytes is too short to be recognised in hexadecimal and in every base64 text. A
// client refuses tokens of less than eight bytes; this function masks a token of any length.
//
// Spellings that overlap become one ***, and adjacent ones one *** each. A text without anything to mask comes back
// without a copy. The result is that of the library's mol_mask_token. The text and the token are taken as bytes:
// where they are not valid UTF-8, which the library refuses, the same rules hold, and other bytes stay as they are.
func MaskTokenInString(s, token string) string {
	s = replaceSpans(s, tokenSpans(s, token))
	return replaceSpans(s, userinfoSpans(s))
}

// userinfoSpans finds the userinfo of the URLs in s: the text between "scheme://" and the last @ before the path
// (RFC 3986, section 3.2.1), before white space, or before a character that cannot occur in a URL.
func userinfoSpans(s string) []span {
	if strings.IndexByte(s, '@') < 0 {
		return nil
	}
	var spans []span
	for at := 0; ; {
		i := strings.Index(s[at:], "://")
		if i < 0 {
			return spans
		}
		scheme := s[at : at+i]
		at += i + len("://")
		if !endsInScheme(scheme) {
			continue
		}
		length := -1
		for i, r := range s[at:] {
			if r == '@' {
				length = i
			} else if endsUserinfo(r) {
				break
			}
		}
		if length >= 0 {
			spans = append(spans, span{at, at + length})
		}
	}
}

// endsInScheme reports whether a scheme is at the end of s. Other characters of a scheme may be before it.
func endsInScheme(s string) bool {
	for i := len(s) - 1; i >= 0 && isSchemeChar(s[i]); i-- {
		if isLetter(s[i]) {
			return true
		}
	}
	return false
}

func endsUserinfo(r rune) bool {
	switch r {
	case '/', '?', '#', '\\', '"', '\'', '<', '>':
		return true
	}
	return unicode.IsSpace(r)
}

// span is the part [start, end) of a text.
type span struct{ start, end int }

// replaceSpans puts *** in the place of each span. Spans that overlap count as one.
func replaceSpans(s string, spans []span) string {
	if len(spans) == 0 {
		return s
	}
	slices.SortFunc(spans, func(a, b span) int { return a.start - b.start })
	var b strings.Builder
	done := 0 // the end of the last span
	for i, next := range spans {
		if i == 0 || next.start >= done {
			b.WriteString(s[done:next.start])
			b.WriteString(mask)
		}
		done = max(done, next.end)
	}
	b.WriteString(s[done:])
	return b.String()
}
