package mol

import (
	"slices"
	"strconv"
	"strings"
)

// defaultRuntimes is the allowlist of Options without Runtimes, sorted. The library has the same list.
var defaultRuntimes = []string{
	"autogen", "claude-code", "codex", "crewai", "deepagents", "gemini-cli", "hermes", "langgraph", "openclaw",
}

// IsKnownRuntime reports whether a runtime is on the default allowlist. The match is exact: no trimming, no folding of
// case. [Options.IsKnownRuntime] uses the allowlist of Options.
func IsKnownRuntime(name string) bool { return slices.Contains(defaultRuntimes, name) }

// KnownRuntimes returns the default allowlist in alphabetical order, as a copy that the caller may change.
func KnownRuntimes() []string { return slices.Clone(defaultRuntimes) }

// IsKnownRuntime reports whether a runtime is on the allowlist of these options. The match is exact.
func (o Options) IsKnownRuntime(name string) bool { return slices.Contains(o.allowlist(), name) }

// KnownRuntimes returns the allowlist of these options in alphabetical order, as a copy that the caller may change.
func (o Options) KnownRuntimes() []string { return slices.Sorted(slices.Values(o.allowlist())) }

// CheckRuntime returns nil for a runtime on the allowlist of these options. For any other name it returns the error of
// [Client.EnsureLocalImage]: errors.Is holds for [ErrUnknownRuntime], and the hint has the nearest known name and the
// whole list. If the name contains the token of these options, it is masked.
func (o Options) CheckRuntime(name string) error {
	if o.IsKnownRuntime(name) {
		return nil
	}
	known, mask := o.KnownRuntimes(), masker(o.Token)
	hint := "the known runtimes are " + strings.Join(known, ", ")
	if nearest := nearestRuntime(mask(name), known); nearest != "" {
		hint = "did you mean " + nearest + "? " + hint
	}
	shown := shownRuntime(name, mask)
	return &Error{
		Code:    CodeUnknownRuntime,
		Runtime: shown,
		Message: `unknown runtime "` + shown + `"`,
		Hint:    hint,
	}
}

// shownRuntime returns the name of a runtime for an error, on one line. The name is masked before it is truncated: a
// part of a token would not be recognised.
func shownRuntime(name string, mask func(string) string) string {
	quoted := strconv.Quote(shorten(mask(name)))
	return quoted[1 : len(quoted)-1]
}

// maxNameLen is the maximum length of the name of a runtime, in characters.
const maxNameLen = 64

// shorten truncates a name for an error.
func shorten(name string) string {
	count := 0
	for i := range name {
		if count == maxNameLen {
			return name[:i] + "…"
		}
		count++
	}
	return name
}

// nearestRuntime returns the runtime that was probably meant, or "". It allows for missing separators, wrong case, only
// the first part of a name, and a mistyped letter or two. The library has the same rule (src/names/runtimes.rs).
func nearestRuntime(name string, known []string) string {
	asked := lettersAndDigits(name)
	nearest, distance := "", len(asked)/3+1
	for _, runtime := range known {
		if d := nameDistance(lettersAndDigits(runtime), asked); d < distance {
			nearest, distance = runtime, d
		}
	}
	return nearest
}

// lettersAndDigits returns the letters and digits of a name, in lower case, at most maxNameLen of them.
func lettersAndDigits(name string) string {
	var kept []byte
	for i := 0; i < len(name) && len(kept) < maxNameLen; i++ {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if isLowerAlnum(c) {
			kept = append(kept, c)
		}
	}
	return string(kept)
}

// nameDistance returns the distance of two names. It is 1 if one is a prefix of the other.
func nameDistance(known, asked string) int {
	if len(asked) >= 3 && (strings.HasPrefix(known, asked) || strings.HasPrefix(asked, known)) {
		if known == asked {
			return 0
		}
		return 1
	}
	return alignmentDistance(known, asked)
}

// alignmentDistance returns the optimal string alignment distance: the number of insertions, deletions, replacements and
// swaps of neighbouring letters that turn one text into the other, where no part is edited twice.
func alignmentDistance(a, b string) int {
	// Distances of the prefixes of a and b: two rows before, the row before, and this row.
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, above, row = above, row, before
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replaced := above[j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			row[j] = min(above[j]+1, row[j-1]+1, replaced)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}

func (o *Options) allowlist() []string {
	if o.Runtimes == nil {
		return defaultRuntimes
	}
	return o.Runtimes
}

// runtimesSetting returns the list in the library's syntax; the library checks the names. Names are masked before an
// error truncates them.
func runtimesSetting(names []string, mask func(string) string) (string, error) {
	if names == nil {
		return "", nil
	}
	if len(names) == 0 {
		return "", &Error{
			Code:    CodeInvalidOption,
			Message: "option Runtimes is an empty list, which allows no runtime",
			Hint:    "list the runtimes, or leave it nil for the default ones",
		}
	}
	for _, name := range names {
		if name == "" || strings.ContainsRune(name, ',') {
			return "", &Error{
				Code:    CodeInvalidOption,
				Message: "option Runtimes has an invalid name: " + quoteShort(mask(name)),
				Hint:    "use lower-case letters, digits and '-'",
			}
		}
	}
	return strings.Join(names, ","), nil
}

// pinsSetting returns the map in the library's syntax; the library checks the names and the commits. Both are masked
// before an error truncates them.
func pinsSetting(pins map[string]string, mask func(string) string) (string, error) {
	var entries []string
	for runtime, commit := range pins {
		if strings.ContainsAny(runtime+commit, ",=") {
			return "", &Error{
				Code:    CodeInvalidOption,
				Message: "option Pins has an invalid entry: " + quoteShort(mask(runtime)) + ": " + quoteShort(mask(commit)),
				Hint:    "use the names of runtimes, and all 40 or 64 hexadecimal digits of a commit",
			}
		}
		entries = append(entries, runtime+"="+commit)
	}
	slices.Sort(entries)
	return strings.Join(entries, ","), nil
}
