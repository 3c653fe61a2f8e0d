package workspace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// Info describes a workspace of the engine, running or not.
type Info struct {
	ContainerID string    `json:"container_id"`
	Name        string    `json:"name"`            // the container's name
	ID          string    `json:"id"`              // Config.ID, or Name if that was empty
	Runtime     string    `json:"runtime"`         // Config.Runtime
	Owner       string    `json:"owner,omitempty"` // Config.Owner
	Image       string    `json:"image"`           // the reference that was started
	Running     bool      `json:"running"`
	Status      string    `json:"status"`        // for people: "Up 3 minutes", "Exited (3) 2 hours ago"
	URL         string    `json:"url,omitempty"` // "" if it does not run, or its port is not published
	Created     time.Time `json:"created"`
}

// ErrNotFound is wrapped by the error of Find when there is no such workspace, and
// ErrAmbiguous when there are several.
var (
	ErrNotFound  = errors.New("no such workspace")
	ErrAmbiguous = errors.New("several workspaces match")
)

// List returns the workspaces of an owner, the newest first. Without an owner it
// returns all.
func List(ctx context.Context, engine *client.Client, owner string) ([]Info, error) {
	filters := client.Filters{}.Add("label", LabelWorkspace)
	if owner != "" {
		filters = filters.Add("label", LabelOwner+"="+owner)
	}
	list, err := engine.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	workspaces := make([]Info, 0, len(list.Items))
	for _, c := range list.Items {
		found := Info{
			ContainerID: c.ID, ID: c.Labels[LabelWorkspace], Runtime: c.Labels[LabelRuntime], Owner: c.Labels[LabelOwner],
			Image: c.Image, Running: c.State == container.StateRunning, Status: c.Status, Created: time.Unix(c.Created, 0),
		}
		if len(c.Names) > 0 {
			found.Name = strings.TrimPrefix(c.Names[0], "/")
		}
		found.ID = cmp.Or(found.ID, found.Name) // a server may give no ID
		port, _ := strconv.ParseUint(c.Labels[LabelPort], 10, 16)
		for _, p := range c.Ports {
			if found.Running && port != 0 && p.PrivatePort == uint16(port) && p.PublicPort != 0 {
				found.URL = "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p.PublicPort)))
			}
		}
		workspaces = append(workspaces, found)
	}
	slices.SortFunc(workspaces, func(a, b Info) int { return b.Created.Compare(a.Created) })
	return workspaces, nil
}

// Find returns the workspace with this ID, container name, or beginning of the
// container's ID (at least 4 digits); else the only workspace of this runtime. Owner
// is as in List.
func Find(ctx context.Context, engine *client.Client, owner, name string) (Info, error) {
	const shortest = 4 // digits of a container's ID
	if name == "" {
		return Info{}, fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	workspaces, err := List(ctx, engine, owner)
	if err != nil {
		return Info{}, err
	}
	for _, matches := range []func(Info) bool{
		func(w Info) bool { return w.ID == name || w.Name == name },
		func(w Info) bool { return len(name) >= shortest && strings.HasPrefix(w.ContainerID, name) },
		func(w Info) bool { return w.Runtime == name },
	} {
		var found []Info
		for _, w := range workspaces {
			if matches(w) {
				found = append(found, w)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			var ids []string
			for _, w := range found {
				ids = append(ids, w.ID)
			}
			return Info{}, fmt.Errorf("%w %q: %s", ErrAmbiguous, name, strings.Join(ids, ", "))
		}
	}
	return Info{}, fmt.Errorf("%w: %q", ErrNotFound, name)
}
