package mol

import "time"

// Image is an image that is present in the engine and ready to start.
type Image struct {
	// Ref is the reference to start: molecule-local/workspace-template-<runtime>:<sha12>, with the suffixes
	// of platform and isolation (see [LocalImageTag]).
	Ref string
	// LatestRef is the same image's moving name. Refreshing it may have failed; Ref is always there.
	LatestRef string
	// Runtime is the runtime name that was asked for.
	Runtime string
	// CommitSHA is the full id of the commit whose tree was built, 40 or 64 hex digits.
	CommitSHA string
	// ImageID is the engine's id of the image, "sha256:…".
	ImageID string
	// Platform is what it was built for: "linux/amd64".
	Platform string
	// Endpoint is the address of the engine that has it, "unix:///var/run/docker.sock" for example: the one
	// to create the container with.
	Endpoint string
	// CacheHit tells that the image was there already, so that nothing was fetched or built.
	CacheHit bool
	// Timings says where the time went.
	Timings Timings
}

// Timings are the durations of a call's steps, to the microsecond; zero for a step that was not needed.
type Timings struct {
	// Lookup is the Gitea API call, retries included.
	Lookup time.Duration
	// Inspect is the question to the engine whether the image is there.
	Inspect time.Duration
	// Wait is the wait for another call, here or in another process, that was building the same.
	Wait time.Duration
	// Fetch is the fetch of the commit with its checkout.
	Fetch time.Duration
	// Build is the engine's build, with the upload of its context.
	Build time.Duration
	// Tag is the tagging.
	Tag time.Duration
	// Total is the whole call.
	Total time.Duration
}
