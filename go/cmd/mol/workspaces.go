package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"

	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/cli/browser"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// owner is the value of workspace.LabelOwner for workspaces of mol up.
func owner() string {
	me, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return me.Username
}

// withEngine calls do with a client for the engine that libmol uses.
func (a *app) withEngine(ctx context.Context, do func(context.Context, *client.Client) error) error {
	var engine *client.Client
	err := a.showIfSlow("asking the engine", func() (err error) {
		engine, err = a.findEngine(ctx)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = engine.Close() }()
	return do(ctx, engine)
}

// findEngine connects to the engine that the docker command would use. If it does not answer, it asks the library, which
// knows more sockets, and what to do if there is none.
func (a *app) findEngine(ctx context.Context) (*client.Client, error) {
	engine, err := workspace.Connect()
	if err != nil {
		return nil, err
	}
	_, failed := engine.Ping(ctx, client.PingOptions{})
	if !client.IsErrConnectionFailed(failed) {
		return engine, nil // another error comes again, from the caller's request
	}
	_ = engine.Close()
	var host string
	err = a.withClient(ctx, func(ctx context.Context, c library) (err error) {
		host, err = c.EngineHost(ctx)
		return err
	})
	if errors.Is(err, errors.ErrUnsupported) { // without the library
		return nil, failed
	}
	if err != nil {
		return nil, err
	}
	return workspace.ConnectOr(host)
}

// withWorkspace calls do with this user's workspace of that name.
func (a *app) withWorkspace(ctx context.Context, name string, do func(context.Context, *client.Client, workspace.Info) error) error {
	return a.withEngine(ctx, func(ctx context.Context, engine *client.Client) error {
		found, err := workspace.Find(ctx, engine, owner(), name)
		if errors.Is(err, workspace.ErrNotFound) || errors.Is(err, workspace.ErrAmbiguous) {
			return fmt.Errorf("%w; mol ps lists the workspaces", err)
		}
		if err != nil {
			return err
		}
		return do(ctx, engine, found)
	})
}

// workspaceCommand fills in what the commands with one workspace as their argument share.
func (a *app) workspaceCommand(cmd *cobra.Command, do func(context.Context, *client.Client, workspace.Info) error) *cobra.Command {
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return errors.New("name one workspace; mol ps lists the workspaces")
		}
		return nil
	}
	cmd.ValidArgsFunction = a.completeWorkspace
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.withWorkspace(cmd.Context(), args[0], do)
	}
	a.engineFlags(cmd)
	return cmd
}

// engineFlags adds the flags of commands that only need the engine.
func (a *app) engineFlags(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	a.mirroredFlags(cmd, "docker-host")
}

// completeWorkspace offers the workspaces to the shell.
func (a *app) completeWorkspace(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var ids []string
	if len(args) == 0 && a.setEnv(cmd.Flags()) == nil {
		_ = a.withEngine(cmd.Context(), func(ctx context.Context, engine *client.Client) error {
			workspaces, err := workspace.List(ctx, engine, owner())
			for _, w := range workspaces {
				ids = append(ids, w.ID)
			}
			return err
		})
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) psCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the workspaces",
		Long: "List the workspaces that you started with mol up, running or not, the newest first. With\n" +
			"--all, also list those of other users and of servers on this engine.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			of := owner()
			if all {
				of = ""
			}
			return a.withEngine(cmd.Context(), func(ctx context.Context, engine *client.Client) error {
				workspaces, err := workspace.List(ctx, engine, of)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printJSON(workspacesResult{succeeded, workspaces})
				}
				return a.printWorkspaces(workspaces, all)
			})
		},
	}
	a.engineFlags(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also the workspaces of other users and of servers")
	return cmd
}

type workspacesResult struct {
	outcome
	Workspaces []workspace.Info `json:"workspaces"`
}

func (a *app) printWorkspaces(workspaces []workspace.Info, owners bool) error {
	if len(workspaces) == 0 {
		return a.println("no workspaces; mol up RUNTIME starts one")
	}
	head := "NAME\tURL\tSTATUS"
	if owners {
		head = "NAME\tOWNER\tURL\tSTATUS"
	}
	return printTable(a.stdout, head, workspaces, func(w workspace.Info) []string {
		cells := []string{w.ID, cmp.Or(w.URL, "-"), w.Status}
		if owners {
			cells = slices.Insert(cells, 1, cmp.Or(w.Owner, "-"))
		}
		return cells
	})
}

func (a *app) downCommand() *cobra.Command {
	return a.workspaceCommand(&cobra.Command{
		Use:     "down WORKSPACE",
		Short:   "Stop and remove a workspace",
		Long:    "Stop a workspace and remove its container. Named volumes and folders are kept.",
		Example: "  mol down hermes\n  mol down hermes-1a2b3c",
	}, func(ctx context.Context, engine *client.Client, found workspace.Info) error {
		if err := workspace.Stop(ctx, engine, found.ContainerID); err != nil {
			return err
		}
		if a.asJSON {
			return a.printJSON(workspaceResult(found))
		}
		return a.println(found.ID + " is removed; mol up " + found.Runtime + " starts a new one")
	})
}

func (a *app) openCommand() *cobra.Command {
	return a.workspaceCommand(&cobra.Command{
		Use:   "open WORKSPACE",
		Short: "Open a workspace in the browser",
		Long: "Open a workspace in the browser, and print its URL. With --json, only the result is\n" +
			"printed; no browser is started.",
	}, func(_ context.Context, _ *client.Client, found workspace.Info) error {
		switch {
		case !found.Running:
			return fmt.Errorf("%s %w (%s); mol logs %[1]s shows why", found.ID, errNotRunning, found.Status)
		case found.URL == "":
			return fmt.Errorf("%s publishes no port, so it has no URL on this machine", found.ID)
		}
		if a.asJSON {
			return a.printJSON(workspaceResult(found))
		}
		if err := a.println(found.URL); err != nil {
			return err
		}
		browser.Stdout, browser.Stderr = a.stderr, a.stderr // standard output has only the URL
		if err := browser.OpenURL(found.URL); err != nil {
			return fmt.Errorf("no browser could be started: open %s yourself", found.URL)
		}
		return nil
	})
}

func workspaceResult(found workspace.Info) result {
	return result{outcome: succeeded, details: details{
		Ref: found.Image, Runtime: found.Runtime, URL: found.URL, ContainerID: found.ContainerID, ContainerName: found.Name,
	}}
}
