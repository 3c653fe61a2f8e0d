package mol

import (
	"context"
	goruntime "runtime"
)

// CheckStatus says how a thing is.
type CheckStatus string

const (
	// CheckOK is well.
	CheckOK CheckStatus = "ok"
	// CheckWarning works, or may, and is worth a look.
	CheckWarning CheckStatus = "warning"
	// CheckProblem makes builds fail.
	CheckProblem CheckStatus = "problem"
)

// Check is one line of a diagnosis.
type Check struct {
	// Name is what was looked at: "engine", "cache disk", a runtime's name and so on.
	Name   string      `json:"name"`
	Status CheckStatus `json:"status"`
	// Found is what was found, in one line.
	Found string `json:"found"`
	// Fix says how to mend it, "" if it is well.
	Fix string `json:"fix"`
}

// Report is a diagnosis: everything that a build depends on, always in the same order. It is safe to be passed
// on: no token, no password and no userinfo of a URL is in it.
type Report struct {
	// Version is the library's.
	Version string `json:"version"`
	// Status is the worst of all.
	Status CheckStatus `json:"status"`
	Checks []Check     `json:"checks"`
}

// Diagnose looks at everything that a build depends on: which engine and why that one, its version, builder,
// platform and disk, the cache and its disk, logins for registries, the proxy, Gitea, the token, the clock, and
// the template of each runtime. It changes nothing. What is wrong is in the report, and no error; each check has
// a time limit of its own, so it comes to its end, within half a minute, where nothing answers at all. The context is as
// for [Client.EnsureLocalImage].
func (c *Client) Diagnose(ctx context.Context) (Report, error) {
	var report Report
	err := c.inner.report(ctx, task{kind: taskDiagnose}, &report)
	goruntime.KeepAlive(c)
	if err != nil {
		return Report{}, err
	}
	return report, nil
}

// Diagnose is [Client.Diagnose] with the options of the environment. Options that cannot be used are an error.
func Diagnose(ctx context.Context) (Report, error) {
	return withShared(ctx, (*Client).Diagnose)
}
