// Package mol turns the name of a workspace runtime into a container image that is ready to start.
//
// [Resolve] tells a server where its images come from. If MOLECULE_IMAGE_REGISTRY is set, the server pulls them from
// there; this package does not pull. Otherwise [EnsureLocalImage] builds them on this machine: it asks Gitea for the
// newest commit of the runtime's template repository, and unless the engine already has an image for exactly that commit,
// it fetches the commit and builds it through the engine's API. No docker and no git program is needed.
//
//	var ensureLocalImageHook = mol.EnsureLocalImage
//
// is all that a server needs. For its own settings, or to see the progress, it makes a [Client] from [Options].
//
// # Concurrency
//
// Calls for the same runtime and commit, in one process or several, share one fetch and one build; different runtimes
// are built in parallel. A cancelled context ends its own call at once, and the build when no other call waits for it.
// (Podman completes a RUN that has started, and starts no further step.) A waiting call needs a goroutine and no thread.
//
// # Maintenance
//
// [Client.Diagnose] checks everything that a build depends on, [Client.List] lists images and fetched templates, and
// [Client.Prune] removes old ones. [Client.BuildLog] returns the log of a runtime's last build, and [Client.Metrics]
// returns counters for Prometheus.
//
// # Errors
//
// Every error is an [*Error] that says what failed, where, and what to do next; [errors.Is] distinguishes the kinds
// ([ErrGiteaUnreachable], [ErrBuildFailed], [context.Canceled] and so on). There is no fallback: if an image cannot be
// built, that is an error. Tokens are masked in every text that this package returns or logs.
//
// # Linking
//
// The package links libmol, a library written in Rust, statically. With the build tag mol_shared it links the shared
// library, found through pkg-config. With CGO_ENABLED=0, or for a target that libmol does not support, the package
// compiles and its pure functions work, but New and EnsureLocalImage return an error that gives the reason.
package mol
