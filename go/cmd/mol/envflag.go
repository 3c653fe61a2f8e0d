package main

import (
	"fmt"
	"os"
	"strings"
)

// An envFlag collects variables for a workspace. As with docker's --env, a name
// without a value takes the value from this process, which keeps secrets off the
// command line.
type envFlag struct{ vars *[]string }

func (f envFlag) Set(s string) error {
	name, _, given := strings.Cut(s, "=")
	if name == "" {
		return fmt.Errorf("%q has no name", s)
	}
	if !given {
		value, ok := os.LookupEnv(name)
		if !ok {
			return fmt.Errorf("%s is not set", name)
		}
		s = name + "=" + value
	}
	*f.vars = append(*f.vars, s)
	return nil
}

// String returns "", because help and errors show it, and the values may be secrets.
func (f envFlag) String() string { return "" }

// Type is the name of the value in the help.
func (f envFlag) Type() string { return "NAME=value" }
