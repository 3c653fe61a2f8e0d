package mol

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Code says what kind of failure an [Error] is. The numbers are those of mol_status in mol.h: they are
// part of the C interface, have explicit values and are never reused.
type Code int32

// The codes. Each one up to CodeInternal has a sentinel of the same name ([ErrUnknownRuntime] and so on)
// for use with [errors.Is]; CodeCanceled and CodeDeadlineExceeded answer to [context.Canceled] and
// [context.DeadlineExceeded], CodeInvalidArgument to [ErrInvalidArgument], CodeClosed to [ErrClosed], CodeNoLocalImage to [ErrNoLocalImage],
// CodeProcessLimit to [ErrProcessLimit].
const (
	// CodeOK is success. No Error carries it.
	CodeOK Code = 0
	// CodeUnknownRuntime is a runtime name that is not on the allowlist.
	CodeUnknownRuntime Code = 1
	// CodeInvalidOption is an option or environment variable that cannot be used as it is.
	CodeInvalidOption Code = 2
	// CodeGiteaUnreachable is a Gitea that refused the connection, did not resolve or did not answer.
	CodeGiteaUnreachable Code = 3
	// CodeRepoNotFound is a template repository, or a branch of it, that does not exist there.
	CodeRepoNotFound Code = 4
	// CodeAuth is a 401 or 403.
	CodeAuth Code = 5
	// CodeBadResponse is an answer that cannot be understood, or that is too large.
	CodeBadResponse Code = 6
	// CodeFetch is a failure while the commit was fetched or checked out.
	CodeFetch Code = 7
	// CodeNoDockerfile is a template without a Dockerfile at its root.
	CodeNoDockerfile Code = 8
	// CodeEngineUnreachable is a container engine that was not found or did not answer.
	CodeEngineUnreachable Code = 9
	// CodePlatformUnsupported is a platform that the engine cannot build for.
	CodePlatformUnsupported Code = 10
	// CodeBuildFailed is a build that the engine ended with an error.
	CodeBuildFailed Code = 11
	// CodeStalled is a fetch or a build that gave no sign of life for the stall grace.
	CodeStalled Code = 12
	// CodeTimeout is a network step, or a whole call without a deadline of its own, that took too long.
	CodeTimeout Code = 13
	// CodeCache is a cache folder that cannot be read, written or trusted.
	CodeCache Code = 14
	// CodeInternal is a defect in libmol, or a package that was built without it.
	CodeInternal Code = 15
	// CodeCanceled is a call that was cancelled.
	CodeCanceled Code = 16
	// CodeDeadlineExceeded is a call whose deadline passed.
	CodeDeadlineExceeded Code = 17
	// CodeInvalidArgument is a call with an argument that is not allowed, such as a commit that is not one.
	CodeInvalidArgument Code = 18
	// CodeNoSuchHandle is an id that the library does not know, or no longer knows.
	CodeNoSuchHandle Code = 19
	// CodeClosed is a call on a client that was closed.
	CodeClosed Code = 20
	// CodeNoEvent is a wait for the next event that ended without one. It never leaves this package.
	CodeNoEvent Code = 21
	// CodeNoLocalImage is an engine without an image of the runtime, where [Options.Offline] forbids to make one.
	CodeNoLocalImage Code = 22
	// CodeProcessLimit is a process, or a machine, that has no thread or file descriptor left.
	CodeProcessLimit Code = 23
)

var codeNames = [...]string{
	CodeOK:                  "ok",
	CodeUnknownRuntime:      "unknown_runtime",
	CodeInvalidOption:       "invalid_option",
	CodeGiteaUnreachable:    "gitea_unreachable",
	CodeRepoNotFound:        "repo_not_found",
	CodeAuth:                "auth",
	CodeBadResponse:         "bad_response",
	CodeFetch:               "fetch",
	CodeNoDockerfile:        "no_dockerfile",
	CodeEngineUnreachable:   "engine_unreachable",
	CodePlatformUnsupported: "platform_unsupported",
	CodeBuildFailed:         "build_failed",
	CodeStalled:             "stalled",
	CodeTimeout:             "timeout",
	CodeCache:               "cache",
	CodeInternal:            "internal",
	CodeCanceled:            "canceled",
	CodeDeadlineExceeded:    "deadline_exceeded",
	CodeInvalidArgument:     "invalid_argument",
	CodeNoSuchHandle:        "no_such_handle",
	CodeClosed:              "closed",
	CodeNoEvent:             "no_event",
	CodeNoLocalImage:        "no_local_image",
	CodeProcessLimit:        "process_limit",
}

// String gives the name of the code as mol_status_name in mol.h does: "unknown_runtime". A number without
// a name, from a library newer than this package, comes out as "code(99)".
func (c Code) String() string {
	if c >= 0 && int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code(%d)", int32(c))
}

// The sentinels, for [errors.Is]. Every error of this package that is an [*Error] unwraps to the one of its
// [Code]; see there for what each means.
var (
	ErrUnknownRuntime      = errors.New("unknown runtime")
	ErrInvalidOption       = errors.New("invalid option")
	ErrGiteaUnreachable    = errors.New("gitea unreachable")
	ErrRepoNotFound        = errors.New("repository not found")
	ErrAuth                = errors.New("not authorized")
	ErrBadResponse         = errors.New("bad response")
	ErrFetch               = errors.New("fetch failed")
	ErrNoDockerfile        = errors.New("no Dockerfile")
	ErrEngineUnreachable   = errors.New("container engine unreachable")
	ErrPlatformUnsupported = errors.New("platform not supported")
	ErrBuildFailed         = errors.New("build failed")
	ErrStalled             = errors.New("stalled")
	ErrTimeout             = errors.New("timed out")
	ErrCache               = errors.New("cache not usable")
	ErrInternal            = errors.New("internal error")

	// ErrNoLocalImage is what a call gets with [Options.Offline], where the engine has no image of the runtime.
	ErrNoLocalImage = errors.New("no local image")
	// ErrProcessLimit is what a call gets where this process can have no more threads or file descriptors.
	ErrProcessLimit = errors.New("limit of the process reached")
	// ErrInvalidArgument is what a call gets with an argument that is not allowed, such as a commit that is not one.
	ErrInvalidArgument = errors.New("invalid argument")
	// ErrClosed is what a call gets that comes after [Client.Close], or that Close ended.
	ErrClosed = errors.New("client is closed")
)

// sentinel gives the error a code answers to in errors.Is.
func (c Code) sentinel() error {
	switch c {
	case CodeUnknownRuntime:
		return ErrUnknownRuntime
	case CodeInvalidOption:
		return ErrInvalidOption
	case CodeGiteaUnreachable:
		return ErrGiteaUnreachable
	case CodeRepoNotFound:
		return ErrRepoNotFound
	case CodeAuth:
		return ErrAuth
	case CodeBadResponse:
		return ErrBadResponse
	case CodeFetch:
		return ErrFetch
	case CodeNoDockerfile:
		return ErrNoDockerfile
	case CodeEngineUnreachable:
		return ErrEngineUnreachable
	case CodePlatformUnsupported:
		return ErrPlatformUnsupported
	case CodeBuildFailed:
		return ErrBuildFailed
	case CodeStalled:
		return ErrStalled
	case CodeTimeout:
		return ErrTimeout
	case CodeCache:
		return ErrCache
	case CodeCanceled:
		return context.Canceled
	case CodeDeadlineExceeded:
		return context.DeadlineExceeded
	case CodeClosed:
		return ErrClosed
	case CodeNoLocalImage:
		return ErrNoLocalImage
	case CodeProcessLimit:
		return ErrProcessLimit
	case CodeInvalidArgument:
		return ErrInvalidArgument
	}
	// What is left can only come from a defect here or in the library: an id that this package should not have
	// sent, or a number that it does not know.
	return ErrInternal
}

// Error is what every function of this package that can fail returns (use [errors.As] to get at it). All of
// its texts are masked: no token and no userinfo of a URL is in them.
//
// It unwraps to the sentinel of its Code; where a context ended the call, also to that context's Err and
// Cause.
type Error struct {
	// Code is the kind of failure.
	Code Code
	// Runtime is the runtime name of the call, "" where there is none.
	Runtime string
	// URL is the address that was asked, usually the template repository's, "" where none was.
	URL string
	// Message says what failed and where, in one line, lower case and without a full stop.
	Message string
	// Hint says what to do next, "" when there is nothing to say.
	Hint string
	// Step is the build step that failed, as the builder names it: "[2/4] RUN make". "" outside of a build.
	Step string
	// Line is the step's line in the template's Dockerfile, from 1; 0 where it is not known.
	Line int
	// ExitCode is the exit code of the step's command; 0 where it is not known.
	ExitCode int
	// LogTail is the end of the build's output, bounded by the library. "" outside of a build.
	LogTail string

	causes []error
}

// The part of LogTail that Error shows: enough to see the compiler's complaint, not so much that it floods
// a log. The whole of it stays in the field.
const (
	shownTailLines = 20
	shownTailBytes = 4 << 10
)

// Error gives the message, the step, the URL and the hint in one line; after a build that failed the last
// lines of its output follow, one to a line.
func (e *Error) Error() string {
	if e == nil {
		return "<nil>"
	}
	var b strings.Builder
	b.WriteString(e.Message)
	if e.Message == "" {
		b.WriteString(e.Code.sentinel().Error())
	}
	if e.Step != "" && !strings.Contains(e.Message, beginning(e.Step)) {
		b.WriteString(": ")
		b.WriteString(e.Step)
	}
	if e.URL != "" && !strings.Contains(e.Message, e.URL) {
		b.WriteString(" (")
		b.WriteString(e.URL)
		b.WriteString(")")
	}
	if e.Hint != "" && !strings.Contains(e.Message, e.Hint) {
		b.WriteString("; ")
		b.WriteString(e.Hint)
	}
	if tail := shownTail(e.LogTail); tail != "" {
		b.WriteString("\nlast lines of the output:\n")
		b.WriteString(tail)
	}
	return b.String()
}

// beginning is what tells a step from others. The library cuts long texts, so that the message may have less of a
// long step than Step has.
func beginning(step string) string {
	const length = 500
	if len(step) > length {
		step = strings.ToValidUTF8(step[:length], "")
	}
	return strings.TrimSuffix(step, "…")
}

// Unwrap gives the sentinel of the code and, for a call that a context ended, the context's error and cause.
func (e *Error) Unwrap() []error {
	if e == nil {
		return nil
	}
	return append([]error{e.Code.sentinel()}, e.causes...)
}

// because adds errors that errors.Is and errors.As shall find, leaving out nil and what is there already.
func (e *Error) because(causes ...error) *Error {
	for _, cause := range causes {
		if cause != nil && !errors.Is(e, cause) {
			e.causes = append(e.causes, cause)
		}
	}
	return e
}

// shownTail cuts a log down to its last whole lines and indents them.
func shownTail(log string) string {
	log = strings.TrimRight(log, "\r\n \t")
	if log == "" {
		return ""
	}
	start := len(log)
	for range shownTailLines {
		start = strings.LastIndexByte(log[:start], '\n')
		if start < 0 {
			break
		}
	}
	log = log[start+1:]
	if over := len(log) - shownTailBytes; over > 0 {
		log = strings.ToValidUTF8(log[over:], "")
		if i := strings.IndexByte(log, '\n'); i >= 0 {
			log = log[i+1:]
		}
	}
	return "  " + strings.ReplaceAll(log, "\n", "\n  ")
}

// checkABI compares the version of the C interface that this package was compiled against with the one of
// the library that is linked in.
func checkABI(compiled, linked uint32) error {
	if compiled == linked {
		return nil
	}
	return &Error{
		Code: CodeInternal,
		Message: fmt.Sprintf("package mol was compiled for version %d of libmol's C interface, but the library "+
			"that is linked in has version %d", compiled, linked),
		Hint: "build the library and the package from the same version of libmol",
	}
}
