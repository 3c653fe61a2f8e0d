package main

import (
	"errors"
	"slices"
	"strings"
)

// A choice is a flag with one of several values; "" without the flag.
type choice struct {
	value string
	of    []string
	then  func(value string) // called with a valid value, if it is set
}

func (c *choice) Set(value string) error {
	if !slices.Contains(c.of, value) {
		last := len(c.of) - 1
		return errors.New("use " + strings.Join(c.of[:last], ", ") + " or " + c.of[last])
	}
	c.value = value
	if c.then != nil {
		c.then(value)
	}
	return nil
}

func (c *choice) String() string { return c.value }

// Type is the name of the value in the help.
func (c *choice) Type() string { return strings.Join(c.of, "|") }
