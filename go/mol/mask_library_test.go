//go:build cgo && ((linux && (amd64 || arm64)) || darwin)

package mol

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"math/rand/v2"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/mol/internal/libmask"
)

// MaskTokenInString and the library's mol_mask_token give the same result for any text and token.
func TestMaskingAgreesWithTheLibrary(t *testing.T) {
	const cases = 40_000
	seed := rand.Uint64()
	if value := os.Getenv("MOL_TEST_MASK_SEED"); value != "" {
		var err error
		if seed, err = strconv.ParseUint(value, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	masked := 0
	for i := range uint64(cases) {
		g := generator{rand.New(rand.NewPCG(seed, i))}
		token := g.token()
		text := g.text(token)
		if problem := compareMasking(text, token); problem != "" {
			t.Fatalf("MOL_TEST_MASK_SEED=%d, case %d: %s", seed, i, problem)
		}
		if MaskTokenInString(text, token) != text {
			masked++
		}
	}
	if masked < cases/2 {
		t.Errorf("MOL_TEST_MASK_SEED=%d: only %d of %d texts have a token in them", seed, masked, cases)
	}
}

func FuzzMaskingAgreesWithTheLibrary(f *testing.F) {
	f.Add("before ", testToken, " after", uint64(1))
	f.Add("https://me:", "s3cr/t+ken%41", "@host/ %", uint64(2))
	f.Add("\\", "a \"quoted\\\ttoken\n", "=", uint64(3))
	f.Fuzz(func(t *testing.T, before, token, after string, seed uint64) {
		token = forC(token)
		g := generator{rand.New(rand.NewPCG(seed, 0))}
		for _, text := range []string{before + after, before + g.spelling(token) + after} {
			if problem := compareMasking(strings.ReplaceAll(text, "\x00", ""), token); problem != "" {
				t.Error(problem)
			}
		}
	})
}

// compareMasking says how the two results differ. The library takes only valid UTF-8. In a text that is not, each
// invalid byte stands for U+FFFD there.
func compareMasking(text, token string) string {
	if token != strings.ToValidUTF8(token, "") || !isASCII(token) {
		// An invalid byte could be a part of this token.
		text = strings.ToValidUTF8(text, "\uFFFD")
	}
	got, want := MaskTokenInString(text, token), libmask.MaskToken(perByteUTF8(text), token)
	if perByteUTF8(got) != want {
		return fmt.Sprintf("token %q in %q:\n     Go %q\nlibrary %q", token, text, got, want)
	}
	return ""
}

// perByteUTF8 puts U+FFFD in the place of each invalid byte.
func perByteUTF8(s string) string { return string([]rune(s)) }

// forC makes a text one that a C string of the library can have.
func forC(s string) string { return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD") }

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// generator makes random tokens and texts.
type generator struct{ *rand.Rand }

func pick[T any](g generator, from ...T) T { return from[g.IntN(len(from))] }

func (g generator) letters(letters string, least, most int) string {
	runes := []rune(letters)
	var b strings.Builder
	for range least + g.IntN(most-least+1) {
		b.WriteRune(pick(g, runes...))
	}
	return b.String()
}

const (
	hexDigits  = "0123456789abcdef"
	printable  = ` !"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_{|}~abcdefghijklmnopqrstuvwxyz` + "`"
	escaping   = `%\&+;"'/<> 25amptxXuU#0147=-_`
	whitespace = "\a\b\t\n\v\f\r \x1b\x7fabnrt\\"
	wide       = "aZ0éößÿ日本𝄞\u0085\u00a0\u200b\u2028\ufffd"
)

func (g generator) token() string {
	switch g.IntN(16) {
	case 0:
		return g.letters(printable, 0, 4)
	case 1:
		return strings.Repeat(pick(g, "ab", "a", "%2", "25", "%25", "==", "//", `\`, `\\`, "&amp;", "+ ", "ab/+"), 1+g.IntN(8))
	case 2, 3:
		return g.letters(hexDigits, 40, 40)
	case 4, 5, 6:
		return g.letters(escaping, 1, 12)
	case 7, 8:
		return g.letters(whitespace, 1, 10)
	case 9, 10:
		return g.letters(wide, 1, 10)
	default:
		return g.letters(printable, 4, 24)
	}
}

// text has spellings of the token in it, whole and cut, and what could be taken for a part of one.
func (g generator) text(token string) string {
	var b strings.Builder
	for range 1 + g.IntN(6) {
		switch g.IntN(8) {
		case 0, 1, 2:
			b.WriteString(g.spelling(token))
		case 3:
			cut := g.spelling(token)
			from := g.IntN(len(cut) + 1)
			b.WriteString(cut[from : from+g.IntN(len(cut)-from+1)])
		case 4:
			b.WriteString(g.url(token))
		case 5:
			b.WriteString(pick(g, " ", "\n", "\t", ", ", "\u00a0", "\u2028", "=", ":", `"`))
		case 6:
			b.WriteString(pick(g, "%", "%2", "%25", "%2525", "+", "/", "-", "_", `\`, `\\`, `\\\`, `\u00`, `\x`, `\1`, "&",
				"&#", "&#x", "&amp;", "&amp;amp;", ";", "61", "Zm9v", "==", "***", "\xff", "\xc3", "é"))
		default:
			b.WriteString(g.letters(printable+wide, 0, 12))
		}
	}
	return strings.ReplaceAll(b.String(), "\x00", "")
}

func (g generator) url(token string) string {
	user := pick(g, "", "git", "u:", "u:p@ss", ":", "ü", "me:"+g.spelling(token), g.spelling(token))
	return pick(g, "https", "ssh", "git+ssh2", "HTTP", "1x", "1", "", ".", "x.", "é") + pick(g, "://", "://", "://", ":/", "//") + user +
		pick(g, "@", "@", "@", "@@", "", " @", "\u00a0@", "\u0085@", "\v@", "/@", "?@", "#@", `"@`, "'@", "<@", ">@", `\@`) +
		pick(g, "host", "[::1]:443", "") + pick(g, "", "/org/repo", "?q=a@b", "#a@b")
}

// spelling is the token in one of the encodings that programs use, or in a near miss.
func (g generator) spelling(token string) string {
	switch g.IntN(12) {
	case 0:
		return pick(g, token, asciiUpper(token), asciiLower(token), strings.ToUpper(token))
	case 1:
		digits := pick(g, hex.EncodeToString, asciiUpperHex)([]byte(pick(g, token, asciiUpper(token), asciiLower(token))))
		if g.IntN(4) == 0 && digits != "" {
			digits = digits[:len(digits)/2] + asciiUpper(digits[len(digits)/2:])
		}
		return digits
	case 2, 3:
		encoding := pick(g, base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding)
		return encoding.EncodeToString([]byte(g.letters("abcdeé:", 0, 4) + pick(g, "", ":") + token + g.letters("ab +/", 0, 3)))
	case 4:
		return pick(g, url.QueryEscape, url.PathEscape, html.EscapeString, strconv.Quote, strconv.QuoteToASCII, asJSON)(token)
	case 5:
		// One encoding of all bytes that is escaped again.
		return pick(g, url.QueryEscape, html.EscapeString, strconv.Quote, asJSON)(g.spelling(token))
	case 6, 7:
		// All bytes in the same form.
		form := pick(g, forms...)
		var b strings.Builder
		for _, c := range []byte(pick(g, token, asciiUpper(token))) {
			b.WriteString(form(c))
		}
		return b.String()
	default:
		// Every byte in a form of its own.
		plain := g.IntN(4)
		var b strings.Builder
		for _, c := range []byte(token) {
			if g.IntN(4) < plain {
				b.WriteByte(c)
			} else {
				b.WriteString(pick(g, forms...)(c))
			}
		}
		return b.String()
	}
}

func asciiUpperHex(b []byte) string { return asciiUpper(hex.EncodeToString(b)) }

func asJSON(s string) string {
	encoded, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}

// forms are the ways to write one byte. The last ones are near misses.
var forms = func() []func(c byte) string {
	var forms []func(c byte) string
	for _, format := range []string{
		"%%%02X", "%%%02x", "%%25%02X", "%%25%02x", "%%2525%02x",
		`\x%02x`, `\\x%02X`, `\u%04x`, `\\\\u%04X`, `\\\u%04x`, `\%03o`, `\\%03o`,
		"&#%d;", "&#%04d;", "&#x%x;", "&#X%04X;", "&amp;#%d;", "&amp;#x%04x;",
		"%%252525%02x", `\\\\\x%02x`, `\u1%03x`, `\x%x`, `\%o`, `\U%08x`, "&#%d", "&#%05d;", "&amp;amp;#%d;", "&#x%05x;",
	} {
		forms = append(forms, func(c byte) string { return fmt.Sprintf(format, c) })
	}
	byTable := func(before string, table map[byte]string) func(c byte) string {
		return func(c byte) string {
			if form, ok := table[c]; ok {
				return before + form
			}
			return string(rune(c))
		}
	}
	letters := map[byte]string{
		'\a': "a", '\b': "b", '\t': "t", '\n': "n", '\v': "v", '\f': "f", '\r': "r", '"': `"`, '\'': "'", '/': "/", '\\': `\`,
	}
	names := map[byte]string{'<': "lt;", '>': "gt;", '&': "amp;", '"': "quot;", '\'': "apos;", '/': "sol;"}
	return append(forms, byTable(`\`, letters), byTable(`\\\`, letters), byTable("&", names), byTable("&amp;", names),
		byTable("", map[byte]string{' ': "+"}),
		func(c byte) string { return `\` + string(rune(c)) })
}()
