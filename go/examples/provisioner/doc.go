// Package provisioner boots workspaces: it picks the image for a runtime, makes
// a container from it and waits until the container answers. It is written to
// be copied into a workspace server, and shows how little of that is libmol:
// one variable, ensureLocalImageHook, in image.go.
//
//	engine, err := provisioner.Connect()
//	…
//	p := provisioner.New(engine)
//	ws, err := p.Start(ctx, provisioner.WorkspaceConfig{ID: "42", Runtime: "claude-code"})
//	…
//	fmt.Println(ws.URL)
//	err = p.Stop(ctx, ws.ContainerID)
//
// The files, in the order in which Start uses them: image.go decides where the
// image comes from and gets it, container.go makes the container, health.go
// waits for its first answer. engine.go finds the engine and auth.go the
// credentials for a pull, both the way the docker command line does.
package provisioner
