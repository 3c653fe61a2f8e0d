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

// plot is how the cost grows with the work, for both ways.
type plot struct {
	file, title, axis string
	ours, theirs      plotter.XYs
}

// drawn measures the plots.
func drawn(ctx context.Context, b *bed) ([]plot, error) {
	var plots []plot
	for _, measure := range []func(context.Context, *bed) (plot, error){byWaiters, bySize, byFiles} {
		p, err := measure(ctx, b)
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

func (b *bed) upTo(limit int, points ...int) []int {
	for i, n := range points {
		if n > limit {
			return points[:i]
		}
	}
	return points
}

// byWaiters: so many callers want an image that nobody has yet. The CLI way builds as often as it is
// called, so it is not asked to do it a thousand times at once.
func byWaiters(ctx context.Context, b *bed) (plot, error) {
	p := plot{file: "benchmark-waiters.svg", title: "Until every caller has the image of a new commit", axis: "callers at once"}
	for _, n := range b.upTo(b.runs(10_000, 10), 1, 10, 100, 1000, 10_000) {
		var ours, theirs []float64
		rounds := b.runs(3, 1)
		if n > 10 {
			rounds = 1
		}
		for range rounds {
			if _, err := b.template.release(ctx); err != nil {
				return p, err
			}
			o, err := b.inChild(ctx, job{Prefix: b.template.prefix(), Engine: b.settings.engine, Callers: n})
			if err != nil {
				return p, err
			}
			ours = append(ours, o.Seconds)
			if err := b.forget(ctx); err != nil {
				return p, err
			}
			if n > 100 {
				continue
			}
			old := b.cli(b.template)
			begun := time.Now()
			if _, err := many(ctx, n, n, func(ctx context.Context) error {
				_, _, err := old.ensure(ctx)
				return err
			}); err != nil {
				return p, err
			}
			theirs = append(theirs, time.Since(begun).Seconds())
			if err := b.forget(ctx); err != nil {
				return p, err
			}
		}
		p.point(n, ours, theirs)
	}
	return p, nil
}

func bySize(ctx context.Context, b *bed) (plot, error) {
	p := plot{file: "benchmark-size.svg", title: "Cold path in all, files of 1 MiB", axis: "MiB"}
	err := b.growing(ctx, &p, 1<<20, b.upTo(b.runs(256, 4), 1, 4, 16, 64, 256))
	p.point(b.largest.n, b.largest.ours, b.largest.theirs)
	return p, err
}

func byFiles(ctx context.Context, b *bed) (plot, error) {
	p := plot{file: "benchmark-files.svg", title: "Cold path in all, files of 1 KiB", axis: "files"}
	err := b.growing(ctx, &p, 1<<10, b.upTo(b.runs(50_000, 100), 10, 100, 1000, 10_000, 50_000))
	return p, err
}

func (b *bed) growing(ctx context.Context, p *plot, size int, counts []int) error {
	for _, n := range counts {
		t, err := b.newTemplate(ctx, fmt.Sprintf("grow-%d-%d", size, n), n, size)
		if err != nil {
			return err
		}
		rounds := b.runs(3, 1)
		if n*size > 50<<20 || n > 1000 {
			rounds = 1
		}
		ours, theirs, err := b.coldBothWays(ctx, t, rounds)
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

func (b *bed) coldBothWays(ctx context.Context, t template, rounds int) (ours, theirs []float64, err error) {
	client, err := mol.New(t.options(b.settings.engine))
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	old := b.cli(t)
	viaMol := &timed{after: b.forget, do: func(ctx context.Context) error {
		_, err := client.EnsureLocalImage(ctx, runtime)
		return err
	}}
	viaCLI := &timed{after: b.forget, do: func(ctx context.Context) error {
		_, _, err := old.ensure(ctx)
		return err
	}}
	err = inTurns(ctx, rounds, viaMol, viaCLI)
	return viaMol.took, viaCLI.took, err
}

// save draws the plot, both axes logarithmic.
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
		{"git and docker programs", p.theirs, color.RGBA{R: 0xd6, G: 0x5f, B: 0x1e, A: 0xff}, draw.TriangleGlyph{}},
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
	// The label of an axis' last tick is wider than the tick.
	const margin = vg.Centimeter / 2
	picture.Draw(draw.Crop(page, margin, -margin, margin, -margin))
	var text bytes.Buffer
	if _, err := canvas.WriteTo(&text); err != nil {
		return err
	}
	// The same bytes from the same figures, and no white space at the ends of lines.
	var lines []string
	for line := range strings.Lines(text.String()) {
		lines = append(lines, strings.TrimRight(line, " \t\r\n"))
	}
	return os.WriteFile(filepath.Join(dir, p.file), []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}
