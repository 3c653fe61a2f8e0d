package mol

import (
	"context"
	"math"
	goruntime "runtime"
	"time"
)

// PruneOptions are the options of [Client.Prune].
type PruneOptions struct {
	// KeepPerRuntime is how many of the newest images of each runtime and platform, and of the newest fetched templates
	// of each runtime, are kept. 0: two. Negative: none, except those that [Client.Prune] always keeps.
	KeepPerRuntime int
	// KeepRecent is how long an image or a template is kept after it was built or returned by a call. 0: ten minutes.
	// Negative: recent ones are not kept, so the image of a reference that a call has just returned may be removed. See
	// [Client.Prune] for calls of other processes.
	KeepRecent time.Duration
	// DryRun changes nothing and returns the report of what would be done.
	DryRun bool
}

const defaultKeep = 2

func (o PruneOptions) task() task {
	keep := o.KeepPerRuntime
	switch {
	case keep == 0:
		keep = defaultKeep
	case keep < 0:
		keep = 0
	}
	return task{kind: taskPrune, keep: uint32(min(keep, math.MaxInt32)), recentMS: recentMS(o.KeepRecent), dryRun: o.DryRun}
}

// recentMS converts KeepRecent for the library: 0 is the default, negative is none.
func recentMS(d time.Duration) int64 {
	if d > 0 {
		// Not rounded down to 0, which is the default.
		return max(d.Milliseconds(), 1)
	}
	return max(int64(d), -1)
}

// LocalImage is an image of this package in the engine.
type LocalImage struct {
	// Ref is the reference with the commit; if there is none, the one with :latest.
	Ref string `json:"ref"`
	// Runtime is the runtime name.
	Runtime string `json:"runtime"`
	// Platform is the platform of the image, "" if unknown.
	Platform string `json:"platform"`
	// CommitSHA is the full commit id, "" if unknown.
	CommitSHA string `json:"commit_sha"`
	// ImageID is the engine's id of the image.
	ImageID string `json:"image_id"`
	// CreatedUnix is [LocalImage.Created] in seconds since 1970.
	CreatedUnix int64 `json:"created_unix"`
	// Bytes is the size of the image, including layers shared with other images; OwnBytes is the size without these, as
	// the engine reports it.
	Bytes    int64 `json:"bytes"`
	OwnBytes int64 `json:"own_bytes"`
	// Latest reports whether the moving tag of the runtime points to the image.
	Latest bool `json:"latest"`
	// UsedBy are the names of the containers created from it, running or not.
	UsedBy []string `json:"used_by"`
	// OtherRefs are tags that this package has not set.
	OtherRefs []string `json:"other_refs"`
}

// CachedTree is a fetched template in the cache.
type CachedTree struct {
	// Path is the folder of the tree.
	Path string `json:"path"`
	// Runtime is the runtime name.
	Runtime string `json:"runtime"`
	// CommitSHA is the full commit id; its first twelve digits if the tree is incomplete.
	CommitSHA string `json:"commit_sha"`
	// CreatedUnix is [CachedTree.Created] in seconds since 1970.
	CreatedUnix int64 `json:"created_unix"`
	// Bytes is the disk usage of the tree.
	Bytes int64 `json:"bytes"`
	// Whole is false for an incomplete tree, of a fetch that is running or whose process was killed.
	Whole bool `json:"whole"`
}

// Inventory lists the images and fetched templates of this library. Within each runtime they are sorted by age, the
// newest first.
type Inventory struct {
	// Endpoint is the address of the engine that has the images, as in [Image].
	Endpoint string       `json:"endpoint"`
	Images   []LocalImage `json:"images"`
	Trees    []CachedTree `json:"trees"`
}

// PruneAction is what was done with an image or a tree, or with [PruneOptions.DryRun] would be done.
type PruneAction string

const (
	// PruneKept means that it was kept.
	PruneKept PruneAction = "kept"
	// PruneUntagged means that this package's tag was removed from an image that another tag or image still uses.
	PruneUntagged PruneAction = "untagged"
	// PruneRemoved means that it was removed.
	PruneRemoved PruneAction = "removed"
)

// PrunedImage is an image and what was done with it.
type PrunedImage struct {
	LocalImage
	Action PruneAction `json:"action"`
	// Reason says why, in a few words.
	Reason string `json:"reason"`
}

// PrunedTree is a fetched template and what was done with it.
type PrunedTree struct {
	CachedTree
	Action PruneAction `json:"action"`
	// Reason says why, in a few words.
	Reason string `json:"reason"`
}

// PruneReport lists all images and trees, and what was done with each.
type PruneReport struct {
	// DryRun reports whether this was a dry run, which changes nothing.
	DryRun bool `json:"dry_run"`
	// FreedBytes is the disk usage of the removed trees plus the OwnBytes of the removed images. For images it is an
	// estimate: less space is freed if the engine's build cache has the same layers, and more if only removed images
	// shared a layer.
	FreedBytes int64         `json:"freed_bytes"`
	Images     []PrunedImage `json:"images"`
	Trees      []PrunedTree  `json:"trees"`
}

// List returns the images of all runtimes in the engine, with the isolation of the options, and the fetched templates in
// the cache. The context is as for [Client.EnsureLocalImage].
func (c *Client) List(ctx context.Context) (Inventory, error) {
	var inventory Inventory
	err := c.inner.report(ctx, task{kind: taskList}, &inventory)
	goruntime.KeepAlive(c)
	if err != nil {
		return Inventory{}, err
	}
	return inventory, nil
}

// Prune removes old images of this library from the engine, and old templates from the cache. It keeps the newest of each
// runtime, those built or returned by a call within the last ten minutes, images that a container uses, the image with
// the tag latest, those in use by a running call, and everything that this library has not made or that has another
// isolation. It never forces the removal of an image. The context is as for [Client.EnsureLocalImage]; when it ends, what
// has been removed stays removed.
//
// Prune knows the calls of this process, and those of other processes with the same cache. For processes that share only
// the engine, it knows what the engine stores: when an image was built and, on Docker without the containerd image store,
// when it was last returned. Such a process can get a reference whose image is removed at the same moment. Use the same
// cache for all processes of a machine, or a different [Options.Isolation] for each.
func (c *Client) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	var report PruneReport
	err := c.inner.report(ctx, o.task(), &report)
	goruntime.KeepAlive(c)
	if err != nil {
		return PruneReport{}, err
	}
	return report, nil
}

// List is [Client.List] with the options of the environment.
func List(ctx context.Context) (Inventory, error) {
	return withShared(ctx, (*Client).List)
}

// Prune is [Client.Prune] with the options of the environment.
func Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	return withShared(ctx, func(c *Client, ctx context.Context) (PruneReport, error) { return c.Prune(ctx, o) })
}

// Created is when the image was built or last tagged, whichever is later, to the second.
func (i LocalImage) Created() time.Time { return time.Unix(i.CreatedUnix, 0) }

// Created is when the tree was fetched, to the second.
func (t CachedTree) Created() time.Time { return time.Unix(t.CreatedUnix, 0) }
