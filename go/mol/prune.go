package mol

import (
	"context"
	"math"
	goruntime "runtime"
	"time"
)

// PruneOptions say what may stay.
type PruneOptions struct {
	// KeepPerRuntime is how many images of each runtime and platform, and how many fetched templates of each
	// runtime, stay in any case: the newest ones. 0: two. Below 0: none but those that must stay.
	KeepPerRuntime int
	// KeepRecent is for how long an image or a template stays in any case after it was built, or after a call has
	// returned it. 0: ten minutes. Below 0: nothing stays for that, so that a reference that a call has just
	// returned can be gone. See [Client.Prune] for calls of other processes.
	KeepRecent time.Duration
	// DryRun only says what would be done.
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

// recentMS is a time as the library takes it: 0 is its default, and below 0 is none.
func recentMS(d time.Duration) int64 {
	if d > 0 {
		// Not down to 0, which would be another time.
		return max(d.Milliseconds(), 1)
	}
	return max(int64(d), -1)
}

// LocalImage is an image in the engine under a name that this package gives.
type LocalImage struct {
	// Ref is the reference that is pinned to the commit; where there is none, the one with :latest.
	Ref string `json:"ref"`
	// Runtime is the runtime it is of.
	Runtime string `json:"runtime"`
	// Platform is what it was built for, "" if it does not say.
	Platform string `json:"platform"`
	// CommitSHA is the full commit id, "" if it does not say.
	CommitSHA string `json:"commit_sha"`
	// ImageID is the engine's id of it.
	ImageID string `json:"image_id"`
	// CreatedUnix is [LocalImage.Created] in seconds since 1970.
	CreatedUnix int64 `json:"created_unix"`
	// Bytes is its size, with what it shares with other images; OwnBytes is what no other image has too, as the
	// engine counts it.
	Bytes    int64 `json:"bytes"`
	OwnBytes int64 `json:"own_bytes"`
	// Latest tells that the tag that moves with the branch points at it.
	Latest bool `json:"latest"`
	// UsedBy names the containers that were made from it, running or not.
	UsedBy []string `json:"used_by"`
	// OtherRefs are names that somebody else has given it.
	OtherRefs []string `json:"other_refs"`
}

// CachedTree is a fetched template in the cache.
type CachedTree struct {
	// Path is where it is.
	Path string `json:"path"`
	// Runtime is the runtime it is of.
	Runtime string `json:"runtime"`
	// CommitSHA is the full commit id, its first twelve digits where the tree is not whole.
	CommitSHA string `json:"commit_sha"`
	// CreatedUnix is [CachedTree.Created] in seconds since 1970.
	CreatedUnix int64 `json:"created_unix"`
	// Bytes is what it takes on the disk.
	Bytes int64 `json:"bytes"`
	// Whole is false for what a process that was killed, or is at it now, has begun.
	Whole bool `json:"whole"`
}

// Inventory is what there is of this library. Within each runtime the newest comes first.
type Inventory struct {
	Images []LocalImage `json:"images"`
	Trees  []CachedTree `json:"trees"`
}

// PruneAction is what has become of a thing; with [PruneOptions.DryRun], what would.
type PruneAction string

const (
	// PruneKept is what stays.
	PruneKept PruneAction = "kept"
	// PruneUntagged is an image that has lost this package's name and stays: another name or image needs it.
	PruneUntagged PruneAction = "untagged"
	// PruneRemoved is what is gone.
	PruneRemoved PruneAction = "removed"
)

// PrunedImage is an image and what has become of it.
type PrunedImage struct {
	LocalImage
	Action PruneAction `json:"action"`
	// Reason says why, in a few words.
	Reason string `json:"reason"`
}

// PrunedTree is a fetched template and what has become of it.
type PrunedTree struct {
	CachedTree
	Action PruneAction `json:"action"`
	// Reason says why, in a few words.
	Reason string `json:"reason"`
}

// PruneReport is everything that was looked at, and what has become of it.
type PruneReport struct {
	// DryRun tells that nothing was changed.
	DryRun bool `json:"dry_run"`
	// FreedBytes is what the removed trees took, and about what the removed images did: the sum of their
	// OwnBytes. It is less than that where the engine's build cache has the same layers, and more where only
	// removed images shared them.
	FreedBytes int64         `json:"freed_bytes"`
	Images     []PrunedImage `json:"images"`
	Trees      []PrunedTree  `json:"trees"`
}

// List says what there is of this library: images of every runtime in the engine, under the isolation that is
// set, and fetched templates in the cache. The context is as for [Client.EnsureLocalImage].
func (c *Client) List(ctx context.Context) (Inventory, error) {
	var inventory Inventory
	err := c.inner.report(ctx, task{kind: taskList}, &inventory)
	goruntime.KeepAlive(c)
	if err != nil {
		return Inventory{}, err
	}
	return inventory, nil
}

// Prune removes old images of this library from the engine, and old templates from the cache. What stays: the
// newest of each runtime, what was built or returned by a call within the last ten minutes, what a container uses,
// what the tag latest points at, what a call is at just now, and everything that is not this library's or has
// another isolation. Nothing is forced. The context is as for [Client.EnsureLocalImage]; what was removed before it
// ended is gone.
//
// Calls of this process count whatever cache they have, and calls of other processes that have the same cache. Of
// processes that share the engine alone it knows what the engine keeps: when an image was built, and on Docker,
// unless it has the containerd image store, when it was last returned. Such a process can get a reference that is
// removed at the same moment. Give the processes of one machine the same cache, or an [Options.Isolation] each.
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

// Created is when it was made or last tagged, whichever is later, to the second.
func (i LocalImage) Created() time.Time { return time.Unix(i.CreatedUnix, 0) }

// Created is when it was made, to the second.
func (t CachedTree) Created() time.Time { return time.Unix(t.CreatedUnix, 0) }

// withShared does something with the client of the environment's options, which all such calls share.
func withShared[T any](ctx context.Context, do func(*Client, context.Context) (T, error)) (T, error) {
	shared, err := sharedClients.acquire(OptionsFromEnv())
	if err != nil {
		var none T
		return none, err
	}
	defer sharedClients.release(shared)
	return do(shared.Client, ctx)
}
