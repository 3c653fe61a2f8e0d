module git.moleculesai.app/molecule-ai/libmol/go/examples/demo

go 1.26.0

require (
	git.moleculesai.app/molecule-ai/libmol/go/examples/provisioner v0.0.0-00010101000000-000000000000
	git.moleculesai.app/molecule-ai/libmol/go/mol v0.0.0
	git.moleculesai.app/molecule-ai/libmol/go/templateserver v0.0.0-00010101000000-000000000000
	git.moleculesai.app/molecule-ai/libmol/go/workspace v0.0.0
	github.com/containerd/errdefs v1.0.0
	github.com/moby/moby/client v0.6.2
	golang.org/x/term v0.47.0
)

require (
	github.com/Microsoft/go-winio v0.6.2 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/containerd/errdefs/pkg v0.3.0 // indirect
	github.com/distribution/reference v0.6.0 // indirect
	github.com/docker/cli v29.9.3+incompatible // indirect
	github.com/docker/docker-credential-helpers v0.9.3 // indirect
	github.com/docker/go-connections v0.8.2 // indirect
	github.com/docker/go-units v0.5.0 // indirect
	github.com/felixge/httpsnoop v1.0.4 // indirect
	github.com/fvbommel/sortorder v1.2.1 // indirect
	github.com/go-logr/logr v1.4.3 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/moby/docker-image-spec v1.3.1 // indirect
	github.com/moby/moby/api v1.56.1 // indirect
	github.com/moby/sys/atomicwriter v0.1.0 // indirect
	github.com/moby/sys/sequential v0.6.0 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/opencontainers/image-spec v1.1.1 // indirect
	github.com/sirupsen/logrus v1.9.4 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp v0.61.0 // indirect
	go.opentelemetry.io/otel v1.41.0 // indirect
	go.opentelemetry.io/otel/metric v1.41.0 // indirect
	go.opentelemetry.io/otel/trace v1.41.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace (
	git.moleculesai.app/molecule-ai/libmol/go/examples/provisioner => ../provisioner
	git.moleculesai.app/molecule-ai/libmol/go/mol => ../../mol
	git.moleculesai.app/molecule-ai/libmol/go/templateserver => ../../templateserver
	git.moleculesai.app/molecule-ai/libmol/go/workspace => ../../workspace
)
