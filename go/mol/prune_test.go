package mol

import (
	"math"
	"testing"
	"time"
)

func TestPruneOptionsZeroIsTheDefaultAndNegativeIsNone(t *testing.T) {
	for o, want := range map[PruneOptions]task{
		{}: {kind: taskPrune, keep: 2, recentMS: 0},
		{KeepPerRuntime: 5, KeepRecent: time.Hour, DryRun: true}:  {kind: taskPrune, keep: 5, recentMS: 3_600_000, dryRun: true},
		{KeepPerRuntime: -1, KeepRecent: -1}:                      {kind: taskPrune, keep: 0, recentMS: -1},
		{KeepPerRuntime: math.MinInt, KeepRecent: math.MinInt64}:  {kind: taskPrune, keep: 0, recentMS: -1},
		{KeepPerRuntime: 1, KeepRecent: time.Nanosecond}:          {kind: taskPrune, keep: 1, recentMS: 1},
		{KeepPerRuntime: 1, KeepRecent: time.Duration(1<<63 - 1)}: {kind: taskPrune, keep: 1, recentMS: (1<<63 - 1) / 1_000_000},
	} {
		if got := o.task(); got != want {
			t.Errorf("%+v: %+v, want %+v", o, got, want)
		}
	}
}
