// Package provisioner starts and stops workspaces with images from libmol or
// from a registry. Copy it into a workspace server, and import or copy
// go/workspace too. It shows how little of a server is libmol: one variable,
// ensureLocalImageHook, in image.go.
//
//	engine, err := workspace.Connect()
//	…
//	p := provisioner.New(engine)
//	ws, err := p.Start(ctx, provisioner.WorkspaceConfig{
//		Config: workspace.Config{ID: "42", Runtime: "claude-code"},
//	})
//	…
//	fmt.Println(ws.URL)
//	err = p.Stop(ctx, ws.ContainerID)
//
// image.go decides where the image comes from: a local build, a registry, or an
// image that the caller names. Everything about containers is in go/workspace,
// which does not use libmol.
package provisioner
