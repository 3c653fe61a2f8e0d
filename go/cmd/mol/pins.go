package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/spf13/cobra"
)

// maxPins is the largest file of pinned commits, in bytes.
const maxPins = 1 << 20

// commitKeys are the names of the field with an entry's commit.
var commitKeys = []string{"commit", "commit_sha", "sha"}

// refKey is the field with a commit, a branch or a tag. It is used if an entry has none of commitKeys.
const refKey = "ref"

// pinsText describes the file of --pins in the help and the manual page.
const pinsText = `--pins FILE reads commits from a JSON file. A runtime in the file is built from its commit
instead of the head of its branch. All other runtimes are built from their branch.
RUNTIME@SHA overrides both.

The file is an object of runtimes and commits:

  {"claude-code": "0123456789abcdef0123456789abcdef01234567"}

or a list of entries, or an object with such lists under any names, like the server's
manifest:

  {"plugins": [{"name": "browser", "repo": "org/plugin-browser", "ref": "main"}],
   "workspace_templates": [
    {"provider": "gitea", "runtime": "hermes", "commit": "0123456789abcdef0123456789abcdef01234567"}
  ]}

An entry has the name of the runtime in "runtime" and the commit in "commit", "commit_sha",
"sha" or, without these, in "ref". Other fields are ignored, and so is a list in which no
entry has a "runtime".

A commit has all 40 or 64 hexadecimal digits. These are errors: a branch instead of a commit,
an unknown runtime (see --runtimes), a list in which only some entries have a "runtime", two
commits for one runtime, a duplicate name in one object, and a file without a commit.`

// pinsTopic is `mol help pins`.
func pinsTopic() *cobra.Command {
	return &cobra.Command{Use: "pins", Short: "The file with pinned commits", Long: pinsText}
}

// readPins reads the file of --pins. Its errors name the file and the invalid entry.
func readPins(path string, allowlist mol.Options) (map[string]string, error) {
	pins, err := pinsFrom(path, allowlist)
	if err != nil {
		return nil, usageError{withPlace("--pins", err)}
	}
	return pins, nil
}

func pinsFrom(path string, allowlist mol.Options) (map[string]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxPins+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxPins:
		return nil, fmt.Errorf("%s: the file is larger than %s", path, size(maxPins))
	}
	if err := validJSON(data); err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	pins, err := parsePins(data, allowlist)
	if err != nil {
		return nil, withPlace(path, err)
	}
	return pins, nil
}

// withPlace adds the place of an error to its text. A mol.Error stays a mol.Error.
func withPlace(place string, err error) error {
	var detail *mol.Error
	if !errors.As(err, &detail) {
		return fmt.Errorf("%s: %w", place, err)
	}
	found := *detail
	found.Message = place + ": " + found.Message
	return &found
}

// validJSON checks the syntax. Its error begins with the line number.
func validJSON(data []byte) error {
	var whole json.RawMessage
	err := json.Unmarshal(data, &whole)
	if err == nil {
		return nil
	}
	at := len(data)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		at = int(syntax.Offset)
	}
	return fmt.Errorf("%d: invalid JSON: %w", 1+bytes.Count(data[:at], []byte("\n")), err)
}

// A pin is one entry of the file.
type pin struct {
	entry           string // its name in errors
	runtime, commit string
}

// parsePins parses a file that is valid JSON.
func parsePins(data []byte, allowlist mol.Options) (map[string]string, error) {
	entries, err := pinEntries(data)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("the file has no commit")
	}
	found := map[string]pin{}
	for _, e := range entries {
		if err := allowlist.CheckRuntime(e.runtime); err != nil {
			return nil, withPlace(e.entry, err)
		}
		if err := checkCommit(e.commit); err != nil {
			return nil, fmt.Errorf("%s: %w", e.entry, err)
		}
		if first, twice := found[e.runtime]; twice && !strings.EqualFold(first.commit, e.commit) {
			return nil, fmt.Errorf("%s and %s have different commits for one runtime", first.entry, e.entry)
		} else if !twice {
			found[e.runtime] = e
		}
	}
	pins := map[string]string{}
	for runtime, e := range found {
		pins[runtime] = e.commit
	}
	return pins, nil
}

// pinEntries returns the entries of any form of the file.
func pinEntries(data []byte) ([]pin, error) {
	switch kindOf(data) {
	case "a list":
		return listedPins(data)
	case "an object":
	default:
		return nil, fmt.Errorf("the file is %s, not an object or a list", kindOf(data))
	}
	members, err := membersOf(data)
	if err != nil {
		return nil, err
	}
	var pins []pin
	lists := 0
	for _, m := range members {
		if kindOf(m.value) != "a list" {
			continue
		}
		lists++
		if !namesRuntimes(m.value) {
			continue
		}
		listed, err := listedPins(m.value)
		if err != nil {
			return nil, fmt.Errorf("%s, %w", quoted(m.name), err)
		}
		for _, p := range listed {
			p.entry = quoted(m.name) + ", " + p.entry
			pins = append(pins, p)
		}
	}
	switch {
	case lists == 0:
		return mappedPins(members)
	case len(pins) == 0:
		return nil, errors.New(`the file has no commit: no entry of a list has a "runtime"`)
	}
	return pins, nil
}

// namesRuntimes reports whether any entry of a list has a runtime. Other lists are for something else, such as plugins.
func namesRuntimes(list []byte) bool {
	var entries []json.RawMessage
	if json.Unmarshal(list, &entries) != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(entry json.RawMessage) bool {
		var fields map[string]json.RawMessage
		if json.Unmarshal(entry, &fields) != nil {
			return false
		}
		_, found := fields["runtime"]
		return found
	})
}

// mappedPins returns the entries of an object of runtimes and commits.
func mappedPins(members []member) ([]pin, error) {
	var pins []pin
	for _, m := range members {
		commit, err := m.text()
		if err != nil {
			return nil, err
		}
		pins = append(pins, pin{quoted(m.name), m.name, commit})
	}
	return pins, nil
}

// listedPins returns the entries of a list.
func listedPins(data []byte) ([]pin, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	var pins []pin
	for i, raw := range list {
		name := fmt.Sprintf("entry %d", i+1)
		if kind := kindOf(raw); kind != "an object" {
			return nil, fmt.Errorf("%s is %s, not an object", name, kind)
		}
		members, err := membersOf(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		runtime, err := textOf(members, "runtime")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		name += " (" + quoted(runtime) + ")"
		commit, err := commitOf(members)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		pins = append(pins, pin{name, runtime, commit})
	}
	return pins, nil
}

// commitOf returns the commit of an entry.
func commitOf(members []member) (string, error) {
	has := func(names ...string) bool {
		return slices.ContainsFunc(members, func(m member) bool { return slices.Contains(names, m.name) })
	}
	if has(commitKeys...) || !has(refKey) {
		return textOf(members, commitKeys...)
	}
	ref, err := textOf(members, refKey)
	if err == nil && !wholeCommit.MatchString(ref) {
		return "", fmt.Errorf("%q is %s, not a full commit id: set it or %q to all 40 or 64 hexadecimal digits of a commit",
			refKey, quoted(ref), commitKeys[0])
	}
	return ref, err
}

// A member is a name and its value in an object.
type member struct {
	name  string
	value json.RawMessage
}

// membersOf returns the members of an object, in their order. A duplicate name is an error: encoding/json would use the
// last value, other programs the first.
func membersOf(object []byte) ([]member, error) {
	decoder := json.NewDecoder(bytes.NewReader(object))
	if _, err := decoder.Token(); err != nil { // the opening brace
		return nil, err
	}
	var members []member
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		m := member{name: fmt.Sprint(token)}
		if slices.ContainsFunc(members, func(other member) bool { return other.name == m.name }) {
			return nil, fmt.Errorf("duplicate name %s", quoted(m.name))
		}
		if err := decoder.Decode(&m.value); err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	return members, nil
}

// textOf returns the value of the only member with one of these names.
func textOf(members []member, names ...string) (string, error) {
	var found []member
	for _, m := range members {
		if slices.Contains(names, m.name) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%q is missing", names[0])
	case 1:
		return found[0].text()
	}
	return "", fmt.Errorf("both %q and %q are set", found[0].name, found[1].name)
}

// text returns the value of a member that must be a string.
func (m member) text() (string, error) {
	if kind := kindOf(m.value); kind != "a string" {
		return "", fmt.Errorf("%s is %s, not a string", quoted(m.name), kind)
	}
	var text string
	err := json.Unmarshal(m.value, &text)
	return text, err
}

// kindOf returns the type of a valid JSON value.
func kindOf(value []byte) string {
	value = bytes.TrimLeft(value, " \t\r\n")
	switch value[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	}
	return "a number"
}
