package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A cleanup removes what the demo created, in reverse order.
type cleanup struct {
	steps   []func(context.Context) error
	names   []string // what was created, in the order of creation, without duplicates
	numbers map[string]int
	note    string // what is not removed, and why
}

// add registers a function to run at the end.
func (c *cleanup) add(undo func(context.Context) error) { c.steps = append(c.steps, undo) }

// made counts something that the demo created.
func (c *cleanup) made(what string) {
	if c.numbers == nil {
		c.numbers = map[string]int{}
	}
	if c.numbers[what] == 0 {
		c.names = append(c.names, what)
	}
	c.numbers[what]++
}

// run removes everything. It continues after an error, and also runs when the demo's
// context has ended.
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

// String lists what was created: "3 containers, 2 images, cache".
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
