package mol

import (
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
)

// mask stands where a secret was.
const mask = "***"

// MaskTokenInURL replaces the userinfo of a URL by ***: https://user:token@host/path becomes
// https://***@host/path. A URL without userinfo and a text that is no URL come back unchanged.
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
		c := scheme[i] | 0x20
		switch {
		case 'a' <= c && c <= 'z':
		case i > 0 && ('0' <= scheme[i] && scheme[i] <= '9' || strings.IndexByte("+-.", scheme[i]) >= 0):
		default:
			return false
		}
	}
	return scheme != ""
}

// MaskTokenInString replaces every spelling of a token in a text by ***. The spellings are
//
//   - the token itself, also all in capitals (BuildKit repeats an instruction that it does not know so) or all in
//     small letters (as in a host name),
//   - each of these with any of its bytes percent-encoded (%2F, and encoded again: %252F), escaped as in a string
//     of JSON, C or Python and in the names that git quotes (\u002F, \x2F, \057, \/, \"), or as a character
//     reference of HTML (&#47;, &#x2F;, &amp;, and &amp;#47;),
//   - each of these in hexadecimal, in digits of either case,
//   - base64 text, in the standard or the URL alphabet, of anything that the token is a part of, such as the
//     user:token of an Authorization header. All of the base64 text is replaced.
//
// A token of less than four bytes is too short to be recognised in hexadecimal and in every base64 text. A
// client takes none of less than eight, but this function masks whatever it is told to.
//
// Spellings that overlap become one ***, those side by side one each. An empty token changes nothing. A text
// without the token comes back as it is, without a copy.
func MaskTokenInString(s, token string) string {
	if token == "" || len(s) < len(token) {
		return s
	}
	var buffer [8]span
	spans := buffer[:0]
	pieces := maskPieces(token)
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '\\') < 0 && strings.IndexByte(s, '&') < 0 &&
		(strings.IndexByte(token, ' ') < 0 || strings.IndexByte(s, '+') < 0) {
		spans = pieceSpans(spans, s, pieces)
	} else {
		plain := 0
		for plain < len(pieces) && pieces[plain].kind == pieceBytes {
			plain++
		}
		spans = spelledSpans(spans, s, pieces[:plain])
		if plain < len(pieces) {
			spans = pieceSpans(spans, s, pieces[plain:])
		}
	}
	if len(spans) == 0 {
		return s
	}
	return replaceSpans(s, spans)
}

// span is the part [start, end) of a text.
type span struct{ start, end int }

// escapes are what a byte that is not written as it is can begin with.
const escapes = `%\&+`

func isEscape(c byte) bool { return c == '%' || c == '\\' || c == '&' || c == '+' }

// spelledSpans finds the token with its bytes in any form.
func spelledSpans(spans []span, s string, pieces []piece) []span {
	var starts [256]uint8
	for k, p := range pieces {
		starts[p.text[0]] |= 1 << k
		for i := range len(escapes) {
			starts[escapes[i]] |= 1 << k
		}
	}
	var from [3]int // where the next find of a piece may begin
	for at := 0; at < len(s); at++ {
		which := starts[s[at]]
		if which == 0 {
			continue
		}
		for k, p := range pieces {
			if which&(1<<k) == 0 || at < from[k] {
				continue
			}
			if end := spelled(s, at, p.text); end >= 0 {
				spans = append(spans, span{at, end})
				from[k] = end
			}
		}
	}
	return spans
}

// spelled gives the end of the token at s[at:], or -1. Where the token holds a character that also escapes, such
// as in %25, several readings may fit: the longest counts, so that none of it stays.
func spelled(s string, at int, token string) int {
	plain := 0
	for plain < len(token) && at+plain < len(s) && s[at+plain] == token[plain] && !isEscape(s[at+plain]) {
		plain++
	}
	if plain == len(token) {
		return at + plain
	}
	if at+plain == len(s) || !isEscape(s[at+plain]) {
		return -1
	}
	// Where what was read of the token so far may end.
	var buffers [2][16]int
	ends, next := append(buffers[0][:0], at+plain), buffers[1][:0]
	for k := plain; k < len(token); k++ {
		next = next[:0]
		for _, end := range ends {
			next = appendForms(next, s, end, token[k])
		}
		if len(next) == 0 {
			return -1
		}
		slices.Sort(next)
		ends, next = slices.Compact(next), ends
	}
	return ends[len(ends)-1]
}

// appendForms appends the end of each form of the byte c that s[at:] begins with. They are those of the core's
// src/redact/mod.rs.
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
			switch e := s[i]; {
			case e == c && strings.IndexByte(`"'/\`, c) >= 0:
				ends = append(ends, i+1)
			case e == 'u' && c < 0x80 && isNumber(s, i+1, 4, 16, c):
				ends = append(ends, i+5)
			case e == 'x' && isNumber(s, i+1, 2, 16, c):
				ends = append(ends, i+3)
			case '0' <= e && e <= '3' && isNumber(s, i, 3, 8, c):
				ends = append(ends, i+3)
			}
			if s[i] != '\\' {
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

// isReference tells whether it is c that is meant by &name; in HTML.
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

// isNumber tells whether the digits s[at:at+n] are the number c.
func isNumber(s string, at, n, base int, c byte) bool {
	if at+n > len(s) {
		return false
	}
	value := 0
	for i := at; i < at+n; i++ {
		digit := int(unhex(s[i]))
		if digit >= base {
			return false
		}
		value = value*base + digit
	}
	return value == int(c)
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 16
}

// piece is a text to search for.
type piece struct {
	text string
	kind pieceKind
}

type pieceKind uint8

const (
	// pieceBytes is the token itself, each of whose bytes may be in another form.
	pieceBytes pieceKind = iota
	// pieceHex is the token in hexadecimal.
	pieceHex
	// pieceBase64 is a part of base64 text, all of which is meant.
	pieceBase64
)

// maxPieces is how many a token can have: itself, in capitals and in small letters, each of these in two cases
// of hexadecimal digits, and two for each place in a group of three bytes.
const maxPieces = 15

// The shortest piece of base64, and the shortest token in hexadecimal, that count as a find. Shorter ones are in
// ordinary words.
const minPieceLen = 4

// maskPieces are the token and what it looks like within base64 and in hexadecimal, those of a kind together.
// What comes before it in base64 is not known, so the token can begin at each of three places in a group of
// three bytes; at each, the characters that depend on nothing but the token are a piece to search for.
func maskPieces(token string) []piece {
	pieces := make([]piece, 1, maxPieces)
	pieces[0] = piece{text: token}
	for _, letters := range [2][2]byte{{'A', 'Z'}, {'a', 'z'}} {
		if changed := flipped(token, letters[0], letters[1]); changed != token {
			pieces = append(pieces, piece{text: changed})
		}
	}
	if len(token) >= minPieceLen {
		for _, p := range pieces {
			lower := hex.EncodeToString([]byte(p.text))
			pieces = append(pieces, piece{lower, pieceHex})
			if upper := flipped(lower, 'a', 'z'); upper != lower {
				pieces = append(pieces, piece{upper, pieceHex})
			}
		}
	}
	plain := append(make([]byte, 2, 2+len(token)), token...)
	encoded := make([]byte, 0, 2*base64.StdEncoding.EncodedLen(len(plain)))
	for before := range 3 {
		part := plain[2-before:]
		first, last := (before*8+5)/6, len(part)*8/6
		if last-first < minPieceLen {
			continue
		}
		encoded = base64.RawStdEncoding.AppendEncode(encoded[:0], part)
		standard := string(encoded[first:last])
		pieces = append(pieces, piece{standard, pieceBase64})
		encoded = base64.RawURLEncoding.AppendEncode(encoded[:0], part)
		if string(encoded[first:last]) != standard {
			pieces = append(pieces, piece{string(encoded[first:last]), pieceBase64})
		}
	}
	return pieces
}

// flipped has the letters from first to last, of ASCII, in the other case.
func flipped(s string, first, last byte) string {
	b := []byte(s)
	for i, c := range b {
		if first <= c && c <= last {
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// pieceSpans finds every piece in s. A piece does not overlap with itself: it is searched for again only
// behind its last find.
func pieceSpans(spans []span, s string, pieces []piece) []span {
	shortest := len(pieces[0].text)
	for _, p := range pieces {
		shortest = min(shortest, len(p.text))
	}
	if len(s) >= minSkippingText && shortest >= minSkippingPiece {
		return skippingPieceSpans(spans, s, pieces, min(shortest, maxSkippingWindow))
	}
	for _, p := range pieces {
		for from := 0; ; {
			i := strings.Index(s[from:], p.text)
			if i < 0 {
				break
			}
			found := p.extend(s, from, from+i)
			spans = append(spans, found)
			from = found.end
		}
	}
	return spans
}

const (
	// Below these, preparing the table costs more than it saves.
	minSkippingText  = 1 << 10
	minSkippingPiece = 8
	// What fits into a byte of the table.
	maxSkippingWindow = 250
)

// skippingPieceSpans does the same in one pass over the text, most of which it never looks at: the search
// of Wu and Manber (A Fast Algorithm for Multi-Pattern Searching, 1994) with blocks of two bytes. A window,
// as long as the shortest piece, is moved along the text; the two bytes at its end say how far it can move
// on without missing a piece, and when that is nowhere, the pieces are compared.
func skippingPieceSpans(spans []span, s string, pieces []piece, window int) []span {
	// How far before the window's end a pair of bytes is in a piece, plus one; 0 where it is in none.
	var table [1 << 12]uint8
	for _, p := range pieces {
		for i := 1; i < window; i++ {
			h := pairHash(p.text[i-1], p.text[i])
			if distance := uint8(window - i); table[h] == 0 || distance < table[h] {
				table[h] = distance
			}
		}
	}
	var from [maxPieces]int // where the next find of a piece may begin
	for last := window - 1; last < len(s); {
		switch distance := table[pairHash(s[last-1], s[last])]; distance {
		case 0:
			last += window - 1
		case 1:
			start := last - window + 1
			for k, p := range pieces {
				if start >= from[k] && strings.HasPrefix(s[start:], p.text) {
					found := p.extend(s, from[k], start)
					spans = append(spans, found)
					from[k] = found.end
				}
			}
			last++
		default:
			last += int(distance) - 1
		}
	}
	return spans
}

func pairHash(a, b byte) uint { return (uint(a)<<5 ^ uint(b)) & (1<<12 - 1) }

// extend gives the part of s that a piece found at start stands for: the whole base64 text around it, as
// far as it does not begin before from.
func (p piece) extend(s string, from, start int) span {
	end := start + len(p.text)
	if p.kind != pieceBase64 {
		return span{start, end}
	}
	for start > from && isBase64(s[start-1]) {
		start--
	}
	for end < len(s) && isBase64(s[end]) {
		end++
	}
	for end < len(s) && s[end] == '=' {
		end++
	}
	return span{start, end}
}

func isBase64(c byte) bool {
	return isLowerAlnum(c) || 'A' <= c && c <= 'Z' || c == '+' || c == '/' || c == '-' || c == '_'
}

// replaceSpans puts *** in the place of each span; spans that overlap count as one.
func replaceSpans(s string, spans []span) string {
	slices.SortFunc(spans, func(a, b span) int { return a.start - b.start })
	merged := spans[:1]
	for _, next := range spans[1:] {
		if last := &merged[len(merged)-1]; next.start < last.end {
			last.end = max(last.end, next.end)
		} else {
			merged = append(merged, next)
		}
	}
	var b strings.Builder
	b.Grow(len(s) + len(merged)*len(mask))
	done := 0
	for _, m := range merged {
		b.WriteString(s[done:m.start])
		b.WriteString(mask)
		done = m.end
	}
	b.WriteString(s[done:])
	return b.String()
}
