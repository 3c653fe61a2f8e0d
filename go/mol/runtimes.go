package mol

import (
	"slices"
	"strings"
)

// defaultRuntimes is the allowlist of Options without Runtimes, alphabetical. The library has the same.
var defaultRuntimes = []string{
	"autogen", "claude-code", "codex", "crewai", "deepagents", "gemini-cli", "hermes", "langgraph", "openclaw",
}

// IsKnownRuntime reports whether a runtime is on the default allowlist. The match is exact: no trimming, no folding
// of case. [Options.IsKnownRuntime] is the same for a list of one's own.
func IsKnownRuntime(name string) bool { return slices.Contains(defaultRuntimes, name) }

// KnownRuntimes returns the default allowlist in alphabetical order, as a copy that the caller may change.
func KnownRuntimes() []string { return slices.Clone(defaultRuntimes) }

// IsKnownRuntime reports whether a runtime is on the allowlist of these options. The match is exact.
func (o Options) IsKnownRuntime(name string) bool { return slices.Contains(o.allowlist(), name) }

// KnownRuntimes returns the allowlist of these options in alphabetical order, as a copy that the caller may change.
func (o Options) KnownRuntimes() []string { return slices.Sorted(slices.Values(o.allowlist())) }

func (o *Options) allowlist() []string {
	if o.Runtimes == nil {
		return defaultRuntimes
	}
	return o.Runtimes
}

// runtimesSetting is the list as the library takes it; the library checks the names.
func runtimesSetting(names []string) (string, error) {
	if names == nil {
		return "", nil
	}
	if len(names) == 0 {
		return "", &Error{
			Code:    CodeInvalidOption,
			Message: "option Runtimes is empty, so that no runtime would be known",
			Hint:    "list the runtimes, or leave it nil for the default ones",
		}
	}
	for _, name := range names {
		if name == "" || strings.ContainsRune(name, ',') {
			return "", &Error{
				Code:    CodeInvalidOption,
				Message: "option Runtimes has an invalid name: " + quoteShort(name),
				Hint:    "use lower-case letters, digits and '-'",
			}
		}
	}
	return strings.Join(names, ","), nil
}

// pinsSetting is the map as the library takes it; the library checks the names and the commits.
func pinsSetting(pins map[string]string) (string, error) {
	var entries []string
	for runtime, commit := range pins {
		if strings.ContainsAny(runtime+commit, ",=") {
			return "", &Error{
				Code:    CodeInvalidOption,
				Message: "option Pins has an invalid entry: " + quoteShort(runtime) + ": " + quoteShort(commit),
				Hint:    "use the names of runtimes, and all 40 or 64 hexadecimal digits of a commit",
			}
		}
		entries = append(entries, runtime+"="+commit)
	}
	slices.Sort(entries)
	return strings.Join(entries, ","), nil
}
