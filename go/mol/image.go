package mol

import "time"

// Image is an image in the engine, ready to start.
type Image struct {
	// Ref is the reference to start: molecule-local/workspace-template-<runtime>:<sha12>, with the suffixes for
	// platform and isolation (see [LocalImageTag]).
	Ref string
	// LatestRef is the moving tag of the same image. Refreshing it may have failed; Ref always exists.
	LatestRef string
	// Runtime is the runtime name of the call.
	Runtime string
	// CommitSHA is the full id of the commit whose tree was built, 40 or 64 hex digits.
	CommitSHA string
	// ImageID is the engine's id of the image, "sha256:…".
	ImageID string
	// Platform is the platform of the image: "linux/amd64".
	Platform string
	// Endpoint is the address of the engine that has the image and must create the container,
	// "unix:///var/run/docker.sock" for example.
	Endpoint string
	// CacheHit reports whether the image already existed, so that nothing was fetched or built.
	CacheHit bool
	// Timings are the durations of the steps.
	Timings Timings
}

// Timings are the durations of a call's steps, to the microsecond. A step that was not needed has 0.
type Timings struct {
	// Lookup is the Gitea API call, retries included.
	Lookup time.Duration
	// Inspect is the request to the engine for an existing image.
	Inspect time.Duration
	// Wait is the time spent waiting for another process, or another client of this one, that built the same image.
	Wait time.Duration
	// Fetch is the fetch of the commit and its checkout.
	Fetch time.Duration
	// Build is the engine's build and the upload of its context.
	Build time.Duration
	// Tag is the tagging.
	Tag time.Duration
	// Total is the whole call.
	Total time.Duration
}
