package mol

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

const testToken = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"

func TestMaskTokenInURL(t *testing.T) {
	type vector struct {
		vectorName
		URL  string `json:"url"`
		Want string `json:"want"`
	}
	eachVector(t, "mask_url.json", func(t *testing.T, v vector) {
		if got := MaskTokenInURL(v.URL); got != v.Want {
			t.Errorf("got %q, want %q", got, v.Want)
		}
		if once := MaskTokenInURL(v.URL); MaskTokenInURL(once) != once {
			t.Errorf("%q changes when it is masked again", once)
		}
	})
}

type maskVector struct {
	vectorName
	Text  string `json:"text"`
	Token string `json:"token"`
	Want  string `json:"want"`
}

func TestMaskTokenInString(t *testing.T) {
	eachVector(t, "mask_token.json", func(t *testing.T, v maskVector) {
		if got := MaskTokenInString(v.Text, v.Token); got != v.Want {
			t.Errorf("got %q, want %q", got, v.Want)
		}
	})
}

func TestMaskTokenInStringLeavesTheRestOfAURL(t *testing.T) {
	text := "https://user:" + testToken + "@host/ and https://user:password@host/"
	if got, want := MaskTokenInString(text, testToken), "https://user:***@host/ and https://user:password@host/"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := MaskTokenInString(text, ""); got != text {
		t.Errorf("an empty token makes %q", got)
	}
}

// A long text is searched in another way than a short one.
func TestMaskTokenInStringInALongText(t *testing.T) {
	// Of nothing that a token of the vectors has in it.
	long := strings.Repeat("…\n", 2000)
	eachVector(t, "mask_token.json", func(t *testing.T, v maskVector) {
		got := MaskTokenInString(long+" "+v.Text+" "+long, v.Token)
		if want := long + " " + v.Want + " " + long; got != want {
			t.Errorf("got …%q…", strings.Trim(strings.ReplaceAll(got, long, ""), " "))
		}
	})
}

func TestBothWaysToSearchFindTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		token := randomText(r, "ab+/", 8+r.IntN(10))
		pieces := maskPieces(token)
		var text strings.Builder
		for text.Len() < minSkippingText {
			switch r.IntN(4) {
			case 0:
				text.WriteString(token)
			case 1:
				text.WriteString(base64.StdEncoding.EncodeToString([]byte(randomText(r, "ab:", r.IntN(6)) + token)))
			case 2:
				text.WriteString(token[:r.IntN(len(token))])
			default:
				text.WriteString(randomText(r, "ab+/ =\n", r.IntN(40)))
			}
		}
		s := text.String()
		shortest := len(slices.MinFunc(pieces, func(a, b piece) int { return len(a.text) - len(b.text) }).text)
		skipping := skippingPieceSpans(nil, s, pieces, shortest)
		var simple []span
		for _, p := range pieces {
			// One piece in pieces of a text too short for the other way.
			simple = append(simple, indexSpans(s, p)...)
		}
		if got, want := maskedBy(s, skipping), maskedBy(s, simple); got != want {
			t.Fatalf("round %d, token %q, text %q:\n got %q\nwant %q", round, token, s, got, want)
		}
	}
}

func indexSpans(s string, p piece) []span {
	var spans []span
	for from := 0; ; {
		i := strings.Index(s[from:], p.text)
		if i < 0 {
			return spans
		}
		found := p.extend(s, from, from+i)
		spans = append(spans, found)
		from = found.end
	}
}

func maskedBy(s string, spans []span) string {
	if len(spans) == 0 {
		return s
	}
	return replaceSpans(s, spans)
}

func randomText(r *rand.Rand, letters string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	return string(b)
}

func TestATextWithoutTheTokenIsNotCopied(t *testing.T) {
	for _, s := range []string{"nothing here", logText(64 << 10)} {
		if got := MaskTokenInString(s, testToken); unsafe.StringData(got) != unsafe.StringData(s) {
			t.Errorf("%.20q… was copied", s)
		}
	}
	if n := testing.AllocsPerRun(100, func() { MaskTokenInString("anything", "") }); n != 0 {
		t.Errorf("%v allocations without a token", n)
	}
}

func FuzzMaskTokenInString(f *testing.F) {
	f.Add("before ", " after", testToken, "git")
	f.Add("%", "=", "s3cr/t+ken%41", "")
	f.Fuzz(func(t *testing.T, before, after, token, user string) {
		// What is in the mask itself can be left over from it, and white space or letters around base64
		// text could belong to it.
		if len(token) < minPieceLen || strings.Contains(token, "*") {
			t.Skip()
		}
		everyByte := ""
		for _, c := range []byte(token) {
			everyByte += fmt.Sprintf("%%%02X", c)
		}
		for _, spelling := range []string{
			token, everyByte, strings.ToLower(everyByte),
			base64.StdEncoding.EncodeToString([]byte(user + ":" + token)),
			base64.RawURLEncoding.EncodeToString([]byte(user + ":" + token)),
		} {
			got := MaskTokenInString(before+" "+spelling+" "+after, token)
			if strings.Contains(got, token) {
				t.Errorf("%q still has the token: %q", spelling, got)
			}
			if !strings.Contains(token, " ") && !strings.Contains(before+after, "*") && strings.Contains(got, " "+spelling+" ") {
				t.Errorf("%q is not masked: %q", spelling, got)
			}
		}
	})
}

func logText(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "#%d %.2f [stage-1 %d/9] RUN go build ./... => sha256:%016x done, %d%% of %s\n",
			i, r.Float64()*10, i%9, r.Uint64(), r.IntN(100), "https://git.moleculesai.app/molecule-ai/template")
	}
	return b.String()[:n]
}

// spellings are those that MaskTokenInString finds, as texts.
func spellings(token string) []string {
	texts := []string{url.QueryEscape(token)}
	for _, p := range maskPieces(token) {
		texts = append(texts, p.text)
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}

// The two belong side by side: MaskTokenInString should not be slower than the way anyone would do it.
func BenchmarkMaskTokenInString(b *testing.B) {
	for _, bench := range maskBenchmarks() {
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(int64(len(bench.text)))
			b.ReportAllocs()
			for b.Loop() {
				MaskTokenInString(bench.text, testToken)
			}
		})
		b.Run(bench.name+"/ReplaceAll", func(b *testing.B) {
			all := spellings(testToken)
			b.SetBytes(int64(len(bench.text)))
			b.ReportAllocs()
			for b.Loop() {
				text := bench.text
				for _, spelling := range all {
					text = strings.ReplaceAll(text, spelling, mask)
				}
			}
		})
	}
}

type maskBenchmark struct{ name, text string }

func maskBenchmarks() []maskBenchmark {
	text := logText(64 << 10)
	often := strings.ReplaceAll(text, "https://", "https://x:"+testToken+"@")[:64<<10]
	return []maskBenchmark{
		{"a log line", text[:120]},
		{"64 KiB without it", text},
		{"64 KiB with it on each line", often},
		{"64 KiB of hex", strings.Repeat(testToken[:39]+"x", 64<<10/40)},
		{"64 KiB of percent signs", strings.Repeat("%9f%66", 64<<10/6)},
	}
}

func BenchmarkMaskTokenInURL(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		MaskTokenInURL("https://user:" + testToken + "@git.moleculesai.app/molecule-ai/template")
	}
}
