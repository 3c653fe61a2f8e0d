package mol

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEveryCodeHasItsNameAndItsSentinel(t *testing.T) {
	for _, c := range []struct {
		code     Code
		name     string
		sentinel error
	}{
		{1, "unknown_runtime", ErrUnknownRuntime},
		{2, "invalid_option", ErrInvalidOption},
		{3, "gitea_unreachable", ErrGiteaUnreachable},
		{4, "repo_not_found", ErrRepoNotFound},
		{5, "auth", ErrAuth},
		{6, "bad_response", ErrBadResponse},
		{7, "fetch", ErrFetch},
		{8, "no_dockerfile", ErrNoDockerfile},
		{9, "engine_unreachable", ErrEngineUnreachable},
		{10, "platform_unsupported", ErrPlatformUnsupported},
		{11, "build_failed", ErrBuildFailed},
		{12, "stalled", ErrStalled},
		{13, "timeout", ErrTimeout},
		{14, "cache", ErrCache},
		{15, "internal", ErrInternal},
		{16, "canceled", context.Canceled},
		{17, "deadline_exceeded", context.DeadlineExceeded},
		{18, "invalid_argument", ErrInvalidArgument},
		{19, "no_such_handle", ErrInternal},
		{20, "closed", ErrClosed},
		{21, "code(21)", ErrInternal},
		{22, "no_local_image", ErrNoLocalImage},
		{23, "process_limit", ErrProcessLimit},
		{24, "builder_unreachable", ErrBuilderUnreachable},
		{25, "code(25)", ErrInternal},
		{-1, "code(-1)", ErrInternal},
	} {
		err := fmt.Errorf("start: %w", &Error{Code: c.code, Message: "m"})
		if c.code.String() != c.name {
			t.Errorf("the name of %d is %s, want %s", int32(c.code), c.code, c.name)
		}
		if !errors.Is(err, c.sentinel) {
			t.Errorf("%s is not %v", c.code, c.sentinel)
		}
		for _, other := range []error{ErrUnknownRuntime, ErrAuth, ErrInternal, ErrClosed, context.Canceled, context.DeadlineExceeded} {
			if other != c.sentinel && errors.Is(err, other) {
				t.Errorf("%s is %v as well", c.code, other)
			}
		}
	}
	if Code(0).String() != "ok" {
		t.Errorf("the name of 0 is %s", Code(0))
	}
}

func TestErrorTextHasMessageHintAndOutput(t *testing.T) {
	for _, c := range []struct {
		name string
		err  *Error
		want string
	}{
		{"message only", &Error{Message: "it broke"}, "it broke"},
		{"no message", &Error{Code: CodeAuth}, "not authorized"},
		{"step, URL and hint", &Error{Message: "the build of https://h/r failed in the step RUN make", URL: "https://h/r", Step: "RUN make", Hint: "fix it"},
			"the build of https://h/r failed in the step RUN make; fix it"},
		{"output", &Error{Message: "it broke", LogTail: "one\ntwo\r\n\n"}, "it broke\nlast lines of the output:\n  one\n  two"},
		{"excerpt", &Error{Message: "it broke", Excerpt: "  1 | FROM x\n> 2 | RUN y", LogTail: "one"},
			"it broke\nDockerfile:\n    1 | FROM x\n  > 2 | RUN y\nlast lines of the output:\n  one"},
		{"nil", nil, "<nil>"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestErrorTextShowsTheEndOfALongOutput(t *testing.T) {
	var lines []string
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("line %d", i))
	}
	text := (&Error{Message: "m", LogTail: strings.Join(lines, "\n") + "\n"}).Error()
	if !strings.HasSuffix(text, "\n  line 999") || !strings.Contains(text, "\n  line 980\n") || strings.Contains(text, "line 979") {
		t.Errorf("got %q", text)
	}
	text = (&Error{Message: "m", LogTail: "x\n" + strings.Repeat("ä", 1<<20) + "y"}).Error()
	if len(text) > shownTailBytes+100 || !strings.HasSuffix(text, "ääy") || strings.Contains(text, "\ufffd") {
		t.Errorf("got %d bytes, %.60q…", len(text), text)
	}
}

func TestANilErrorUnwrapsToNothing(t *testing.T) {
	var err *Error
	if err.Unwrap() != nil {
		t.Error("a nil error unwraps to an error")
	}
}

func TestAContextErrorKeepsErrAndCause(t *testing.T) {
	cause := errors.New("server shutting down")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	err := contextError(ctx, "hermes", nil, masker(""))
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || err.Code != CodeCanceled || err.Runtime != "hermes" {
		t.Errorf("got %#v", err)
	}
	if !strings.Contains(err.Error(), "server shutting down") {
		t.Errorf("%q does not name the cause", err)
	}
}

func TestTheCauseInAContextErrorIsMaskedAndOnOneLine(t *testing.T) {
	cause := errors.New("POST https://me:" + testToken + "@host/hook:\r\n\ttoken " + testToken + "\nrefused")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	const want = "the call for the runtime hermes was cancelled: POST https://***@host/hook: token *** refused"
	err := contextError(ctx, "hermes", nil, masker(testToken))
	if err.Error() != want || !errors.Is(err, cause) {
		t.Errorf("got %q, want %q", err, want)
	}
	// The hook has the token of the environment.
	clearEnv(t)
	t.Setenv(envToken, testToken)
	records := logRecords(t)
	if _, got := EnsureLocalImage(ctx, "hermes"); got == nil || got.Error() != want {
		t.Errorf("got %v, want %q", got, want)
	}
	if record := records(); !strings.Contains(record, want) || strings.Contains(record, testToken) {
		t.Errorf("logged %q", record)
	}
}

func TestAContextErrorKeepsTheDetailsOfTheLibrarysError(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	fromLibrary := &Error{Code: CodeBuildFailed, Message: "the build failed", Step: "RUN false", LogTail: "oops"}
	err := contextError(ctx, "hermes", fromLibrary, masker(""))
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrBuildFailed) || err.LogTail != "oops" {
		t.Errorf("got %#v", err)
	}
	if errors.Is(fromLibrary, context.Canceled) {
		t.Error("the library's error was modified, which other calls may share")
	}
	err = contextError(ctx, "hermes", &Error{Code: CodeDeadlineExceeded, Message: "the deadline passed", Step: "RUN sleep"}, masker(""))
	if err.Code != CodeCanceled || err.Step != "RUN sleep" || strings.Contains(err.Message, "deadline") {
		t.Errorf("got %#v", err)
	}
}

func TestAVersionMismatchNamesBothVersions(t *testing.T) {
	if err := checkABI(3, 3); err != nil {
		t.Error(err)
	}
	err := checkABI(3, 4)
	if !errors.Is(err, ErrInternal) || !strings.Contains(err.Error(), "version 3") || !strings.Contains(err.Error(), "version 4") {
		t.Errorf("got %v", err)
	}
}

func TestAnUnknownRuntimeIsQuotedSafely(t *testing.T) {
	for _, name := range []string{"", "unknown", "hermes\x00", "a\nb", strings.Repeat("x", 1<<20), "\xff"} {
		err := Options{}.CheckRuntime(name)
		if text := err.Error(); strings.ContainsAny(text, "\n\x00") || !utf8.ValidString(text) || len(text) > 500 || !strings.Contains(text, "gemini-cli") {
			t.Errorf("%.20q: got %q", name, text)
		}
	}
}
