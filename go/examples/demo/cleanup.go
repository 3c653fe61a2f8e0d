package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A cleanup takes back what the demo made, the last thing first.
type cleanup struct {
	steps   []func(context.Context) error
	names   []string // of what was made, in the order of the first one of each
	numbers map[string]int
	note    string // what stays, and why
}

// add has undo run at the end.
func (c *cleanup) add(undo func(context.Context) error) { c.steps = append(c.steps, undo) }

// made lists one more of what the demo made.
func (c *cleanup) made(what string) {
	if c.numbers == nil {
		c.numbers = map[string]int{}
	}
	if c.numbers[what] == 0 {
		c.names = append(c.names, what)
	}
	c.numbers[what]++
}

// run takes everything back, whatever fails on the way, and also after the
// demo's own context has ended.
func (c *cleanup) run() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var failed []error
	for _, undo := range slices.Backward(c.steps) {
		if err := undo(ctx); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// String lists what was made: "3 containers, 2 images, cache".
func (c *cleanup) String() string {
	var parts []string
	for _, name := range slices.Backward(c.names) {
		if n := c.numbers[name]; n > 1 {
			name = fmt.Sprintf("%d %ss", n, name)
		}
		parts = append(parts, name)
	}
	return strings.Join(parts, ", ")
}
