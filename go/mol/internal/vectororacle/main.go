// Command vectororacle runs the pure functions of the Go package for the tests of the Rust core, which must return the same
// results. It reads one JSON object per line and writes one for each. It does not need the library.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

type request struct {
	// Prefix, Runtime and Branch: return the URL of a branch.
	Prefix, Runtime, Branch string
	// Body: return the commit in this response of Gitea.
	Body []byte
}

type response struct {
	Value string `json:"value"`
	// Error is the name of the error's code.
	Error string `json:"error,omitempty"`
}

func main() {
	requests := json.NewDecoder(os.Stdin)
	responses := json.NewEncoder(os.Stdout)
	for {
		var r request
		err := requests.Decode(&r)
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			err = responses.Encode(run(r))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "vectororacle:", err)
			os.Exit(1)
		}
	}
}

func run(r request) response {
	if r.Branch != "" {
		return result(mol.GiteaBranchAPIURL(r.Prefix, r.Runtime, r.Branch))
	}
	return result(mol.ParseGiteaBranchHeadSha(r.Body))
}

func result(value string, err error) response {
	if err == nil {
		return response{Value: value}
	}
	var failure *mol.Error
	if !errors.As(err, &failure) {
		return response{Error: err.Error()}
	}
	return response{Error: failure.Code.String()}
}
