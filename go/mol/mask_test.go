package mol

import (
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

func TestMaskTokenInString(t *testing.T) {
	type vector struct {
		vectorName
		Text  string `json:"text"`
		Token string `json:"token"`
		Want  string `json:"want"`
	}
	eachVector(t, "mask_token.json", func(t *testing.T, v vector) {
		if got := MaskTokenInString(v.Text, v.Token); got != v.Want {
			t.Errorf("got %q, want %q", got, v.Want)
		}
	})
}

func TestMaskTokenInStringOfInvalidUTF8(t *testing.T) {
	for _, v := range []struct{ text, token, want string }{
		{"\xff tok-1234 \xc3", "tok-1234", "\xff *** \xc3"},
		{"\xc3tok-1234\xa9", "tok-1234", "\xc3***\xa9"},
		{"no token \xff\xfe", "tok-1234", "no token \xff\xfe"},
		{"a t\xffk-1234 b", "t\xffk-1234", "a *** b"},
		{"a t%FFk-1234 b", "t\xffk-1234", "a *** b"},
		{"a T\xffK-1234 b", "t\xffk-1234", "a *** b"},
		{"a t\ufffdk-1234 b", "t\xffk-1234", "a t\ufffdk-1234 b"},
	} {
		if got := MaskTokenInString(v.text, v.token); got != v.want {
			t.Errorf("%q in %q: got %q, want %q", v.token, v.text, got, v.want)
		}
	}
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

func logText(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "#%d %.2f [stage-1 %d/9] RUN go build ./... => sha256:%016x done, %d%% of %s\n",
			i, r.Float64()*10, i%9, r.Uint64(), r.IntN(100), "https://git.moleculesai.app/molecule-ai/template")
	}
	return b.String()[:n]
}

// Each text is masked by MaskTokenInString, and by strings.ReplaceAll for each pattern, which is what a caller
// would write instead.
func BenchmarkMaskTokenInString(b *testing.B) {
	replaced := []string{url.QueryEscape(testToken)}
	for _, p := range tokenPatterns(testToken) {
		replaced = append(replaced, p.text)
	}
	slices.Sort(replaced)
	replaced = slices.Compact(replaced)
	log := logText(64 << 10)
	for _, bench := range []struct{ name, text string }{
		{"a log line", log[:120]},
		{"1 KiB without it", log[:1<<10]},
		{"64 KiB without it", log},
		{"64 KiB without it or an escape", strings.ReplaceAll(log, "%", "/")},
		{"64 KiB with it on each line", strings.ReplaceAll(log, "https://", "https://x:"+testToken+"@")[:64<<10]},
		{"64 KiB of hex", strings.Repeat(testToken[:39]+"x", 64<<10/40)},
		{"64 KiB of percent signs", strings.Repeat("%9f%66", 64<<10/6)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(int64(len(bench.text)))
			b.ReportAllocs()
			for b.Loop() {
				MaskTokenInString(bench.text, testToken)
			}
		})
		b.Run(bench.name+"/ReplaceAll", func(b *testing.B) {
			b.SetBytes(int64(len(bench.text)))
			b.ReportAllocs()
			for b.Loop() {
				text := bench.text
				for _, spelling := range replaced {
					text = strings.ReplaceAll(text, spelling, mask)
				}
			}
		})
	}
}

func BenchmarkMaskTokenInURL(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		MaskTokenInURL("https://user:" + testToken + "@git.moleculesai.app/molecule-ai/template")
	}
}
