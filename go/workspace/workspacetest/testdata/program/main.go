// The workspace of the tests. The variable BEHAVIOUR selects whether it answers,
// answers with an error or never, exits, writes a lot and exits, or does not listen.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
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
	case "verbose":
		for range 20 {
			fmt.Println(strings.Repeat("x", 2000))
		}
		fmt.Println("the last line")
		os.Exit(3)
	case "hanging":
		http.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) { select {} })
	case "unhealthy":
		http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "unhealthy", http.StatusServiceUnavailable)
		})
	default:
		http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, behaviour)
		})
	}
	log.Fatal(http.ListenAndServe(":8080", nil))
}
