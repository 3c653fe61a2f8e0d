//go:build cgo && ((linux && (amd64 || arm64)) || darwin)

package mol

// This is the one file that knows C. Rules that hold for all of it: strings that go in are freed here after
// the call; what comes out is copied and given back at once, so that no pointer from the library outlives
// the function it came to; ids, not pointers, name what lives longer.

/*
#include <stdbool.h>
#include <stdint.h>
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
#cgo noescape mol_client_submit
#cgo nocallback mol_client_submit
#cgo noescape mol_client_submit_commit
#cgo nocallback mol_client_submit_commit
#cgo noescape mol_client_submit_engine_host
#cgo nocallback mol_client_submit_engine_host
#cgo noescape mol_client_submit_list
#cgo nocallback mol_client_submit_list
#cgo noescape mol_client_metrics
#cgo nocallback mol_client_metrics
#cgo nocallback mol_string_free
#cgo noescape mol_client_submit_build_log
#cgo nocallback mol_client_submit_build_log
#cgo noescape mol_client_submit_diagnose
#cgo nocallback mol_client_submit_diagnose
#cgo noescape mol_client_submit_prune
#cgo nocallback mol_client_submit_prune
#cgo noescape mol_client_cancel
#cgo nocallback mol_client_cancel
#cgo noescape mol_client_next_event
#cgo nocallback mol_client_next_event
#cgo nocallback mol_abi_version
#cgo nocallback mol_version
#cgo nocallback mol_error_free
#cgo nocallback mol_event_free
*/
import "C"

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unsafe"
)

// libraryID is the beginning of the SHA-256 of the libmol.a that is linked in. The file that sets it is made
// together with the archive: Go does not look at what the linker flags name, and would go on using what it had
// linked with an older archive if nothing in this package changed.
var libraryID string

func libraryVersion() string {
	version := C.GoString(C.mol_version())
	if libraryID == "" {
		return version
	}
	return version + "+" + libraryID
}

// errABI is set at start where the library that is linked in is not the one this package was made for.
// Nothing else of it is called then.
var errABI = checkABI(uint32(C.MOL_ABI_VERSION), uint32(C.mol_abi_version()))

var optionNumbers = [...]C.int32_t{
	optionRepoPrefix:        C.MOL_OPTION_REPO_PREFIX,
	optionBranch:            C.MOL_OPTION_BRANCH,
	optionToken:             C.MOL_OPTION_TOKEN,
	optionCacheDir:          C.MOL_OPTION_CACHE_DIR,
	optionPlatform:          C.MOL_OPTION_PLATFORM,
	optionIsolation:         C.MOL_OPTION_ISOLATION,
	optionDockerHost:        C.MOL_OPTION_DOCKER_HOST,
	optionOffline:           C.MOL_OPTION_OFFLINE,
	optionRuntimeVersionPin: C.MOL_OPTION_RUNTIME_VERSION_PIN,
	optionStallGraceS:       C.MOL_OPTION_STALL_GRACE_S,
	optionCeilingS:          C.MOL_OPTION_CEILING_S,
	optionDockerContext:     C.MOL_OPTION_DOCKER_CONTEXT,
	optionDockerConfig:      C.MOL_OPTION_DOCKER_CONFIG,
	optionDockerTLSVerify:   C.MOL_OPTION_DOCKER_TLS_VERIFY,
	optionDockerCertPath:    C.MOL_OPTION_DOCKER_CERT_PATH,
	optionDockerBuildKit:    C.MOL_OPTION_DOCKER_BUILDKIT,
	optionHTTPSProxy:        C.MOL_OPTION_HTTPS_PROXY,
	optionHTTPProxy:         C.MOL_OPTION_HTTP_PROXY,
	optionNoProxy:           C.MOL_OPTION_NO_PROXY,
	optionSSLCertFile:       C.MOL_OPTION_SSL_CERT_FILE,
	optionSSLCertDir:        C.MOL_OPTION_SSL_CERT_DIR,
	optionHome:              C.MOL_OPTION_HOME,
	optionXDGCacheHome:      C.MOL_OPTION_XDG_CACHE_HOME,
	optionXDGRuntimeDir:     C.MOL_OPTION_XDG_RUNTIME_DIR,
	optionTmpDir:            C.MOL_OPTION_TMPDIR,
	optionSearchPath:        C.MOL_OPTION_SEARCH_PATH,
	optionMemoryMiB:         C.MOL_OPTION_MEMORY_MIB,
	optionRuntimes:          C.MOL_OPTION_RUNTIMES,
	optionTagArch:           C.MOL_OPTION_TAG_ARCH,
	optionPins:              C.MOL_OPTION_PINS,
}

type cgoClient struct {
	id C.mol_client
	// The image that next has told of last. Only next uses it.
	last Image
}

// newCoreClient makes a client in the library, which checks the settings. Without events it sends nothing but
// answers.
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
	value := C.CString(s.value)
	defer C.free(unsafe.Pointer(value))
	var cErr *C.mol_error
	if status := C.mol_options_set(options, optionNumbers[s.option], value, &cErr); status != C.MOL_OK {
		err := takeError(status, cErr)
		if err.Code == CodeInvalidArgument {
			// To the library it was an argument, to the caller of New it is an option.
			err.Code = CodeInvalidOption
			err.Message = fmt.Sprintf("option %s: %s", s.name, err.Message)
		}
		return err
	}
	return nil
}

func (c *cgoClient) submit(t task, timeoutMS int64) (uint64, *Error) {
	var call C.mol_call
	var cErr *C.mol_error
	var status C.mol_status
	limit := C.int64_t(timeoutMS)
	runtime, commit := cText(t.runtime), cText(t.commit)
	defer C.free(unsafe.Pointer(runtime))
	defer C.free(unsafe.Pointer(commit))
	switch t.kind {
	case taskEnsure:
		status = C.mol_client_submit(c.id, runtime, limit, &call, &cErr)
	case taskEnsureCommit:
		status = C.mol_client_submit_commit(c.id, runtime, commit, limit, &call, &cErr)
	case taskEngineHost:
		status = C.mol_client_submit_engine_host(c.id, limit, &call, &cErr)
	case taskList:
		status = C.mol_client_submit_list(c.id, limit, &call, &cErr)
	case taskBuildLog:
		status = C.mol_client_submit_build_log(c.id, runtime, limit, &call, &cErr)
	case taskDiagnose:
		status = C.mol_client_submit_diagnose(c.id, limit, &call, &cErr)
	case taskPrune:
		status = C.mol_client_submit_prune(c.id, C.uint32_t(t.keep), C.int64_t(t.recentMS), C.bool(t.dryRun), limit, &call, &cErr)
	}
	if status != C.MOL_OK {
		return 0, takeError(status, cErr)
	}
	return uint64(call), nil
}

// cText is a text for the library. What C would cut short, or cannot be UTF-8, is replaced: no valid name or commit has
// that in it, so the library refuses it and quotes it.
func cText(text string) *C.char {
	return C.CString(strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", "\uFFFD"), "\uFFFD"))
}

func (c *cgoClient) cancel(id uint64) {
	// It can only fail for a client or a call that does not exist, and then there is nothing to cancel.
	C.mol_client_cancel(c.id, C.mol_call(id), nil)
}

func (c *cgoClient) next() (message, *Error) {
	const forever = -1
	var event *C.mol_event
	var cErr *C.mol_error
	if status := C.mol_client_next_event(c.id, forever, &event, &cErr); status != C.MOL_OK {
		return message{}, takeError(status, cErr)
	}
	defer C.mol_event_free(event)
	m := message{call: uint64(event.call)}
	switch {
	case event.image != nil:
		m.image = c.image(event.image)
	case event.error != nil:
		m.err = copyError(event.error)
	default:
		var w struct {
			wireEvent
			Result json.RawMessage `json:"result"`
		}
		if err := json.Unmarshal([]byte(C.GoString(event.json)), &w); err != nil {
			return message{}, &Error{Code: CodeInternal, Message: "libmol sent an event that is not valid JSON: " + err.Error()}
		}
		if w.Kind == kindResult {
			m.report = w.Result
			break
		}
		e := w.event()
		m.event = &e
	}
	return m, nil
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

// takeError copies the library's error and gives it back.
func takeError(status C.mol_status, cErr *C.mol_error) *Error {
	if cErr == nil {
		return &Error{Code: Code(status), Message: fmt.Sprintf("libmol reports %s without saying why", Code(status))}
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
	}
}

// image copies an image. All who have waited for one build get the same, so what it has in common with the one
// before is not copied again.
func (c *cgoClient) image(i *C.mol_image) *Image {
	t, last := &i.timings, &c.last
	*last = Image{
		Ref:       again(last.Ref, i.reference),
		LatestRef: again(last.LatestRef, i.latest_reference),
		Runtime:   again(last.Runtime, i.runtime),
		CommitSHA: again(last.CommitSHA, i.commit_sha),
		ImageID:   again(last.ImageID, i.image_id),
		Platform:  again(last.Platform, i.platform),
		Endpoint:  again(last.Endpoint, i.endpoint),
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

// again is the string at p: the one from before if it is the same, else a copy.
func again(before string, p *C.char) string {
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
