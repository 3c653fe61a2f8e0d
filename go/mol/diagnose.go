package mol

import (
	"context"
	goruntime "runtime"
)

// CheckStatus is the result of a check.
type CheckStatus string

const (
	// CheckOK means that the check passed.
	CheckOK CheckStatus = "ok"
	// CheckWarning means that builds may work, but that something should be looked at.
	CheckWarning CheckStatus = "warning"
	// CheckProblem means that builds fail.
	CheckProblem CheckStatus = "problem"
)

// Check is one line of a diagnosis.
type Check struct {
	// Name is what was checked: "engine", "cache disk", a runtime's name and so on.
	Name   string      `json:"name"`
	Status CheckStatus `json:"status"`
	// Found is the finding, in one line.
	Found string `json:"found"`
	// Fix says how to fix it; "" for CheckOK.
	Fix string `json:"fix"`
	// Cause is the name of the check whose failure caused this one, or "" if there is none.
	Cause string `json:"cause"`
}

// Diagnosis is the checks of everything that a build depends on, always in the same order. It is safe to
// publish: it contains no token, no password and no userinfo of a URL.
type Diagnosis struct {
	// Version is the version of the library.
	Version string `json:"version"`
	// Status is the worst status of all checks.
	Status CheckStatus `json:"status"`
	Checks []Check     `json:"checks"`
}

// Diagnose checks everything that a build depends on: which engine is used and why, its version, builder, platform and
// disk, the cache and its disk, logins for registries, the proxy, Gitea, the token, the clock, and the template of each
// runtime. It changes nothing. Problems are in the diagnosis; they do not make Diagnose return an error. Each check has
// its own time limit, so Diagnose returns within half a minute even if nothing answers. The context is as for
// [Client.EnsureLocalImage].
func (c *Client) Diagnose(ctx context.Context) (Diagnosis, error) {
	var diagnosis Diagnosis
	err := c.inner.report(ctx, task{kind: taskDiagnose}, &diagnosis)
	goruntime.KeepAlive(c)
	if err != nil {
		return Diagnosis{}, err
	}
	return diagnosis, nil
}

// Diagnose is [Client.Diagnose] with the options of the environment. Invalid options are an error.
func Diagnose(ctx context.Context) (Diagnosis, error) {
	return withShared(ctx, (*Client).Diagnose)
}
