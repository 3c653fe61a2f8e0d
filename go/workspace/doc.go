// Package workspace runs workspaces: it connects to a container engine, pulls
// images, creates a container from an image and waits until the container
// answers. It does not depend on libmol; the caller decides which image to start.
//
//	engine, err := workspace.Connect()
//	…
//	img, err := workspace.Inspect(ctx, engine, ref)
//	…
//	ws, err := workspace.Start(ctx, engine, img, workspace.Config{ID: "42", Runtime: "claude-code"})
//	…
//	fmt.Println(ws.URL)
//	err = workspace.Stop(ctx, engine, ws.ContainerID)
//
// The files: engine.go finds the engine and auth.go the credentials for a pull,
// both the way the docker command does. image.go inspects and pulls images.
// workspace.go has Start, Stop and Wait, with container.go for the container and
// health.go for the wait until it answers. find.go finds workspaces that were started
// earlier, also by another process, and output.go copies what they write.
package workspace
