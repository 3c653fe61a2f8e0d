//go:build cgo && ((linux && (amd64 || arm64)) || darwin)

package mol

// This is the only file that calls C. Its rules: strings for the library are freed here after the call; results of the
// library are copied and freed at once, so that no C pointer outlives the function that received it; what lives longer is
// named by an id.

/*
#include <stdlib.h>
#include "mol.h"

// None of these keeps a pointer that it is given, and none calls back into Go.
#cgo noescape mol_options_new
#cgo nocallback mol_options_new
#cgo noescape mol_options_set
#cgo nocallback mol_options_set
#cgo nocallback mol_options_free
#cgo noescape mol_client_new
#cgo nocallback mol_client_new
#cgo nocallback mol_client_free
#cgo noescape mol_client_next_event
#cgo nocallback mol_client_next_event
#cgo noescape mol_client_metrics
#cgo nocallback mol_client_metrics
#cgo noescape mol_call_start
#cgo nocallback mol_call_start
#cgo noescape mol_call_wait
#cgo nocallback mol_call_wait
#cgo noescape mol_call_cancel
#cgo nocallback mol_call_cancel
#cgo nocallback mol_string_free
#cgo nocallback mol_error_free
#cgo nocallback mol_result_free
#cgo nocallback mol_event_free
#cgo nocallback mol_abi_version
#cgo nocallback mol_version
*/
import "C"

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unsafe"
)

// libraryID is the beginning of the SHA-256 of the libmol.a that is linked in. The file that sets it is made together
// with the archive: Go does not track files that only linker flags name. Without this file, `go build` would reuse a
// program that was linked with an older archive.
var libraryID string

func libraryVersion() string {
	version := C.GoString(C.mol_version())
	if libraryID == "" {
		return version
	}
	return version + "+" + libraryID
}

func abiVersion() uint32 { return uint32(C.mol_abi_version()) }

// errABI is set if the linked library has another ABI version than this package. Then New fails, and only the library's
// version functions are called.
var errABI = checkABI(uint32(C.MOL_ABI_VERSION), uint32(C.mol_abi_version()))

type cgoClient struct {
	id C.mol_client
	// last is the image that wait returned last. Only wait uses it.
	last Image
}

// newCoreClient creates a client in the library, which checks the settings.
func newCoreClient(settings []setting, events bool) (coreClient, error) {
	if errABI != nil {
		return nil, errABI
	}
	var options C.mol_options
	var cErr *C.mol_error
	if status := C.mol_options_new(&options, &cErr); status != C.MOL_OK {
		return nil, takeError(status, cErr)
	}
	defer C.mol_options_free(options)
	for _, s := range settings {
		if err := setOption(options, s); err != nil {
			return nil, err
		}
	}
	var id C.mol_client
	if status := C.mol_client_new(options, C.bool(events), &id, &cErr); status != C.MOL_OK {
		return nil, takeError(status, cErr)
	}
	return &cgoClient{id: id}, nil
}

func setOption(options C.mol_options, s setting) error {
	name, value := C.CString(s.name), C.CString(s.value)
	defer C.free(unsafe.Pointer(name))
	defer C.free(unsafe.Pointer(value))
	var cErr *C.mol_error
	if status := C.mol_options_set(options, name, value, &cErr); status != C.MOL_OK {
		return takeError(status, cErr)
	}
	return nil
}

// This compiles only if the two constants are equal.
var _ = [1]struct{}{}[timeoutCeiling-C.MOL_TIMEOUT_CEILING]

func (c *cgoClient) start(t task, timeoutMS int64) (uint64, *Error) {
	runtime, commit := cText(t.runtime), cText(t.commit)
	defer C.free(unsafe.Pointer(runtime))
	defer C.free(unsafe.Pointer(commit))
	request := C.mol_request{
		size:             C.sizeof_mol_request,
		kind:             requestKinds[t.kind],
		keep_per_runtime: C.uint32_t(t.keep),
		keep_recent_ms:   C.int64_t(t.recentMS),
		runtime:          runtime,
		dry_run:          C.bool(t.dryRun),
	}
	if t.kind == taskEnsureCommit {
		request.commit = commit
	}
	var call C.mol_call
	var cErr *C.mol_error
	if status := C.mol_call_start(c.id, &request, C.int64_t(timeoutMS), &call, &cErr); status != C.MOL_OK {
		return 0, takeError(status, cErr)
	}
	return uint64(call.id), nil
}

var requestKinds = [...]C.mol_request_kind{
	taskEnsure:       C.MOL_REQUEST_IMAGE,
	taskEnsureCommit: C.MOL_REQUEST_IMAGE,
	taskList:         C.MOL_REQUEST_LIST,
	taskPrune:        C.MOL_REQUEST_PRUNE,
	taskDiagnose:     C.MOL_REQUEST_DIAGNOSE,
	taskBuildLog:     C.MOL_REQUEST_BUILD_LOG,
	taskEngineHost:   C.MOL_REQUEST_ENGINE_HOST,
}

// cText is a string for the library. Bytes that C cannot take, or that are not UTF-8, become U+FFFD: no valid name or
// commit has one, so the library refuses it and quotes it.
func cText(text string) *C.char {
	return C.CString(strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", "\uFFFD"), "\uFFFD"))
}

func (c *cgoClient) cancel(id uint64) {
	// It fails only for a client that does not exist, and then there is nothing to cancel.
	C.mol_call_cancel(c.id, C.mol_call{id: C.uint64_t(id)}, nil)
}

func (c *cgoClient) wait() (ended, *Error) {
	var result *C.mol_result
	var cErr *C.mol_error
	anyCall := C.mol_call{}
	if status := C.mol_call_wait(c.id, anyCall, C.MOL_TIMEOUT_NONE, &result, &cErr); status != C.MOL_OK {
		return ended{}, takeError(status, cErr)
	}
	defer C.mol_result_free(result)
	e := ended{call: uint64(result.call.id), lastEvent: uint64(result.last_event)}
	switch {
	case result.error != nil:
		e.err = copyError(result.error)
	case result.image != nil:
		e.image = c.image(result.image)
	default:
		e.report = json.RawMessage(C.GoString(result.report))
	}
	return e, nil
}

func (c *cgoClient) nextEvent() (Event, uint64, *Error) {
	var event *C.mol_event
	var cErr *C.mol_error
	if status := C.mol_client_next_event(c.id, C.MOL_TIMEOUT_NONE, &event, &cErr); status != C.MOL_OK {
		return Event{}, 0, takeError(status, cErr)
	}
	defer C.mol_event_free(event)
	number := uint64(event.number)
	e, err := decodeEvent([]byte(C.GoString(event.json)))
	if err != nil {
		return Event{}, number, &Error{Code: CodeInternal, Message: "libmol sent an event that is not valid JSON: " + err.Error()}
	}
	return e, number, nil
}

func (c *cgoClient) metrics() ([]byte, *Error) {
	var text *C.char
	var cErr *C.mol_error
	if status := C.mol_client_metrics(c.id, &text, &cErr); status != C.MOL_OK {
		return nil, takeError(status, cErr)
	}
	defer C.mol_string_free(text)
	return []byte(C.GoString(text)), nil
}

func (c *cgoClient) free() { C.mol_client_free(c.id) }

// takeError copies the library's error and frees it.
func takeError(status C.mol_status, cErr *C.mol_error) *Error {
	if cErr == nil {
		return &Error{Code: Code(status), Message: fmt.Sprintf("libmol returned %s without an error object", Code(status))}
	}
	defer C.mol_error_free(cErr)
	return copyError(cErr)
}

func copyError(e *C.mol_error) *Error {
	return &Error{
		Code:     Code(e.code),
		Runtime:  C.GoString(e.runtime),
		URL:      C.GoString(e.url),
		Message:  C.GoString(e.message),
		Hint:     C.GoString(e.hint),
		Step:     C.GoString(e.step),
		Line:     int(e.line),
		ExitCode: int(e.exit_code),
		LogTail:  C.GoString(e.log_tail),
		Excerpt:  C.GoString(e.excerpt),
	}
}

// image copies an image. Callers that wait for one build get equal images, so strings that are equal to the last image's
// are shared.
func (c *cgoClient) image(i *C.mol_image) *Image {
	t, last := &i.timings, &c.last
	*last = Image{
		Ref:       reuseString(last.Ref, i.reference),
		LatestRef: reuseString(last.LatestRef, i.latest_reference),
		Runtime:   reuseString(last.Runtime, i.runtime),
		CommitSHA: reuseString(last.CommitSHA, i.commit_sha),
		ImageID:   reuseString(last.ImageID, i.image_id),
		Platform:  reuseString(last.Platform, i.platform),
		Endpoint:  reuseString(last.Endpoint, i.endpoint),
		CacheHit:  bool(i.cache_hit),
		Timings: Timings{
			Lookup:  microseconds(t.lookup_us),
			Inspect: microseconds(t.inspect_us),
			Wait:    microseconds(t.wait_us),
			Fetch:   microseconds(t.fetch_us),
			Build:   microseconds(t.build_us),
			Tag:     microseconds(t.tag_us),
			Total:   microseconds(t.total_us),
		},
	}
	image := *last
	return &image
}

// reuseString returns the C string p as a Go string: before, if it is equal, else a copy.
func reuseString(before string, p *C.char) string {
	text := unsafe.Slice((*byte)(unsafe.Pointer(p)), len(before)+1)
	for i := range text {
		if i == len(before) && text[i] == 0 {
			return before
		}
		if i == len(before) || text[i] != before[i] || text[i] == 0 {
			break
		}
	}
	return C.GoString(p)
}

func microseconds(n C.int64_t) time.Duration { return time.Duration(n) * time.Microsecond }
