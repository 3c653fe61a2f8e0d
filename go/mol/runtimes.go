package mol

import "slices"

// The allowlist, alphabetical. IsKnownRuntime has its own copy, as a switch: the compiler turns that into
// comparisons without a hash or an allocation. A test holds the two together.
var knownRuntimes = []string{
	"autogen", "claude-code", "codex", "crewai", "deepagents", "gemini-cli", "hermes", "langgraph", "openclaw",
}

// IsKnownRuntime tells whether a runtime is on the allowlist. The match is exact: no trimming, no folding
// of case.
func IsKnownRuntime(name string) bool {
	switch name {
	case "autogen", "claude-code", "codex", "crewai", "deepagents", "gemini-cli", "hermes", "langgraph", "openclaw":
		return true
	}
	return false
}

// KnownRuntimes gives the allowlist in alphabetical order, as a copy that the caller may change.
func KnownRuntimes() []string {
	return slices.Clone(knownRuntimes)
}
