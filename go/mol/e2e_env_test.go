//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The environment, through OptionsFromEnv: each variable of the contract has its effect. The prefix, the cache,
// the isolation and DOCKER_HOST are what setenv itself sets, so every test here is one of them too.

// fromEnv is a client as EnsureLocalImage makes it.
func (b *bed) fromEnv() *testClient {
	b.Helper()
	return b.clientOf(OptionsFromEnv())
}

// envBed is a bed in the environment, with a template.
func envBed(t *testing.T, flags ...string) (b *bed, sha string) {
	t.Helper()
	b = newBed(t, flags...)
	b.setenv()
	return b, b.template("hermes", dockerfile(plain))
}

func TestThePrefixTheCacheTheIsolationAndTheEngineAreThoseOfTheEnvironment(t *testing.T) {
	b, sha := envBed(t)
	image := b.fromEnv().ensure("hermes")
	if image.Ref != b.ref("hermes", sha) || image.Endpoint != b.engine.url || b.engine.id(b, image.Ref) == "" {
		t.Errorf("got %+v", image)
	}
	if _, err := os.Stat(b.tree("hermes", sha)); err != nil {
		t.Error(err)
	}
	// Another isolation never sees this image.
	t.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", b.isolation+".b")
	t.Cleanup(func() { b.engine.removeAllOf(t, b.isolation+".b") })
	if other := b.fromEnv().ensure("hermes"); other.CacheHit || other.Ref != image.Ref+".b" || other.LatestRef != image.LatestRef+".b" {
		t.Errorf("got %+v", other)
	}
}

func TestMOLECULE_LOCAL_TEMPLATE_BRANCH(t *testing.T) {
	b, _ := envBed(t)
	sha := b.server.commit(b, templateRepo("hermes"), "feature/größe", dockerfile(plain))
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", "feature/größe")
	if got := b.fromEnv().ensure("hermes").CommitSHA; got != sha {
		t.Errorf("got %s", got)
	}
}

func TestMOLECULE_GITEA_TOKEN(t *testing.T) {
	b, sha := envBed(t, "--token", plainToken)
	b.fromEnv().refused("hermes", ErrAuth)
	t.Setenv("MOLECULE_GITEA_TOKEN", plainToken)
	if got := b.fromEnv().ensure("hermes").CommitSHA; got != sha {
		t.Errorf("got %s", got)
	}
}

func TestWithoutMOLECULE_LOCAL_BUILD_CACHEItIsBelowTheUsersCacheFolder(t *testing.T) {
	b, sha := envBed(t)
	unsetenv(t, "MOLECULE_LOCAL_BUILD_CACHE")
	below := filepath.Join("molecule", "workspace-template-build", "hermes", sha[:12])
	for _, c := range []struct{ name, value, want string }{
		{"HOME", "home", "home/.cache"}, {"XDG_CACHE_HOME", "xdg", "xdg"},
	} {
		t.Setenv(c.name, filepath.Join(b.dir, c.value))
		b.fromEnv().ensure("hermes")
		if _, err := os.Stat(filepath.Join(b.dir, c.want, below)); err != nil {
			t.Error(err)
		}
		b.engine.removeAllOf(b, b.isolation)
	}
	unsetenv(t, "HOME")
	unsetenv(t, "XDG_CACHE_HOME")
	t.Setenv("TMPDIR", filepath.Join(b.dir, "tmp"))
	b.fromEnv().ensure("hermes")
	if _, err := os.Stat(filepath.Join(b.dir, "tmp", below)); err != nil {
		t.Error(err)
	}
}

func TestMOLECULE_IMAGE_PLATFORMIsInTheTagSoThatNoOtherPlatformHits(t *testing.T) {
	b, sha := envBed(t)
	for _, c := range []struct{ platform, suffix string }{
		{"linux/amd64", ""}, {"linux/386", "-386"}, {"linux/amd64/v2", "-amd64-v2"},
	} {
		t.Setenv("MOLECULE_IMAGE_PLATFORM", c.platform)
		image := b.fromEnv().ensure("hermes")
		want := "molecule-local/workspace-template-hermes:" + sha[:12] + c.suffix + "--" + b.isolation
		if image.CacheHit || image.Platform != c.platform || image.Ref != want || image.Ref != LocalImageTag("hermes", sha) || image.LatestRef != LocalImageLatestTag("hermes") {
			t.Errorf("%s: got %+v", c.platform, image)
		}
		if !b.fromEnv().ensure("hermes").CacheHit {
			t.Errorf("%s: no hit", c.platform)
		}
	}
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "native")
	if image := b.fromEnv().ensure("hermes"); image.Ref != LocalImageTag("hermes", sha) || !strings.HasPrefix(image.Platform, "linux/") {
		t.Errorf("native: got %+v", image)
	}
}

func TestMOLECULE_LOCAL_OFFLINEIsTheNewestImageAndNoNetwork(t *testing.T) {
	b, _ := envBed(t)
	t.Setenv("MOLECULE_LOCAL_OFFLINE", "1")
	e := b.fromEnv().refused("hermes", ErrNoLocalImage)
	says(t, e.Message, "hermes")
	says(t, e.Hint, "MOLECULE_LOCAL_OFFLINE")

	t.Setenv("MOLECULE_LOCAL_OFFLINE", "0")
	b.fromEnv().ensure("hermes")
	// The engine tells the age of an image in whole seconds.
	time.Sleep(1100 * time.Millisecond)
	b.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /"+unique()+"\n"))
	newest := b.fromEnv().ensure("hermes")
	b.server.fresh(b)
	t.Setenv("MOLECULE_LOCAL_OFFLINE", "1")
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", b.server.RepoPrefix)
	image := b.fromEnv().ensure("hermes")
	if !image.CacheHit || image.Ref != newest.Ref || image.LatestRef != newest.LatestRef || image.ImageID != newest.ImageID || image.CommitSHA != newest.CommitSHA {
		t.Errorf("got %+v and not %+v", image, newest)
	}
	if got := b.server.fresh(b); len(got) > 0 {
		t.Errorf("asked %+v", got)
	}
	// It is never implied by a failure.
	unsetenv(t, "MOLECULE_LOCAL_OFFLINE")
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "http://127.0.0.1:1/o/workspace-template-")
	b.fromEnv().refused("hermes", ErrGiteaUnreachable)
}

func TestMOLECULE_LOCAL_RUNTIME_VERSION_PIN(t *testing.T) {
	b := newBed(t)
	b.setenv()
	text := "FROM " + busybox + "\nARG RUNTIME_VERSION=none\nRUN echo \"$RUNTIME_VERSION\" > /version # " + unique() + "\n"
	for _, c := range []struct{ value, pin, want string }{{"", "1.0.0", "none"}, {"0", "1.0.1", "none"}, {"1", "v2.0.0", "2.0.0"}} {
		t.Setenv("MOLECULE_LOCAL_RUNTIME_VERSION_PIN", c.value)
		b.template("hermes", files{"Dockerfile": {Text: text}, ".runtime-version": {Text: c.pin}})
		if got := strings.TrimSpace(b.engine.read(b, b.fromEnv().ensure("hermes").Ref, "version")); got != c.want {
			t.Errorf("%q: the version is %q", c.value, got)
		}
	}
}

func TestTheStallGraceAndTheCeilingEndABuildAndSaySo(t *testing.T) {
	for _, c := range []struct {
		variable, seconds string
		want              error
	}{
		{"MOLECULE_BUILD_STALL_GRACE_S", "2", ErrStalled}, {"MOLECULE_BUILD_CEILING_S", "3", ErrTimeout},
	} {
		t.Run(c.variable, func(t *testing.T) {
			b := newBed(t)
			b.setenv()
			word := b.endless("hermes")
			t.Setenv(c.variable, c.seconds)
			client := b.fromEnv()
			e := client.refused("hermes", c.want)
			ended := time.Now()
			says(t, e.Hint, c.variable)
			if c.want == ErrStalled {
				says(t, e.Step, word)
			}
			client.waitForLine(word)
			b.isGone(word, ended)
			if errors.Is(e, context.DeadlineExceeded) || errors.Is(e, context.Canceled) {
				t.Errorf("no context has ended: %#v", e)
			}
		})
	}
}

func TestDOCKER_CONTEXTAndTheConfigurationsOwnContext(t *testing.T) {
	b, _ := envBed(t)
	config := filepath.Join(b.dir, "docker")
	write := func(path string, value any) {
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		path = filepath.Join(config, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const name = "the tests"
	write(fmt.Sprintf("contexts/meta/%x/meta.json", sha256.Sum256([]byte(name))), map[string]any{
		"Name": name, "Metadata": map[string]any{}, "Endpoints": map[string]any{"docker": map[string]any{"Host": b.engine.url}},
	})
	t.Setenv("DOCKER_CONFIG", config)
	unsetenv(t, "DOCKER_HOST")
	t.Setenv("DOCKER_CONTEXT", name)
	if got := b.fromEnv().ensure("hermes").Endpoint; got != b.engine.url {
		t.Errorf("got %s", got)
	}
	unsetenv(t, "DOCKER_CONTEXT")
	write("config.json", map[string]string{"currentContext": name})
	if !b.fromEnv().ensure("hermes").CacheHit {
		t.Error("no hit")
	}
	// DOCKER_HOST wins.
	t.Setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
	t.Setenv("DOCKER_CONTEXT", name)
	says(t, b.fromEnv().refused("hermes", ErrEngineUnreachable).Message, "tcp://127.0.0.1:1")
	unsetenv(t, "DOCKER_HOST")
	t.Setenv("DOCKER_CONTEXT", "no such context")
	says(t, b.fromEnv().refused("hermes", ErrInvalidOption).Message, "no such context")
}

func TestDOCKER_BUILDKIT(t *testing.T) {
	b, _ := envBed(t)
	for value, want := range map[string]string{"0": "classic", "1": "buildkit", "": "buildkit"} {
		t.Setenv("DOCKER_BUILDKIT", value)
		c := b.fromEnv()
		c.ensure("hermes")
		if got := c.waitFor(EventBuildStarted, nil).Builder; got != want {
			t.Errorf("%q: got %s", value, got)
		}
		b.engine.removeAllOf(b, b.isolation)
	}
}

func TestTheWholeJobGoesThroughTheProxyExceptWhereNO_PROXYSaysSo(t *testing.T) {
	b, _ := envBed(t)
	target, err := url.Parse(b.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, ErrorLog: discard}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Host != "gitea.invalid" {
			http.Error(w, "no proxy request: "+r.RequestURI, http.StatusTeapot)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	direct := b.server.RepoPrefix
	for _, name := range []string{"HTTP_PROXY", "http_proxy"} {
		t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", strings.Replace(direct, target.Host, "gitea.invalid", 1))
		t.Setenv(name, proxy.URL)
		asked.Store(0)
		if image := b.fromEnv().ensure("hermes"); image.CacheHit || asked.Load() < 3 {
			t.Errorf("%s: the proxy was asked %d times, for %+v", name, asked.Load(), image)
		}
		b.engine.removeAllOf(b, b.isolation)
		_ = os.RemoveAll(b.cache())

		asked.Store(0)
		t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", direct)
		t.Setenv("NO_PROXY", "example.com,127.0.0.1")
		if image := b.fromEnv().ensure("hermes"); image.CacheHit || asked.Load() != 0 {
			t.Errorf("NO_PROXY: the proxy was asked %d times, for %+v", asked.Load(), image)
		}
		unsetenv(t, name)
		unsetenv(t, "NO_PROXY")
		b.engine.removeAllOf(b, b.isolation)
		_ = os.RemoveAll(b.cache())
	}
	t.Setenv("HTTP_PROXY", "http://me:hunter2@127.0.0.1:1")
	e := b.fromEnv().refused("hermes", ErrGiteaUnreachable)
	says(t, e.Hint, "proxy")
	if text := strings.Join(shownErrors(e), " "); strings.Contains(text, "hunter2") {
		t.Errorf("it shows the proxy's password: %s", text)
	}
}

func TestHTTPS_PROXYIsAskedForATunnel(t *testing.T) {
	b, _ := envBed(t)
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "https://gitea.invalid/o/workspace-template-")
	for _, name := range []string{"HTTPS_PROXY", "https_proxy"} {
		var line atomic.Value
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			line.Store(r.Method + " " + r.RequestURI)
			http.Error(w, "no", http.StatusTeapot)
		}))
		t.Setenv(name, proxy.URL)
		b.fromEnv().refused("hermes", ErrGiteaUnreachable)
		if got := line.Load(); got != "CONNECT gitea.invalid:443" {
			t.Errorf("%s: asked %v", name, got)
		}
		unsetenv(t, name)
		proxy.Close()
	}
}

func TestSSL_CERT_FILEAndSSL_CERT_DIRAreTrusted(t *testing.T) {
	b, sha := envBed(t)
	target, err := url.Parse(b.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	authority, server := certificates(t)
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, ErrorLog: discard,
	})
	front.TLS = &tls.Config{Certificates: []tls.Certificate{server}}
	front.Config.ErrorLog = discard
	front.StartTLS()
	t.Cleanup(front.Close)
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", strings.Replace(b.server.RepoPrefix, b.server.URL, front.URL, 1))

	says(t, b.fromEnv().refused("hermes", ErrGiteaUnreachable).Hint, "SSL_CERT_FILE")
	dir := filepath.Join(b.dir, "certs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "authority.pem")
	if err := os.WriteFile(file, authority, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"SSL_CERT_FILE": file, "SSL_CERT_DIR": dir} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			if got := b.fromEnv().ensure("hermes"); got.CommitSHA != sha || got.CacheHit {
				t.Errorf("got %+v", got)
			}
			b.engine.removeAllOf(b, b.isolation)
			_ = os.RemoveAll(b.cache())
		})
	}
	t.Setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
	if _, err := New(OptionsFromEnv()); !errors.Is(err, ErrInvalidOption) || !strings.Contains(err.Error(), "SSL_CERT_FILE") {
		t.Errorf("got %v", err)
	}
}

// certificates are an authority's, as PEM, and a server's that it has signed.
func certificates(t *testing.T) (authority []byte, server tls.Certificate) {
	t.Helper()
	sign := func(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parentKey == nil {
			parentKey = key
		}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		return der, key
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "libmol's tests"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, caKey := sign(ca, ca, nil)
	der, key := sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestTheHookSeesAChangedEnvironmentAtItsNextCall(t *testing.T) {
	b, sha := envBed(t)
	if ref, err := EnsureLocalImage(t.Context(), "hermes"); err != nil || ref != b.ref("hermes", sha) {
		t.Fatalf("got %q and %v", ref, err)
	}
	elsewhere := filepath.Join(b.dir, "elsewhere")
	t.Setenv("MOLECULE_LOCAL_BUILD_CACHE", elsewhere)
	b.engine.removeAllOf(b, b.isolation)
	if ref, err := EnsureLocalImage(t.Context(), "hermes"); err != nil || ref != b.ref("hermes", sha) {
		t.Fatalf("got %q and %v", ref, err)
	}
	if _, err := os.Stat(elsewhere); errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the new cache was not used: %v", err)
	}
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
	if ref, err := EnsureLocalImage(t.Context(), "hermes"); ref != "" || !errors.Is(err, ErrEngineUnreachable) {
		t.Errorf("got %q and %v", ref, err)
	}
}
