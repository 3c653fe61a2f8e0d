package mol

import (
	"encoding/base64"
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
//   - each of these with any of its bytes percent-encoded, in either case of hex digits,
//   - base64 text, in the standard or the URL alphabet, of anything that the token is a part of, such as the
//     user:token of an Authorization header. All of the base64 text is replaced. (A token of less than four
//     bytes is too short to be recognised in every base64 text.)
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
	for _, p := range pieces {
		if !p.base64 {
			spans = percentEncodedSpans(spans, s, p.text)
		}
	}
	spans = pieceSpans(spans, s, pieces)
	if len(spans) == 0 {
		return s
	}
	return replaceSpans(s, spans)
}

// span is the part [start, end) of a text.
type span struct{ start, end int }

// percentEncodedSpans finds the token with at least one of its bytes encoded. Each search starts at a
// percent sign, of which most texts have few, and takes it for the first encoded byte of the token.
func percentEncodedSpans(spans []span, s, token string) []span {
	for from := 0; ; {
		i := strings.IndexByte(s[from:], '%')
		if i < 0 {
			return spans
		}
		i += from
		from = i + 1
		c, ok := percentDecoded(s, i)
		if !ok {
			continue
		}
		// Each k for which token[k] is that byte and token[:k] stands plain before the percent sign.
		for k := indexByteFrom(token, c, 0); k >= 0 && k <= i; k = indexByteFrom(token, c, k+1) {
			if s[i-k:i] != token[:k] {
				continue
			}
			if end := percentMatch(s, i+3, token[k+1:]); end >= 0 {
				spans = append(spans, span{i - k, end})
				from = end
				break
			}
		}
	}
}

func indexByteFrom(s string, c byte, from int) int {
	if i := strings.IndexByte(s[from:], c); i >= 0 {
		return from + i
	}
	return -1
}

// percentMatch matches the token at s[at:], each of its bytes plain or encoded, and gives the end, or -1.
func percentMatch(s string, at int, token string) int {
	for k := range len(token) {
		if c, ok := percentDecoded(s, at); ok && c == token[k] {
			at += 3
		} else if at < len(s) && s[at] == token[k] {
			at++
		} else {
			return -1
		}
	}
	return at
}

func percentDecoded(s string, at int) (byte, bool) {
	if at+2 >= len(s) || s[at] != '%' {
		return 0, false
	}
	high, low := unhex(s[at+1]), unhex(s[at+2])
	return high<<4 | low, high < 16 && low < 16
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
	// base64 tells that the piece is a part of base64 text, all of which is meant.
	base64 bool
}

// maxPieces is how many a token can have: itself, in capitals and in small letters, and two for each place in
// a group of three bytes.
const maxPieces = 9

// The shortest piece of base64 that counts as a find. Shorter ones are in ordinary words.
const minBase64Len = 4

// maskPieces are the token and what it looks like within base64. What comes before it there is not known,
// so the token can begin at each of three places in a group of three bytes; at each, the characters that
// depend on nothing but the token are a piece to search for.
func maskPieces(token string) []piece {
	pieces := make([]piece, 1, maxPieces)
	pieces[0] = piece{text: token}
	for _, letters := range [2][2]byte{{'A', 'Z'}, {'a', 'z'}} {
		if changed := flipped(token, letters[0], letters[1]); changed != token {
			pieces = append(pieces, piece{text: changed})
		}
	}
	plain := append(make([]byte, 2, 2+len(token)), token...)
	encoded := make([]byte, 0, 2*base64.StdEncoding.EncodedLen(len(plain)))
	for before := range 3 {
		part := plain[2-before:]
		first, last := (before*8+5)/6, len(part)*8/6
		if last-first < minBase64Len {
			continue
		}
		encoded = base64.RawStdEncoding.AppendEncode(encoded[:0], part)
		standard := string(encoded[first:last])
		pieces = append(pieces, piece{standard, true})
		encoded = base64.RawURLEncoding.AppendEncode(encoded[:0], part)
		if string(encoded[first:last]) != standard {
			pieces = append(pieces, piece{string(encoded[first:last]), true})
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
	if !p.base64 {
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
