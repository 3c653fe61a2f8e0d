// Yardstick answers with the Go package's pure functions what the tests of the Rust core ask: both must say the
// same. It reads one JSON object per line and writes one for each. It needs no library.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

type question struct {
	// Prefix, Runtime and Branch ask for the address of a branch,
	Prefix, Runtime, Branch string
	// Body for the commit in an answer of Gitea's,
	Body []byte
	// Text and Token for the text without the token.
	Text, Token string
}

type answer struct {
	Value string `json:"value"`
	// Error is the name of a code.
	Error string `json:"error,omitempty"`
}

func main() {
	questions := json.NewDecoder(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for {
		var q question
		err := questions.Decode(&q)
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			err = answers.Encode(say(q))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "yardstick:", err)
			os.Exit(1)
		}
	}
}

func say(q question) answer {
	switch {
	case q.Branch != "":
		return result(mol.GiteaBranchAPIURL(q.Prefix, q.Runtime, q.Branch))
	case q.Body != nil:
		return result(mol.ParseGiteaBranchHeadSha(q.Body))
	default:
		return answer{Value: mol.MaskTokenInString(q.Text, q.Token)}
	}
}

func result(value string, err error) answer {
	if err == nil {
		return answer{Value: value}
	}
	var failure *mol.Error
	if !errors.As(err, &failure) {
		return answer{Error: err.Error()}
	}
	return answer{Error: failure.Code.String()}
}
