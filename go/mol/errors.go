package mol

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Code is the kind of failure of an [Error]. The values are those of mol_status in mol.h: they are part of the C
// interface and are never changed or reused.
type Code int32

// The codes. Most have a sentinel of the same name ([ErrUnknownRuntime] and so on) for [errors.Is]. For CodeCanceled and
// CodeDeadlineExceeded it is [context.Canceled] and [context.DeadlineExceeded], for CodeNoSuchHandle [ErrInternal].
const (
	// CodeOK means success. No Error has it.
	CodeOK Code = 0
	// CodeUnknownRuntime means that the runtime name is not on the allowlist.
	CodeUnknownRuntime Code = 1
	// CodeInvalidOption means that an option or an environment variable is invalid.
	CodeInvalidOption Code = 2
	// CodeGiteaUnreachable means that the connection to Gitea failed, or that Gitea did not answer in time or answered
	// 408, 429 or 5xx.
	CodeGiteaUnreachable Code = 3
	// CodeRepoNotFound means that the template repository, or the branch, does not exist.
	CodeRepoNotFound Code = 4
	// CodeAuth means that Gitea answered 401 or 403.
	CodeAuth Code = 5
	// CodeBadResponse means that Gitea's response is invalid or too large.
	CodeBadResponse Code = 6
	// CodeFetch means that the commit could not be fetched or checked out.
	CodeFetch Code = 7
	// CodeNoDockerfile means that the template has no Dockerfile at its root.
	CodeNoDockerfile Code = 8
	// CodeEngineUnreachable means that no container engine was found, or that it did not answer or
	// answered with an error.
	CodeEngineUnreachable Code = 9
	// CodePlatformUnsupported means that the engine, or the builder, cannot run programs for the platform, or that
	// one of the template is for another one.
	CodePlatformUnsupported Code = 10
	// CodeBuildFailed means that the builder ended the build with an error.
	CodeBuildFailed Code = 11
	// CodeStalled means that a fetch or a build made no progress for [Options.StallGrace].
	CodeStalled Code = 12
	// CodeTimeout means that a call without a deadline reached [Options.Ceiling].
	CodeTimeout Code = 13
	// CodeCache means that the cache folder cannot be read, written or trusted, or that it has no build log of the
	// runtime.
	CodeCache Code = 14
	// CodeInternal means a bug in libmol, or that this package was built without the library.
	CodeInternal Code = 15
	// CodeCanceled means that the call was cancelled.
	CodeCanceled Code = 16
	// CodeDeadlineExceeded means that the deadline of the call passed.
	CodeDeadlineExceeded Code = 17
	// CodeInvalidArgument means that an argument is invalid, such as a commit id.
	CodeInvalidArgument Code = 18
	// CodeNoSuchHandle means that the library does not know an id, or no longer knows it.
	CodeNoSuchHandle Code = 19
	// CodeClosed means that the client was closed.
	CodeClosed Code = 20
	// CodeNoLocalImage means that [Options.Offline] is set and the engine has no image of the runtime.
	CodeNoLocalImage Code = 22
	// CodeProcessLimit means that no thread or file descriptor was available.
	CodeProcessLimit Code = 23
	// CodeBuilderUnreachable means that no node of the builder in [Options.Builder] answers, or that each node that was
	// tried was lost during the build.
	CodeBuilderUnreachable Code = 24
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
	CodeNoLocalImage:        "no_local_image",
	CodeProcessLimit:        "process_limit",
	CodeBuilderUnreachable:  "builder_unreachable",
}

// String returns the name of the code as mol_status_name in mol.h does: "unknown_runtime". The name of an unknown code,
// from a library newer than this package, is "code(99)".
func (c Code) String() string {
	if c >= 0 && int(c) < len(codeNames) && codeNames[c] != "" {
		return codeNames[c]
	}
	return fmt.Sprintf("code(%d)", int32(c))
}

// The sentinels, for [errors.Is]. Every [*Error] unwraps to the sentinel of its [Code], which has the documentation.
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

	// ErrNoLocalImage is returned with [Options.Offline] if the engine has no image of the runtime.
	ErrNoLocalImage = errors.New("no local image")
	// ErrProcessLimit is returned if the process can get no more threads or file descriptors.
	ErrProcessLimit = errors.New("limit of the process reached")
	// ErrBuilderUnreachable is returned if the builder of [Options.Builder], or of BUILDX_BUILDER, cannot be used.
	ErrBuilderUnreachable = errors.New("builder unreachable")
	// ErrInvalidArgument is returned for an invalid argument, such as an invalid commit id.
	ErrInvalidArgument = errors.New("invalid argument")
	// ErrClosed is returned by calls after [Client.Close], and by calls that Close has ended.
	ErrClosed = errors.New("client is closed")
)

// sentinel returns the error for which errors.Is holds for the code.
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
	case CodeBuilderUnreachable:
		return ErrBuilderUnreachable
	case CodeInvalidArgument:
		return ErrInvalidArgument
	}
	// The rest is a bug here or in the library: an id that this package should not have sent, or an unknown code.
	return ErrInternal
}

// Error is the error type of all functions of this package (use [errors.As] to get it). Its texts are masked: they
// contain no token and no userinfo of a URL.
//
// It unwraps to the sentinel of its Code; if a context ended the call, also to the context's Err and Cause.
type Error struct {
	// Code is the kind of failure.
	Code Code
	// Runtime is the runtime name of the call, or "".
	Runtime string
	// URL is that of the template repository, or "" if this machine, the engine or a builder failed before the build.
	URL string
	// Message says what failed and where, in one line, lower case and without a full stop.
	Message string
	// Hint says what to do next, or is "".
	Hint string
	// Step is the build step that failed, as the builder names it: "[2/4] RUN make". "" outside of a build.
	Step string
	// Line is the step's line in the template's Dockerfile, from 1; 0 if unknown.
	Line int
	// ExitCode is the exit code of the step's command; 0 if unknown.
	ExitCode int
	// LogTail is the end of the build's output; the library limits its length. "" outside of a build.
	LogTail string
	// Excerpt is the lines of the template's Dockerfile around the step, with their numbers; those of the step begin with
	// ">". "" if the line is unknown.
	Excerpt string

	causes []error
	// causeText is the text of the context's cause: masked, and on one line.
	causeText string
}

// The part of LogTail that Error shows: enough for a compiler's error, and not too much for a log.
const (
	shownTailLines = 20
	shownTailBytes = 4 << 10
)

// Error returns the message, the cause of the context and the hint in one line. For a failed build, the lines of the
// Dockerfile and the last lines of the output follow. Step and URL are only fields; most messages name them.
func (e *Error) Error() string {
	if e == nil {
		return "<nil>"
	}
	var b strings.Builder
	b.WriteString(e.headline())
	if e.Hint != "" {
		b.WriteString("; ")
		b.WriteString(e.Hint)
	}
	if e.Excerpt != "" {
		b.WriteString("\nDockerfile:")
		for _, line := range strings.Split(e.Excerpt, "\n") {
			b.WriteString("\n  " + line)
		}
	}
	if tail := shownTail(e.LogTail); tail != "" {
		b.WriteString("\nlast lines of the output:\n")
		b.WriteString(tail)
	}
	return b.String()
}

// headline returns the message and the cause of the context.
func (e *Error) headline() string {
	text := e.Message
	if text == "" {
		text = e.Code.sentinel().Error()
	}
	if e.causeText != "" {
		text += ": " + e.causeText
	}
	return text
}

// takeBuild copies the URL and the details of the build from the library's error.
func (e *Error) takeBuild(from *Error) {
	e.URL, e.Step, e.Line, e.ExitCode = from.URL, from.Step, from.Line, from.ExitCode
	e.LogTail, e.Excerpt = from.LogTail, from.Excerpt
}

// Unwrap returns the sentinel of the code and, if a context ended the call, the context's error and cause.
func (e *Error) Unwrap() []error {
	if e == nil {
		return nil
	}
	return append([]error{e.Code.sentinel()}, e.causes...)
}

// withCauses adds errors for errors.Is and errors.As, except nil and errors for which errors.Is already holds.
func (e *Error) withCauses(causes ...error) *Error {
	for _, cause := range causes {
		if cause != nil && !errors.Is(e, cause) {
			e.causes = append(e.causes, cause)
		}
	}
	return e
}

// shownTail returns the last complete lines of a log, indented.
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

// checkABI compares the version of the C interface that this package was compiled for with that of the linked library.
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
