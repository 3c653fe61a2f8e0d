package server

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"sync"
	"time"
)

// Fault is an error that the server simulates for matching requests. A fault with Status, Body or Endless
// replaces the answer; any other fault changes how the real answer is sent.
type Fault struct {
	// Match is a regular expression, searched in the request's path with its query, as sent
	// ("/molecule-ai/x/info/refs?service=git-upload-pack").
	Match string `json:"match"`
	// MatchBody, if set, must also match in the request's body. It distinguishes the requests of a fetch,
	// which have the same URL: "command=ls-refs", "command=fetch".
	MatchBody string `json:"match_body,omitempty"`
	// Times limits the number of requests that the fault applies to; 0 means all.
	Times int `json:"times,omitempty"`
	// BeforeCommit is created when the request arrives, before the answer.
	BeforeCommit *RepoCommit `json:"before_commit,omitempty"`
	// DelayMS is a delay before the answer, after BeforeCommit.
	DelayMS int `json:"delay_ms,omitempty"`
	// Reset closes the connection with a TCP reset instead of an answer.
	Reset bool `json:"reset,omitempty"`

	Status     int               `json:"status,omitempty"` // 200 for a fault with a body
	Headers    map[string]string `json:"headers,omitempty"`
	Body       string            `json:"body,omitempty"`
	BodyBase64 string            `json:"body_base64,omitempty"`
	// BodyFirst is sent once, before a body that is repeated.
	BodyFirst string `json:"body_first,omitempty"`
	// BodyRepeat is how many times the body is sent.
	BodyRepeat int `json:"body_repeat,omitempty"`
	// Endless sends the body (spaces, if there is none) as long as the client reads.
	Endless bool `json:"endless,omitempty"`

	// TruncateAfter closes the connection after this many bytes of the body; the headers announce all of
	// them. If the body is not longer, the answer is 500, because the fault would have no effect.
	TruncateAfter *int64 `json:"truncate_after,omitempty"`
	// DripMS is a pause after each DripBytes (default: 1) of the body.
	DripMS    int `json:"drip_ms,omitempty"`
	DripBytes int `json:"drip_bytes,omitempty"`
	// Hang keeps the connection open without sending more: at TruncateAfter if it is set, else after the
	// fault's own body, else before the headers.
	Hang bool `json:"hang,omitempty"`
}

// RepoCommit is a commit and its repository, "org/name".
type RepoCommit struct {
	Repo string `json:"repo"`
	Commit
}

type faults struct {
	mutex sync.Mutex
	list  []*activeFault
}

type activeFault struct {
	Fault
	match     *regexp.Regexp
	matchBody *regexp.Regexp
	body      []byte
	left      int // requests; negative: no limit
}

// set replaces the list. If one fault is invalid, nothing changes.
func (f *faults) set(list []Fault) error {
	var fresh []*activeFault
	for i, fault := range list {
		match, err := regexp.Compile(fault.Match)
		if err != nil {
			return fmt.Errorf("fault %d: %w", i, err)
		}
		matchBody, err := regexp.Compile(fault.MatchBody)
		if err != nil {
			return fmt.Errorf("the match_body of fault %d: %w", i, err)
		}
		active := &activeFault{Fault: fault, match: match, matchBody: matchBody, body: []byte(fault.Body), left: fault.Times}
		if fault.Times <= 0 {
			active.left = -1
		}
		if fault.BodyBase64 != "" {
			if active.body, err = base64.StdEncoding.DecodeString(fault.BodyBase64); err != nil {
				return fmt.Errorf("the body_base64 of fault %d: %w", i, err)
			}
		}
		if fault.Status != 0 && (fault.Status < 200 || fault.Status > 599) {
			return fmt.Errorf("fault %d: %d is not a valid status", i, fault.Status)
		}
		if problem := active.ineffective(); problem != "" {
			return fmt.Errorf("fault %d: %s", i, problem)
		}
		fresh = append(fresh, active)
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.list = fresh
	return nil
}

// ineffective describes a field that has no effect with the others, or returns "". A test with such a fault
// would prove nothing.
func (f *activeFault) ineffective() string {
	changes := f.Endless || f.TruncateAfter != nil || f.DripMS > 0 || f.Hang
	switch {
	case f.Reset && (f.answers() || changes || len(f.Headers) > 0):
		return "reset does not send an answer"
	case f.Endless && f.Hang && f.TruncateAfter == nil:
		return "hang has no effect after an endless body"
	case f.DripBytes > 0 && f.DripMS <= 0:
		return "drip_bytes needs drip_ms"
	case f.BodyRepeat > 0 && (len(f.body) == 0 || f.Endless):
		return "body_repeat needs a finite body"
	case f.BodyFirst != "" && f.BodyRepeat <= 1 && !f.Endless:
		return "body_first needs a body that is repeated"
	case !f.answers() && !changes && !f.Reset && len(f.Headers) == 0 && f.DelayMS <= 0 && f.BeforeCommit == nil:
		return "the fault has no effect"
	}
	return ""
}

// answers reports whether the fault replaces the answer.
func (f *activeFault) answers() bool { return f.Status != 0 || len(f.body) > 0 || f.Endless }

// take returns the first fault that matches a request, and decrements its Times.
func (f *faults) take(target string, body []byte) *activeFault {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	for _, fault := range f.list {
		if fault.left != 0 && fault.match.MatchString(target) && fault.matchBody.Match(body) {
			fault.left--
			return fault
		}
	}
	return nil
}

func (s *Server) serveFault(w *statusWriter, r *http.Request, route requestRoute, fault *activeFault) {
	if fault.BeforeCommit != nil {
		if _, err := s.Commit(fault.BeforeCommit.Repo, fault.BeforeCommit.Commit); err != nil {
			s.answerInternal(w, fmt.Errorf("before_commit: %w", err))
			return
		}
	}
	if !pause(r, fault.DelayMS) {
		return
	}
	if fault.Reset {
		resetConnection(w)
		return
	}

	if fault.Hang && fault.TruncateAfter == nil && !fault.answers() {
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // returning would send status 200
	}

	answer := &recorder{header: http.Header{}}
	if fault.answers() {
		answer.WriteHeader(http.StatusOK)
		if fault.Status != 0 {
			answer.status = fault.Status
		}
		answer.body.Write(fault.body)
	} else if fault.TruncateAfter == nil && fault.DripMS == 0 {
		for name, value := range fault.Headers {
			w.Header().Set(name, value)
		}
		s.serve(w, r, route)
		return
	} else {
		s.serve(answer, r, route)
	}
	if whole := int64(len(fault.BodyFirst) + answer.body.Len()*max(fault.BodyRepeat, 1)); fault.TruncateAfter != nil && !fault.Endless && *fault.TruncateAfter >= whole {
		s.answerInternal(w, fmt.Errorf("truncate_after %d does not truncate an answer of %d bytes: %s", *fault.TruncateAfter, whole, r.URL))
		return
	}
	fault.send(w, r, answer)
}

// send sends an answer with the fault applied.
func (f *activeFault) send(w *statusWriter, r *http.Request, answer *recorder) {
	for name, values := range answer.header {
		w.Header()[name] = values
	}
	body := answer.body.Bytes()
	repeat := max(f.BodyRepeat, 1)
	if f.Endless {
		repeat = -1
		if len(body) == 0 {
			body = bytes.Repeat([]byte(" "), 4096)
		}
	} else if !f.Hang || f.TruncateAfter != nil {
		// Without Content-Length the answer ends with a last chunk, which a hang does not send.
		w.Header().Set("Content-Length", fmt.Sprint(len(f.BodyFirst)+len(body)*repeat))
	}
	for name, value := range f.Headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(answer.status)
	control := http.NewResponseController(w)
	control.Flush()

	left := int64(-1)
	if f.TruncateAfter != nil {
		left = *f.TruncateAfter
	}
	step := len(body)
	if f.DripMS > 0 {
		step = max(f.DripBytes, 1)
	}
	pieces := func(yield func([]byte) bool) {
		for more := yield([]byte(f.BodyFirst)); more && repeat != 0; repeat-- {
			more = yield(body)
		}
	}
	for rest := range pieces {
		for len(rest) > 0 && left != 0 {
			n := min(len(rest), step)
			if left > 0 {
				n = int(min(int64(n), left))
				left -= int64(n)
			}
			if _, err := w.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
			if f.DripMS > 0 {
				control.Flush()
				if !pause(r, f.DripMS) {
					return
				}
			} else if r.Context().Err() != nil {
				return
			}
		}
		if left == 0 {
			break
		}
	}
	if f.Hang {
		control.Flush()
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // does not send the last chunk
	}
	if left == 0 {
		control.Flush()
		panic(http.ErrAbortHandler) // closes the connection without the rest
	}
}

// pause waits. It returns false if the client disconnects or the server stops.
func pause(r *http.Request, ms int) bool {
	if ms <= 0 {
		return true
	}
	timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

func resetConnection(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// recorder stores an answer, so that it can be sent with a fault.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(p)
}
