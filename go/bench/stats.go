package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// quantile returns a quantile of an unsorted series, with linear interpolation.
func quantile(series []float64, q float64) float64 {
	if len(series) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(series))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

func median(series []float64) float64 { return quantile(series, 0.5) }

// ratios returns the ratio of each pair of two series that were measured in turns, under the same load.
func ratios(a, b []float64) []float64 {
	all := make([]float64, min(len(a), len(b)))
	for i := range all {
		all[i] = a[i] / b[i]
	}
	return all
}

// unit formats a number with its unit.
type unit func(float64) string

// seconds formats a time with a suitable unit.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Microsecond:
		return fmt.Sprintf("%.1f ns", s*1e9)
	case d < time.Millisecond:
		return fmt.Sprintf("%.1f µs", s*1e6)
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.2f ms", s*1e3)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", s*1e3)
	}
	return fmt.Sprintf("%.2f s", s)
}

func mebibytes(bytes float64) string { return fmt.Sprintf("%.2f MiB", bytes/(1<<20)) }

func perSecond(n float64) string { return fmt.Sprintf("%.0f/s", n) }

func count(n float64) string { return fmt.Sprintf("%.0f", n) }

// spread formats the median with the 5th and 95th percentile, or a single number.
func spread(series []float64, write unit) string {
	switch len(series) {
	case 0:
		return ""
	case 1:
		return write(series[0])
	}
	return fmt.Sprintf("%s (%s to %s)", write(median(series)), write(quantile(series, 0.05)), write(quantile(series, 0.95)))
}
