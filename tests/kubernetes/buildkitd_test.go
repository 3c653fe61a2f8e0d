// Package kubernetes checks examples/kubernetes/buildkitd.yaml without a cluster: against the types of Kubernetes, in which
// a misspelt field is an error, and its configuration of BuildKit against BuildKit's types, which buildkitd itself does
// not check.
package kubernetes

import (
	"bytes"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/pelletier/go-toml/v2"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const manifest = "../../examples/kubernetes/buildkitd.yaml"

// objects are those of the file.
type objects struct {
	namespace corev1.Namespace
	config    corev1.ConfigMap
	service   corev1.Service
	set       appsv1.StatefulSet
	budget    policyv1.PodDisruptionBudget
}

// read parses the file strictly. Each object is there once, and there are no others.
func read(t *testing.T) *objects {
	t.Helper()
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	var found objects
	wanted := map[metav1.TypeMeta]any{
		{APIVersion: "v1", Kind: "Namespace"}:                  &found.namespace,
		{APIVersion: "v1", Kind: "ConfigMap"}:                  &found.config,
		{APIVersion: "v1", Kind: "Service"}:                    &found.service,
		{APIVersion: "apps/v1", Kind: "StatefulSet"}:           &found.set,
		{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}: &found.budget,
	}
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		object := wanted[kind]
		if object == nil {
			t.Fatalf("an unexpected or second object: %v", kind)
		}
		delete(wanted, kind)
		if err := yaml.UnmarshalStrict(document, object); err != nil {
			t.Errorf("%s: %v", kind.Kind, err)
		}
	}
	for kind := range wanted {
		t.Errorf("no object is a %s", kind.Kind)
	}
	return &found
}

func TestTheObjectsBelongTogether(t *testing.T) {
	found := read(t)
	for name, object := range map[string]metav1.Object{
		"the configuration": &found.config, "the service": &found.service, "the stateful set": &found.set, "the budget": &found.budget,
	} {
		if object.GetNamespace() != found.namespace.Name || object.GetName() != "buildkitd" {
			t.Errorf("%s is %s/%s", name, object.GetNamespace(), object.GetName())
		}
	}
	labels := found.set.Spec.Template.Labels
	for name, selector := range map[string]map[string]string{
		"the service":      found.service.Spec.Selector,
		"the stateful set": found.set.Spec.Selector.MatchLabels,
		"the budget":       found.budget.Spec.Selector.MatchLabels,
		"the spreading":    found.set.Spec.Template.Spec.TopologySpreadConstraints[0].LabelSelector.MatchLabels,
	} {
		if len(labels) == 0 || !maps.Equal(selector, labels) {
			t.Errorf("%s selects %v, and the pods have %v", name, selector, labels)
		}
	}
	if found.service.Spec.ClusterIP != corev1.ClusterIPNone || found.set.Spec.ServiceName != found.service.Name {
		t.Error("the pods have no names of their own")
	}
}

func TestThePodsMountWhatTheyNeed(t *testing.T) {
	found := read(t)
	pod := found.set.Spec.Template.Spec
	if len(pod.Containers) != 1 {
		t.Fatalf("%d containers", len(pod.Containers))
	}
	volumes := map[string]bool{}
	for _, volume := range pod.Volumes {
		volumes[volume.Name] = true
		if volume.ConfigMap != nil && volume.ConfigMap.Name != found.config.Name {
			t.Errorf("there is no configuration %s", volume.ConfigMap.Name)
		}
		if volume.Secret != nil && *volume.Secret.DefaultMode != 0o400 {
			t.Errorf("the key has the mode %#o", *volume.Secret.DefaultMode)
		}
	}
	for _, claim := range found.set.Spec.VolumeClaimTemplates {
		volumes[claim.Name] = true
	}
	mounts := map[string]bool{}
	for _, mount := range pod.Containers[0].VolumeMounts {
		mounts[mount.MountPath] = true
		if !volumes[mount.Name] {
			t.Errorf("there is no volume %s", mount.Name)
		}
		delete(volumes, mount.Name)
	}
	if len(volumes) > 0 {
		t.Errorf("not mounted: %v", volumes)
	}
	tls := parse(t, found.config.Data["buildkitd.toml"]).GRPC.TLS
	for _, file := range []string{tls.CA, tls.Cert, tls.Key} {
		if !mounts[path.Dir(file)] {
			t.Errorf("%s is in none of %v", file, mounts)
		}
	}
	// Where buildkitd looks for its configuration, and where it has its data.
	if !mounts["/etc/buildkit"] || !mounts["/var/lib/buildkit"] {
		t.Errorf("the mounts are %v", mounts)
	}
}

func TestThePodsArePrivilegedOnlyInAUserNamespace(t *testing.T) {
	pod := read(t).set.Spec.Template.Spec
	if pod.HostUsers == nil || *pod.HostUsers || *pod.AutomountServiceAccountToken {
		t.Error("the pods are root on the node, or can use the API")
	}
	if len(pod.InitContainers) != 1 || !strings.Contains(strings.Join(pod.InitContainers[0].Command, " "), "/proc/self/uid_map") {
		t.Error("nothing checks the user namespace")
	}
	for _, container := range append(pod.InitContainers, pod.Containers...) {
		if container.Image != pod.Containers[0].Image {
			t.Errorf("%s has the image %s", container.Name, container.Image)
		}
		if container.Resources.Limits.Memory().IsZero() || container.Resources.Requests.Cpu().IsZero() {
			t.Errorf("%s has no limits", container.Name)
		}
	}
}

func TestTheProbesAskTheDaemon(t *testing.T) {
	container := read(t).set.Spec.Template.Spec.Containers[0]
	for name, probe := range map[string]*corev1.Probe{
		"startup": container.StartupProbe, "readiness": container.ReadinessProbe, "liveness": container.LivenessProbe,
	} {
		if probe == nil || probe.Exec == nil || !slices.Equal(probe.Exec.Command, []string{"buildctl", "debug", "workers"}) {
			t.Errorf("the %s probe is %v", name, probe)
		}
	}
	liveness := container.LivenessProbe
	if seconds := liveness.PeriodSeconds * liveness.FailureThreshold; seconds < 300 {
		t.Errorf("a busy daemon is restarted after %d seconds", seconds)
	}
}

// parse reads a configuration of buildkitd strictly.
func parse(t *testing.T, text string) config.Config {
	t.Helper()
	var parsed config.Config
	decoder := toml.NewDecoder(strings.NewReader(text))
	if err := decoder.DisallowUnknownFields().Decode(&parsed); err != nil {
		t.Errorf("%v in\n%s", err, text)
	}
	return parsed
}

func TestTheConfigurationsOfBuildKitAreValid(t *testing.T) {
	found := read(t)
	guide, err := os.ReadFile("../../docs/farm.md")
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{found.config.Data["buildkitd.toml"]}
	for _, block := range regexp.MustCompile("(?s)\n```toml\n(.*?)\n```\n").FindAllSubmatch(guide, -1) {
		texts = append(texts, string(block[1]))
	}
	if len(texts) < 2 {
		t.Error("docs/farm.md has no configuration")
	}
	for _, text := range texts {
		parsed := parse(t, text)
		tls := parsed.GRPC.TLS
		if tls.CA == "" || tls.Cert == "" || tls.Key == "" {
			t.Errorf("anyone may use the builder of\n%s", text)
		}
		gc := parsed.Workers.OCI.GCConfig
		if gc.IsUnset() || gc.GC != nil && !*gc.GC {
			t.Errorf("the cache has no limit in\n%s", text)
		}
	}
	port := found.service.Spec.Ports[0].Port
	if got := found.set.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort; got != port {
		t.Errorf("the pods listen on %d, and the service has %d", got, port)
	}
}
