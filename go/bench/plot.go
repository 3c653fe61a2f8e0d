package main

import (
	"bytes"
	"context"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strings"
	"time"

	gonum "gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// plot shows how the time grows with the workload, for both ways.
type plot struct {
	file, title, axis string
	ours, theirs      plotter.XYs
}

// measurePlots measures the points of the plots.
func measurePlots(ctx context.Context, env *testEnv) ([]plot, error) {
	var plots []plot
	for _, measure := range []func(context.Context, *testEnv) (plot, error){byWaiters, bySize, byFiles} {
		p, err := measure(ctx, env)
		if err != nil {
			return nil, err
		}
		plots = append(plots, p)
	}
	return plots, nil
}

func (p *plot) point(x int, ours, theirs []float64) {
	fmt.Fprintf(os.Stderr, "   %s, %d: %s | %s\n", p.file, x, spread(ours, seconds), spread(theirs, seconds))
	p.ours = append(p.ours, plotter.XY{X: float64(x), Y: median(ours)})
	if len(theirs) > 0 {
		p.theirs = append(p.theirs, plotter.XY{X: float64(x), Y: median(theirs)})
	}
}

// upTo returns the points up to a limit. They are in ascending order.
func upTo(limit int, points ...int) []int {
	for i, n := range points {
		if n > limit {
			return points[:i]
		}
	}
	return points
}

// byWaiters measures how long a number of callers wait for an image that does not exist yet. The CLI way builds once per
// caller, so it is measured only up to 100 callers.
func byWaiters(ctx context.Context, env *testEnv) (plot, error) {
	p := plot{file: "benchmark-waiters.svg", title: "Time until all callers have the image of a new commit", axis: "concurrent callers"}
	for _, n := range upTo(env.runs(10_000, 10), 1, 10, 100, 1000, 10_000) {
		var ours, theirs []float64
		rounds := env.runs(3, 1)
		if n > 10 {
			rounds = 1
		}
		for range rounds {
			if _, err := env.template.release(ctx); err != nil {
				return p, err
			}
			o, err := env.inChild(ctx, job{Prefix: env.template.prefix(), Engine: env.settings.engine, Callers: n})
			if err != nil {
				return p, err
			}
			ours = append(ours, o.Seconds)
			if err := env.forget(ctx); err != nil {
				return p, err
			}
			if n > 100 {
				continue
			}
			old := env.cli(env.template)
			started := time.Now()
			if _, err := many(ctx, n, n, func(ctx context.Context) error {
				_, _, err := old.ensure(ctx)
				return err
			}); err != nil {
				return p, err
			}
			theirs = append(theirs, time.Since(started).Seconds())
			if err := env.forget(ctx); err != nil {
				return p, err
			}
		}
		p.point(n, ours, theirs)
	}
	return p, nil
}

func bySize(ctx context.Context, env *testEnv) (plot, error) {
	p := plot{file: "benchmark-size.svg", title: "Whole cold path, files of 1 MiB", axis: "MiB"}
	err := env.growing(ctx, &p, 1<<20, upTo(env.runs(256, 4), 1, 4, 16, 64, 256))
	p.point(env.largest.n, env.largest.ours, env.largest.theirs)
	return p, err
}

func byFiles(ctx context.Context, env *testEnv) (plot, error) {
	p := plot{file: "benchmark-files.svg", title: "Whole cold path, files of 1 KiB", axis: "files"}
	err := env.growing(ctx, &p, 1<<10, upTo(env.runs(50_000, 100), 10, 100, 1000, 10_000, 50_000))
	return p, err
}

func (env *testEnv) growing(ctx context.Context, p *plot, size int, counts []int) error {
	for _, n := range counts {
		t, err := env.newTemplate(ctx, fmt.Sprintf("grow-%d-%d", size, n), n, size)
		if err != nil {
			return err
		}
		rounds := env.runs(3, 1)
		if n*size > 50<<20 || n > 1000 {
			rounds = 1
		}
		ours, theirs, err := env.coldBothWays(ctx, t, rounds)
		if err != nil {
			return err
		}
		p.point(n, ours, theirs)
		if err := t.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (env *testEnv) coldBothWays(ctx context.Context, t template, rounds int) (ours, theirs []float64, err error) {
	client, err := mol.New(t.options(env.settings.engine))
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	old := env.cli(t)
	withMol := &timed{after: env.forget, do: func(ctx context.Context) error {
		_, err := client.EnsureLocalImage(ctx, runtime)
		return err
	}}
	withCLI := &timed{after: env.forget, do: func(ctx context.Context) error {
		_, _, err := old.ensure(ctx)
		return err
	}}
	err = inTurns(ctx, rounds, withMol, withCLI)
	return withMol.took, withCLI.took, err
}

// save draws the plot, with logarithmic axes.
func (p plot) save(dir string) error {
	picture := gonum.New()
	picture.Title.Text, picture.X.Label.Text, picture.Y.Label.Text = p.title, p.axis, "seconds"
	picture.BackgroundColor = color.Transparent
	picture.X.Scale, picture.Y.Scale = gonum.LogScale{}, gonum.LogScale{}
	picture.X.Tick.Marker, picture.Y.Tick.Marker = gonum.LogTicks{Prec: -1}, gonum.LogTicks{Prec: -1}
	picture.Legend.Top, picture.Legend.Left = true, true
	picture.Add(plotter.NewGrid())
	for _, series := range []struct {
		name   string
		points plotter.XYs
		color  color.Color
		shape  draw.GlyphDrawer
	}{
		{"libmol", p.ours, color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}, draw.CircleGlyph{}},
		{"git and docker commands", p.theirs, color.RGBA{R: 0xd6, G: 0x5f, B: 0x1e, A: 0xff}, draw.TriangleGlyph{}},
	} {
		line, points, err := plotter.NewLinePoints(series.points)
		if err != nil {
			return err
		}
		line.Color, line.Width = series.color, vg.Points(1.5)
		points.Color, points.Shape, points.Radius = series.color, series.shape, vg.Points(3)
		picture.Add(line, points)
		picture.Legend.Add(series.name, line, points)
	}
	canvas, err := draw.NewFormattedCanvas(16*vg.Centimeter, 10*vg.Centimeter, "svg")
	if err != nil {
		return err
	}
	page := draw.New(canvas)
	page.SetColor(color.White)
	page.Fill(page.Rectangle.Path())
	// A margin, because the label of the last tick extends beyond the axis.
	const margin = vg.Centimeter / 2
	picture.Draw(draw.Crop(page, margin, -margin, margin, -margin))
	var text bytes.Buffer
	if _, err := canvas.WriteTo(&text); err != nil {
		return err
	}
	// Remove trailing white space.
	var lines []string
	for line := range strings.Lines(text.String()) {
		lines = append(lines, strings.TrimRight(line, " \t\r\n"))
	}
	return os.WriteFile(filepath.Join(dir, p.file), []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}
