package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "update the files in testdata")

// A fakeClient replaces libmol in tests that need a result, or events, that the real
// library does not produce on demand.
type fakeClient struct {
	opts      mol.Options
	commit    string // the argument of EnsureCommit
	events    []mol.Event
	img       mol.Image
	host      string // the result of EngineHost
	inventory mol.Inventory
	pruned    mol.PruneOptions
	report    mol.PruneReport
	diagnosis mol.Diagnosis
	log       mol.BuildLog
	err       error
}

func (f *fakeClient) EnsureLocalImage(ctx context.Context, runtime string) (mol.Image, error) {
	for _, e := range f.events {
		f.opts.OnEvent(e)
	}
	if f.err == nil {
		return f.img, ctx.Err()
	}
	return mol.Image{}, f.err
}

func (f *fakeClient) EnsureCommit(ctx context.Context, runtime, sha string) (mol.Image, error) {
	f.commit = sha
	return f.EnsureLocalImage(ctx, runtime)
}

func (f *fakeClient) EngineHost(context.Context) (string, error) { return f.host, f.err }

func (f *fakeClient) List(context.Context) (mol.Inventory, error) { return f.inventory, f.err }

func (f *fakeClient) Prune(_ context.Context, o mol.PruneOptions) (mol.PruneReport, error) {
	f.pruned = o
	return f.report, f.err
}

func (f *fakeClient) Diagnose(context.Context) (mol.Diagnosis, error) { return f.diagnosis, f.err }

func (f *fakeClient) BuildLog(context.Context, string) (mol.BuildLog, error) { return f.log, f.err }

func (f *fakeClient) Close() error { return nil }

// runFake runs a command line with a fake libmol, in an environment without
// settings.
func runFake(t *testing.T, ctx context.Context, f *fakeClient, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cleanEnv(t)
	return runHere(ctx, f, args...)
}

// runHere is runFake with the current environment.
func runHere(ctx context.Context, f *fakeClient, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	a := &app{stdout: &out, stderr: &err, open: func(opts mol.Options) (library, error) {
		f.opts = opts
		return f, nil
	}}
	code = a.run(ctx, args)
	return code, out.String(), err.String()
}

// cleanEnv unsets the command's variables until the test ends.
func cleanEnv(t *testing.T) {
	t.Helper()
	names := []string{offlineEnv, "MOLECULE_IMAGE_REGISTRY", tokenEnv, contextEnv, buildxEnv}
	for _, s := range settings {
		names = append(names, s.env)
	}
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	for _, name := range names {
		t.Setenv(name, "")
		_ = os.Unsetenv(name)
	}
}

// golden compares got with a file in testdata, or writes the file with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), `go test -update` updates the file:\n%s", path, diff)
	}
}

func TestEnsurePrintsOnlyTheReference(t *testing.T) {
	code, stdout, stderr := runFake(t, t.Context(), &fakeClient{events: scriptedEvents(), img: scriptImage()}, "ensure", "hermes")
	if code != 0 || stdout != testRef+"\n" {
		t.Errorf("exit code %d, standard output %q; want 0 and %q", code, stdout, testRef+"\n")
	}
	if !strings.Contains(stderr, "[2/3] RUN pip install") {
		t.Errorf("no progress on standard error:\n%s", stderr)
	}
}

// The command uses docker's contexts, as libmol does, so the warning does not apply.
func TestWarningForServersIsNotShown(t *testing.T) {
	f := &fakeClient{img: scriptImage(), events: []mol.Event{
		{Kind: mol.EventWarning, Message: "DOCKER_HOST is not set", Endpoint: "unix:///run/user/1000/docker.sock"},
		{Kind: mol.EventWarning, Message: "the token is sent in plain text"},
	}}
	_, _, stderr := runFake(t, t.Context(), f, "ensure", "hermes")
	if strings.Contains(stderr, "DOCKER_HOST") || !strings.Contains(stderr, "plain text") {
		t.Errorf("standard error:\n%s", stderr)
	}
}

// libmol finds rootless engines too, which the docker command finds only by a context.
func TestUpUsesTheEngineThatHasTheImage(t *testing.T) {
	cleanEnv(t)
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // without a current context
	image := scriptImage()
	image.Endpoint = "unix:///nowhere/podman.sock"
	code, _, stderr := runHere(t.Context(), &fakeClient{img: image}, "up", "hermes")
	if code != exitEngine || !strings.Contains(stderr, image.Endpoint) {
		t.Errorf("exit code %d, standard error:\n%s", code, stderr)
	}
}

func TestPlainOutput(t *testing.T) {
	var out bytes.Buffer
	d := newPlainDisplay(&out, began, false)
	for _, e := range scriptedEvents() {
		d.event(e)
	}
	d.end("")
	d.event(scriptedEvents()[0]) // ignored after end
	golden(t, "ensure.txt", out.String())
}

func TestJSONOutput(t *testing.T) {
	_, stdout, stderr := runFake(t, t.Context(), &fakeClient{events: scriptedEvents(), img: scriptImage()}, "ensure", "hermes", "--json")
	golden(t, "ensure.jsonl", stdout)
	if stderr != "" {
		t.Errorf("standard error is not empty: %s", stderr)
	}
}

func TestJSONOutputOfFailure(t *testing.T) {
	failed := &mol.Error{
		Code: mol.CodeBuildFailed, Runtime: "hermes", URL: testURL, Message: "the build failed in the step [2/3] RUN make",
		Hint: "look at the step", Step: "[2/3] RUN make", Line: 2, LogTail: "cc: not found\n",
		Excerpt: "  1 | FROM x\n> 2 | RUN make",
	}
	code, stdout, _ := runFake(t, t.Context(), &fakeClient{err: failed}, "ensure", "hermes", "--json")
	golden(t, "failure.jsonl", stdout)
	if code != exitBuild {
		t.Errorf("exit code %d, want %d", code, exitBuild)
	}
}

func TestJSONOutputOfUsageError(t *testing.T) {
	code, stdout, _ := runFake(t, t.Context(), &fakeClient{}, "ensure", "--json", "hermess")
	var got result
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	if code != exitUsage || got.OK || got.ExitCode != exitUsage || got.Error.Code != "unknown_runtime" ||
		got.Error.Message != `unknown runtime "hermess"` || !strings.HasPrefix(got.Error.Hint, "did you mean hermes? the known runtimes are ") {
		t.Errorf("exit code %d, result %s", code, stdout)
	}
}

func TestFailureOnStandardError(t *testing.T) {
	log := strings.Repeat("an early line\n", 30) + strings.Repeat("make: working\n", 18) + "\x1b[31mcc: not found\x1b[0m\nmake: failed\n"
	failed := &mol.Error{
		Code: mol.CodeBuildFailed, Runtime: "hermes", Message: "the build failed in the step [2/3] RUN make",
		Hint: "look at the step", Step: "[2/3] RUN make", Line: 2, LogTail: log,
		Excerpt: "  1 | FROM x\n> 2 | RUN make",
	}
	_, stdout, stderr := runFake(t, t.Context(), &fakeClient{err: failed}, "ensure", "hermes")
	golden(t, "failure.txt", stderr)
	if stdout != "" {
		t.Errorf("standard output is not empty: %s", stdout)
	}
}

func TestExitCodes(t *testing.T) {
	of := func(code mol.Code) error { return &mol.Error{Code: code, Message: "x"} }
	tests := []struct {
		err  error
		want int
	}{
		{nil, 0},
		{of(mol.CodeUnknownRuntime), 2},
		{of(mol.CodeInvalidOption), 2},
		{of(mol.CodeGiteaUnreachable), 3},
		{of(mol.CodeBadResponse), 3},
		{of(mol.CodeFetch), 3},
		{of(mol.CodeRepoNotFound), 4},
		{of(mol.CodeAuth), 4},
		{of(mol.CodeEngineUnreachable), 5},
		{of(mol.CodeBuilderUnreachable), 5},
		{of(mol.CodePlatformUnsupported), 5},
		{of(mol.CodeNoDockerfile), 6},
		{of(mol.CodeBuildFailed), 6},
		{of(mol.CodeStalled), 7},
		{of(mol.CodeTimeout), 7},
		{of(mol.CodeDeadlineExceeded), 7},
		{of(mol.CodeCache), 8},
		{fmt.Errorf("start: %w", workspace.ErrNotReady), 9},
		{of(mol.CodeInternal), 1},
		{errors.New("something else"), 1},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.err), func(t *testing.T) {
			code, _, _ := runFake(t, t.Context(), &fakeClient{err: tt.err}, "ensure", "hermes")
			if code != tt.want {
				t.Errorf("exit code %d, want %d", code, tt.want)
			}
		})
	}
}

func TestExitCodesAfterSignals(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		// net/http returns the cause of the cancellation in place of context.Canceled.
		for _, err := range []error{nil, fmt.Errorf("inspect: %w", &url.Error{Op: "Get", URL: "x", Err: signalError{sig}})} {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(signalError{sig})
			code, _, stderr := runFake(t, ctx, &fakeClient{err: err}, "ensure", "hermes")
			if code != want || !strings.Contains(stderr, "stopped: "+sig.String()) {
				t.Errorf("after %s, %v: exit code %d, want %d: %s", sig, err, code, want, stderr)
			}
		}
	}
}

func TestExitCodesTopic(t *testing.T) {
	code, stdout, _ := runFake(t, t.Context(), &fakeClient{}, "help", "exit-codes")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	golden(t, "exit-codes.txt", stdout)
}

func TestUsageErrors(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"ensrue", "hermes"}, "mol: unknown command \"ensrue\" for \"mol\"\nhint: did you mean ensure?\n"},
		{[]string{"--platform", "linux/arm64", "ensrue"}, "mol: unknown command \"ensrue\" for \"mol\"\nhint: did you mean ensure?\n"},
		{[]string{"kubernetes"}, "mol: unknown command \"kubernetes\" for \"mol\"\n"},
		{[]string{"ensure"}, "the runtime is missing: the known runtimes are autogen, claude-code"},
		{[]string{"ensure", "hermes", "codex"}, `only one runtime is allowed, not 2: "hermes", "codex"`},
		{[]string{"ensure", "hermess"}, "did you mean hermes? the known runtimes are autogen, claude-code"},
		{[]string{"ensure", "Claude-Code"}, "did you mean claude-code?"},
		{[]string{"up", "claude"}, "did you mean claude-code?"},
		{[]string{"ensure", "kubernetes"}, "unknown runtime \"kubernetes\"\nhint: the known runtimes are autogen"},
		{[]string{"ensure", "hermes", "--brunch", "x"}, "--brunch"},
		{[]string{"ensure", "hermes", "--timeout", "soon"}, "soon"},
		{[]string{"ensure", "hermes", "--token", "s3cret"}, "unknown flag: --token"},
		{[]string{"up", "hermes", "--env", "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is not set"},
		{[]string{"resolve", "hermes"}, "hermes"},
		{[]string{"ensure", "hermes@0123456789ab"}, `"0123456789ab" is not a commit id: use all 40 or 64 hexadecimal digits`},
		{[]string{"ensure", "hermes@"}, `"" is not a commit`},
		{[]string{"up", "hermes@main"}, `"main" is not a commit`},
		{[]string{"ensure", "hermse@" + testSHA}, "unknown runtime \"hermse\"\nhint: did you mean hermes? the known"},
		{[]string{"logs", "--build", "hermes@" + testSHA}, "unknown runtime"},
		{[]string{"ensure", "hermes", "--tag-arch", "Always"}, `"--tag-arch" flag: use auto or always`},
		{[]string{"ensure", "hermes", "--runtimes", "codex,google-adk"}, "unknown runtime \"hermes\"\nhint: the known runtimes are codex, google-adk\n"},
		{[]string{"ensure", "google-adj", "--runtimes", "google-adk"}, "did you mean google-adk?"},
		{[]string{"ensure", "--runtimes", "google-adk"}, "the runtime is missing: the known runtimes are google-adk\n"},
		{[]string{"list", "--runtimes", ""}, `"--runtimes" flag: "" is not a valid name`},
		{[]string{"list", "--runtimes", "hermes, codex"}, `"--runtimes" flag: " codex" is not a valid name`},
		{[]string{"list", "--runtimes", "Hermes"}, `"Hermes" is not a valid name`},
		{[]string{"list", "--runtimes", "hermes-"}, `"hermes-" is not a valid name`},
		{[]string{"ensure", "hermes", "--timeout", "0"}, `invalid argument "0" for "--timeout" flag: must be positive; leave the flag out for the limit of MOLECULE_BUILD_CEILING_S`},
		{[]string{"doctor", "--timeout", "-5m"}, `invalid argument "-5m" for "--timeout" flag: must be positive`},
		{[]string{"list", "--runtimes", strings.Repeat("a", 65)}, "use at most 64 lower-case letters"},
		{[]string{"list", "--runtimes", "codex,hermes,codex"}, `"--runtimes" flag: duplicate name "codex"`},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			code, stdout, stderr := runFake(t, t.Context(), &fakeClient{}, tt.args...)
			if code != exitUsage || stdout != "" || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, standard output %q, standard error:\n%s\nwant exit code %d and %q", code, stdout, stderr, exitUsage, tt.want)
			}
		})
	}
}

func TestErrorsOfArgumentsDoNotShowTheToken(t *testing.T) {
	cleanEnv(t)
	t.Setenv(tokenEnv, "t0ken-of-4-nobody")
	for _, args := range [][]string{{"ensure", "hermes", "t0ken-of-4-nobody"}, {"list", "t0ken-of-4-nobody"}, {"t0ken-of-4-nobody"}} {
		for _, args := range [][]string{args, append(args, "--json")} {
			code, stdout, stderr := runHere(t.Context(), &fakeClient{}, args...)
			if code != exitUsage || strings.Contains(stdout+stderr, "t0ken") || !strings.Contains(stdout+stderr, "***") {
				t.Errorf("mol %q: exit code %d: %s%s", args, code, stdout, stderr)
			}
		}
	}
}

func TestAdviceIsTheHintOfAnError(t *testing.T) {
	err := (&app{}).notUp(workspace.Config{ID: "x"}, fmt.Errorf("%w: it exited", workspace.ErrNotReady))
	_, _, stderr := runFake(t, t.Context(), &fakeClient{err: err}, "ensure", "hermes")
	const message, hint = `start workspace "x": the workspace did not become ready: it exited`, "start it again with --keep"
	if !strings.HasPrefix(stderr, "mol: "+message+"\nhint: "+hint) {
		t.Errorf("standard error:\n%s", stderr)
	}
	if got := failure(t.Context(), err).Error; got.Message != message || !strings.HasPrefix(got.Hint, hint) {
		t.Errorf("with --json: %+v", got)
	}
}

func TestFlagsMirrorTheEnvironment(t *testing.T) {
	f := &fakeClient{img: scriptImage()}
	code, _, stderr := runFake(t, t.Context(), f, "ensure", "hermes",
		"--repo-prefix", "https://git.example.com/org/tpl-", "--branch", "next", "--platform", "linux/arm64",
		"--isolation", "mine", "--cache-dir", "/var/cache/x", "--docker-host", "unix:///x.sock", "--offline")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	got := f.opts
	if got.RepoPrefix != "https://git.example.com/org/tpl-" || got.Branch != "next" || got.Platform != "linux/arm64" ||
		got.Isolation != "mine" || got.CacheDir != "/var/cache/x" || got.DockerHost != "unix:///x.sock" || !got.Offline {
		t.Errorf("options are %v", got)
	}
}

// Every command that uses runtimes passes the list of --runtimes to libmol.
func TestRuntimesReachEveryCommand(t *testing.T) {
	for _, command := range []string{"ensure google-adk", "logs --build google-adk", "list", "prune", "doctor"} {
		f := &fakeClient{img: scriptImage()}
		args := append(strings.Fields(command), "--runtimes", "hermes,google-adk")
		if code, _, stderr := runFake(t, t.Context(), f, args...); code != 0 {
			t.Errorf("mol %s: exit code %d: %s", command, code, stderr)
		}
		if diff := cmp.Diff([]string{"hermes", "google-adk"}, f.opts.Runtimes); diff != "" {
			t.Errorf("mol %s (-want +got):\n%s", command, diff)
		}
		if code, _, _ := runFake(t, t.Context(), f, strings.Fields(strings.Replace(command, "google-adk", "hermes", 1))...); code != 0 || f.opts.Runtimes != nil {
			t.Errorf("mol %s without the flag: exit code %d, runtimes %q", command, code, f.opts.Runtimes)
		}
	}
	// A valid name has at most 64 characters.
	longest := strings.Repeat("a", 64)
	if code, _, stderr := runFake(t, t.Context(), &fakeClient{}, "list", "--runtimes", longest+",0,a-b"); code != 0 {
		t.Error(stderr)
	}
}

func TestTagArchFlag(t *testing.T) {
	for args, want := range map[string]mol.TagArch{"": "", "--tag-arch auto": mol.TagArchAuto, "--tag-arch always": mol.TagArchAlways} {
		f := &fakeClient{img: scriptImage()}
		code, _, stderr := runFake(t, t.Context(), f, append([]string{"ensure", "hermes"}, strings.Fields(args)...)...)
		if code != 0 || f.opts.TagArch != want {
			t.Errorf("%q: exit code %d, %q: %s", args, code, f.opts.TagArch, stderr)
		}
	}
}

func TestEnsureCommitArgument(t *testing.T) {
	for arg, want := range map[string]string{
		"hermes":                               "",
		"hermes@" + testSHA:                    testSHA,
		"hermes@" + strings.ToUpper(testSHA):   strings.ToUpper(testSHA),
		"hermes@" + strings.Repeat("0f", 64/2): strings.Repeat("0f", 64/2),
	} {
		f := &fakeClient{img: scriptImage()}
		if code, _, stderr := runFake(t, t.Context(), f, "ensure", arg); code != 0 || f.commit != want {
			t.Errorf("mol ensure %s: exit code %d, commit %q: %s", arg, code, f.commit, stderr)
		}
	}
}

func TestTimeoutFlagEndsTheCall(t *testing.T) {
	code, _, _ := runFake(t, t.Context(), &fakeClient{}, "ensure", "hermes", "--timeout", "1ns")
	if code != exitTimeout {
		t.Errorf("exit code %d, want %d", code, exitTimeout)
	}
}

func TestResolve(t *testing.T) {
	tests := []struct{ registry, plain, asJSON string }{
		{"", "local molecule-local\n", `{"kind":"result","ok":true,"exit_code":0,"mode":"local","prefix":"molecule-local"}` + "\n"},
		{"registry.example.com/a b", "saas registry.example.com/a b\n", `{"kind":"result","ok":true,"exit_code":0,"mode":"saas","prefix":"registry.example.com/a b"}` + "\n"},
	}
	for _, tt := range tests {
		for args, want := range map[string]string{"resolve": tt.plain, "resolve --json": tt.asJSON} {
			cleanEnv(t)
			t.Setenv("MOLECULE_IMAGE_REGISTRY", tt.registry)
			var out bytes.Buffer
			a := &app{stdout: &out, stderr: &out}
			if code := a.run(t.Context(), strings.Fields(args)); code != 0 || out.String() != want {
				t.Errorf("mol %s: exit code %d, %q; want %q", args, code, out.String(), want)
			}
		}
	}
}

func TestVersionWorksWithoutAnEngine(t *testing.T) {
	cleanEnv(t)
	t.Setenv(hostEnv, "unix:///nowhere/docker.sock")
	code, stdout, _ := runHere(t.Context(), &fakeClient{}, "version")
	want := regexp.MustCompile(`^mol .+\nlibmol .+, ABI \d+\ngo1\..+\nengine: none answers; mol doctor says why\n$`)
	if code != 0 || !want.MatchString(stdout) {
		t.Errorf("exit code %d, %q", code, stdout)
	}
}

func TestEnvFlag(t *testing.T) {
	t.Setenv("MODEL_API_KEY", "s3cret=")
	var vars []string
	for _, s := range []string{"A=1", "B=", "MODEL_API_KEY"} {
		if err := (envFlag{&vars}).Set(s); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"A=1", "B=", "MODEL_API_KEY=s3cret="}, vars); diff != "" {
		t.Error(diff)
	}
	if err := (envFlag{&vars}).Set("=1"); err == nil {
		t.Error("a variable without a name was accepted")
	}
}

func TestPlainDisplayShowsWholePulls(t *testing.T) {
	for _, verbose := range []bool{false, true} {
		var out bytes.Buffer
		d := newPlainDisplay(&out, began, verbose)
		for i, e := range pullEvents() {
			e.Time = began.Add(time.Duration(i) * 300 * time.Millisecond)
			if i >= 6 {
				e.Time = e.Time.Add(progressEvery)
			}
			d.event(e)
		}
		const step = "[a 1/2] FROM docker.io/library/python:3.13: "
		want := []string{step + "pulling the base image\n", step + "12 MiB / 44 MiB, 2.0 MiB/s, 16s left\n", step + "pulled 44 MiB in 21.0s\n"}
		if verbose {
			want[1] = step + "download sha256:aa: 4.0 MiB / 4.0 MiB\n"
		}
		for _, line := range want {
			if strings.Count(out.String(), line) != 1 {
				t.Errorf("with verbose=%v, %q is not in\n%s", verbose, line, out.String())
			}
		}
	}
}

func TestProgressFlag(t *testing.T) {
	for args, want := range map[string]string{
		"--progress plain": "looking up " + testURL,
		"--progress auto":  "looking up " + testURL,
		"--progress quiet": "^$",
	} {
		f := &fakeClient{events: scriptedEvents(), img: scriptImage()}
		code, stdout, stderr := runFake(t, t.Context(), f, append([]string{"ensure", "hermes"}, strings.Fields(args)...)...)
		if code != 0 || stdout != testRef+"\n" || !regexp.MustCompile(want).MatchString(stderr) {
			t.Errorf("%s: exit code %d, %q, %q", args, code, stdout, stderr)
		}
	}
	f := &fakeClient{events: scriptedEvents(), img: scriptImage()}
	_, plain, _ := runFake(t, t.Context(), f, "ensure", "hermes", "--json")
	_, asJSON, stderr := runFake(t, t.Context(), f, "ensure", "hermes", "--progress=json")
	if asJSON != plain || stderr != "" || !strings.Contains(asJSON, `"kind":"result"`) {
		t.Errorf("--progress=json: %q, %q", asJSON, stderr)
	}
	for args, want := range map[string]string{
		"--progress tty":          "--progress=tty needs a terminal on standard error: use --progress=plain",
		"--progress plain --json": "--json and --progress=plain contradict each other",
		"--progress fancy":        "use auto, plain, tty, quiet or json",
	} {
		code, stdout, stderr := runFake(t, t.Context(), f, append([]string{"ensure", "hermes"}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(stdout+stderr, want) {
			t.Errorf("%s: exit code %d, %q", args, code, stdout+stderr)
		}
	}
}
