// Package mol turns the name of a workspace runtime into a container image that is ready to start.
//
// A server asks [Resolve] where its images come from. If MOLECULE_IMAGE_REGISTRY is set they are pulled from
// there, which is not this package's business. Otherwise [EnsureLocalImage] builds them on this machine: it
// asks Gitea for the newest commit of the runtime's template repository, and unless the engine already has
// an image for exactly that commit it fetches the commit and builds it through the engine's API. No docker
// and no git program is needed.
//
//	var ensureLocalImageHook = mol.EnsureLocalImage
//
// is all that a server needs. One that wants to see the progress, or has settings of its own, makes a
// [Client] from [Options].
//
// # Concurrency
//
// Any number of calls for the same runtime and commit, in one process or several, share one fetch and one
// build; different runtimes go on in parallel. A cancelled context ends its own call at once, and the work
// when no other call waits for it. (Podman lets a RUN that is under way go on to its end, and starts no further
// step.) A waiting call costs a goroutine and no thread.
//
// # Day two
//
// [Client.Diagnose] says what is well and what is not, [Client.List] what is there, [Client.Prune] removes what is
// old. [Client.BuildLog] has the log of a runtime's last build, and [Client.Metrics] numbers for Prometheus.
//
// # Failure
//
// Every failure is an [*Error] that says what failed, where, and what to do next; [errors.Is] tells the kinds
// apart ([ErrGiteaUnreachable], [ErrBuildFailed], [context.Canceled] and so on). There is no fallback: what
// cannot be built is an error. Tokens are masked in everything that comes out.
//
// # Linking
//
// The work is done by libmol, a library written in Rust, which is linked in statically. With the build tag
// mol_shared the shared library is used, found through pkg-config. With CGO_ENABLED=0, or for a target that
// libmol does not support, the package compiles, the functions that only compute work, and New and
// EnsureLocalImage return an error that says so.
package mol
