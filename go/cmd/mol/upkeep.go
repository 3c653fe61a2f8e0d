package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/charmbracelet/x/ansi"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

func (a *app) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the local images",
		Long: "List the engine's images by runtime and platform, each group newest first, and the size of\n" +
			"the fetched templates in the cache.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c library) error {
				var inventory mol.Inventory
				err := a.showIfSlow("listing the images and templates", func() (err error) {
					inventory, err = c.List(ctx)
					return err
				})
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printJSON(inventoryResult{succeeded, inventory})
				}
				return a.printInventory(inventory)
			})
		},
	}
	a.upkeepFlags(cmd)
	return cmd
}

func (a *app) pruneCommand() *cobra.Command {
	keep, recent, dryRun := 2, 10*time.Minute, false
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove old images and fetched templates",
		Long: "Remove old images that mol or a server built, and old templates from the cache. It keeps\n" +
			"the newest two images of each runtime and platform, the newest two templates of each\n" +
			"runtime, everything built or used within the last ten minutes, and images that a container\n" +
			"uses or that the tag latest points at. Images of other tools are never removed.",
		Example: "  mol prune --dry-run\n  mol prune --keep 1\n  mol prune --keep 0 --keep-recent 1h",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if keep < 0 {
				return usageError{fmt.Errorf("--keep is negative: %d", keep)}
			}
			if recent < 0 {
				return usageError{fmt.Errorf("--keep-recent is negative: %s", recent)}
			}
			options := mol.PruneOptions{KeepPerRuntime: keep, KeepRecent: recent, DryRun: dryRun}
			// The library takes 0 as the default.
			if keep == 0 {
				options.KeepPerRuntime = -1
			}
			if recent == 0 {
				options.KeepRecent = -1
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c library) error {
				doing := "removing old images and templates"
				if dryRun {
					doing = "looking for old images and templates"
				}
				var report mol.PruneReport
				err := a.showIfSlow(doing, func() (err error) {
					report, err = c.Prune(ctx, options)
					return err
				})
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printJSON(pruneResult{succeeded, report})
				}
				return a.printPruned(report)
			})
		},
	}
	a.upkeepFlags(cmd)
	cmd.Flags().IntVar(&keep, "keep", keep, "how many of the newest images (of each runtime and platform) and templates (of each runtime) to keep")
	cmd.Flags().DurationVar(&recent, "keep-recent", recent, "keep everything that was built or used within this time; 0 turns this off")
	cmd.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "only show what would be removed")
	return cmd
}

type inventoryResult struct {
	outcome
	mol.Inventory
}

type pruneResult struct {
	outcome
	mol.PruneReport
}

func (a *app) printInventory(inventory mol.Inventory) error {
	if len(inventory.Images) > 0 {
		err := printTable(a.stdout, "RUNTIME\tCOMMIT\tPLATFORM\tCREATED\tSIZE\tSTATE", inventory.Images, func(image mol.LocalImage) []string {
			var state []string
			if image.Latest {
				state = append(state, "latest")
			}
			if len(image.UsedBy) > 0 {
				state = append(state, "used by "+strings.Join(image.UsedBy, ", "))
			}
			return []string{
				image.Runtime, cmp.Or(short(image.CommitSHA), "-"), cmp.Or(image.Platform, "-"), humanize.Time(image.Created()),
				size(image.Bytes), cmp.Or(strings.Join(state, ", "), "-"),
			}
		})
		if err != nil {
			return err
		}
	}
	var cached int64
	for _, tree := range inventory.Trees {
		cached += tree.Bytes
	}
	return a.println(fmt.Sprintf("%s, and %s in the cache (%s)",
		count(int64(len(inventory.Images)), "image"), count(int64(len(inventory.Trees)), "template"), size(cached)))
}

func (a *app) printPruned(report mol.PruneReport) error {
	type line struct {
		action mol.PruneAction
		what   string
		bytes  int64
		reason string
	}
	var lines []line
	for _, image := range report.Images {
		ref := strings.TrimPrefix(image.Ref, mol.LocalImagePrefix()+"/workspace-template-")
		lines = append(lines, line{image.Action, "image " + ref, image.OwnBytes, image.Reason})
	}
	for _, tree := range report.Trees {
		lines = append(lines, line{tree.Action, "template " + tree.Runtime + ":" + short(tree.CommitSHA), tree.Bytes, tree.Reason})
	}
	if len(lines) > 0 {
		err := printTable(a.stdout, "ACTION\tWHAT\tSIZE\tWHY", lines, func(l line) []string {
			return []string{string(l.action), l.what, size(l.bytes), l.reason}
		})
		if err != nil {
			return err
		}
	}
	return a.println(freed(report))
}

// freed describes how much space was freed. For images it is an estimate, because engines do not report what a removal
// frees.
func freed(report mol.PruneReport) string {
	text := "freed "
	if report.DryRun {
		text = "dry run: nothing was removed; this would free "
	}
	removed := func(image mol.PrunedImage) bool { return image.Action == mol.PruneRemoved }
	if slices.ContainsFunc(report.Images, removed) {
		text += "about "
	}
	return text + size(report.FreedBytes)
}

// printTable prints a table. Its cells are cleaned, so foreign text cannot break the lines. Rows are cut at the
// terminal's width, or at longestLine if out is not a terminal.
func printTable[T any](out io.Writer, head string, rows []T, cells func(T) []string) error {
	width := longestLine
	if f, ok := isTerminal(out); ok {
		width, _, _ = termSize(f)
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, head)
	for _, row := range rows {
		all := cells(row)
		for i := range all {
			all[i] = clean(all[i])
		}
		_, _ = fmt.Fprintln(w, strings.Join(all, "\t"))
	}
	_ = w.Flush()
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(out, ansi.Truncate(strings.TrimRight(line, " \n"), width, "…")); err != nil {
			return err
		}
	}
	return nil
}
