package mol_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// A server's Start() chooses the image and passes its reference to the engine.
func Example() {
	var ensureLocalImageHook = mol.EnsureLocalImage

	start := func(ctx context.Context, runtime string) error {
		var image string
		switch source := mol.Resolve(); source.Mode {
		case mol.RegistryModeSaaS:
			image = source.Prefix + "/workspace-template-" + runtime + ":latest"
		case mol.RegistryModeLocal:
			var err error
			if image, err = ensureLocalImageHook(ctx, runtime); err != nil {
				return fmt.Errorf("start workspace: %w", err)
			}
		}
		return createContainer(ctx, image)
	}

	err := start(context.Background(), "claude-kode")
	fmt.Println(errors.Is(err, mol.ErrUnknownRuntime))
	// Output: true
}

func createContainer(context.Context, string) error { return nil }

// A Client with its own options, which shows the progress of a build.
func ExampleClient() {
	options := mol.OptionsFromEnv()
	options.Ceiling = 45 * time.Minute
	options.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	options.OnEvent = func(e mol.Event) {
		switch e.Kind {
		case mol.EventStepStarted:
			fmt.Printf("step %d of %d: %s\n", e.Step, e.Steps, e.StepName)
		case mol.EventLog:
			fmt.Println(e.Line)
		}
	}
	client, err := mol.New(options)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = client.Close() }()

	image, err := client.EnsureLocalImage(context.Background(), "claude-code")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(image.Ref, image.CacheHit, image.Timings.Total)
}

// errors.Is distinguishes the kinds of failure; the Error has the texts for people.
func ExampleError() {
	_, err := mol.EnsureLocalImage(context.Background(), "claude-kode")
	if errors.Is(err, mol.ErrUnknownRuntime) {
		var e *mol.Error
		if errors.As(err, &e) {
			fmt.Println(e.Code)
			fmt.Println(e.Message)
		}
	}
	// Output:
	// unknown_runtime
	// unknown runtime "claude-kode"
}

func ExampleResolve() {
	_ = os.Setenv("MOLECULE_IMAGE_REGISTRY", "registry.example.com/molecule")
	fmt.Println(mol.Resolve())
	_ = os.Unsetenv("MOLECULE_IMAGE_REGISTRY")
	fmt.Println(mol.Resolve())
	// Output:
	// {saas registry.example.com/molecule}
	// {local molecule-local}
}

func ExampleIsKnownRuntime() {
	fmt.Println(mol.IsKnownRuntime("claude-code"), mol.IsKnownRuntime("Claude-Code"))
	// Output: true false
}

func ExampleKnownRuntimes() {
	fmt.Println(mol.KnownRuntimes()[:3])
	// Output: [autogen claude-code codex]
}

func ExampleIsLocalBuildImage() {
	fmt.Println(mol.IsLocalBuildImage("molecule-local/workspace-template-hermes:0123456789ab"))
	fmt.Println(mol.IsLocalBuildImage("registry.example.com/workspace-template-hermes:latest"))
	// Output:
	// true
	// false
}

func ExampleCacheKey() {
	fmt.Println(mol.CacheKey("hermes", "0123456789abcdef0123456789abcdef01234567", "https://git.example.com/org/template-"))
	// Output: ef7a42c4ae6008df
}

func ExampleGiteaBranchAPIURL() {
	fmt.Println(mol.GiteaBranchAPIURL("https://git.example.com/gitea/org/template-", "hermes", "feature/x"))
	// Output: https://git.example.com/gitea/api/v1/repos/org/template-hermes/branches/feature%2Fx <nil>
}

func ExampleParseGiteaBranchHeadSha() {
	fmt.Println(mol.ParseGiteaBranchHeadSha([]byte(`{"name": "main", "commit": {"id": "0123456789abcdef0123456789abcdef01234567"}}`)))
	// Output: 0123456789abcdef0123456789abcdef01234567 <nil>
}

func ExampleMaskTokenInURL() {
	fmt.Println(mol.MaskTokenInURL("https://user:s3cr3t@git.example.com/org/repo"))
	// Output: https://***@git.example.com/org/repo
}

func ExampleMaskTokenInString() {
	fmt.Println(mol.MaskTokenInString("sent Basic Z2l0OnMzY3IzdC10b2tlbg== and token s3cr3t-token", "s3cr3t-token"))
	// Output: sent Basic *** and token ***
}
