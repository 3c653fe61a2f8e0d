// The workspace of the tests. The variable BEHAVIOUR selects whether it answers,
// answers with an error, exits, or does not listen.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		os.Exit(0)
	}()

	switch behaviour := os.Getenv("BEHAVIOUR"); behaviour {
	case "exit":
		fmt.Fprintln(os.Stderr, "no model is configured")
		os.Exit(3)
	case "silent":
		select {}
	case "unwell":
		http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "unwell", http.StatusServiceUnavailable)
		})
	default:
		http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, behaviour)
		})
	}
	log.Fatal(http.ListenAndServe(":8080", nil))
}
