/*
 * libmol: turns a workspace runtime name into a container image that is ready to start.
 *
 *     mol_options options = {0};
 *     mol_client client = {0};
 *     mol_image *image = NULL;
 *     mol_error *error = NULL;
 *
 *     if (mol_options_from_env(&options, &error) == MOL_OK &&
 *         mol_client_new(options, false, &client, &error) == MOL_OK &&
 *         mol_ensure_local_image(client, "claude-code", MOL_TIMEOUT_CEILING, &image, &error) == MOL_OK)
 *         puts(image->reference);
 *     else
 *         fprintf(stderr, "%s (%s)\n", error->message, error->hint);
 *     mol_error_free(error);
 *     mol_image_free(image);
 *     mol_client_free(client);
 *     mol_options_free(options);
 *
 * examples/c has this program, and one that shows progress and can be cancelled. The rules for every function:
 *
 * Status   A function that can fail returns a mol_status, 0 for success. Its last parameter, `error`, receives
 *          a mol_error that says what failed, where, and what to do next; pass NULL if the status is enough.
 *          NULL for any other pointer is MOL_ERR_INVALID_ARGUMENT, unless the function allows it. Results are
 *          written only after success, errors only after failure.
 *
 * Strings  are UTF-8 and end in a NUL byte. The library copies the strings that are passed in. What it returns
 *          is read-only: free it once, with the _free function of its type. These functions ignore NULL.
 *
 * Ids      Options, clients and calls are ids, passed by value. They are never reused: using a freed id is
 *          MOL_ERR_NO_SUCH_HANDLE. The _free functions ignore freed ids and {0}.
 *
 * Timeouts timeout_ms is in milliseconds. Negative (MOL_TIMEOUT_NONE): no limit. 0: a wait returns at once; a call
 *          ends with MOL_ERR_DEADLINE_EXCEEDED, unless another result comes first. MOL_TIMEOUT_CEILING: the ceiling
 *          of the client's options, for a call; no limit, for a wait.
 *
 * Threads  Every function may be called from any thread at any time. There are no callbacks. The library
 *          starts its threads with the first client; they live as long as the process. A forked child
 *          process must not use the library; it may exec.
 *
 * The host The library installs no signal handler, writes nothing to standard output or error, and never calls
 *          exit. A panic becomes MOL_ERR_INTERNAL. The only child processes are ssh, for an engine at ssh://, and
 *          docker's credential helpers: the library waits for each, and kills it if its call or client ends first.
 *
 * Secrets  No token is in anything that the library hands out, and no user information of a URL, except the user
 *          name in an engine's own ssh:// address: in mol_image.endpoint and in reports.
 *
 * Growth   Structs that begin with `size`, their size in bytes, get new fields only at their end. With a header newer
 *          than the library, read a new field only if `size` includes it, and leave new fields of a mol_request 0.
 *
 * This file is generated from src/ffi and cbindgen.toml; change it there.
 */

#ifndef MOL_H
#define MOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The version of the library that this header belongs to.
#define MOL_VERSION_MAJOR 0
#define MOL_VERSION_MINOR 1
#define MOL_VERSION_PATCH 0
#define MOL_VERSION "0.1.0"

// Marks functions whose result must not be ignored.
#if defined(__cplusplus) && __cplusplus >= 201703L || defined(__STDC_VERSION__) && __STDC_VERSION__ >= 202311L
#define MOL_NODISCARD [[nodiscard]]
#elif defined(__GNUC__)
#define MOL_NODISCARD __attribute__((warn_unused_result))
#else
#define MOL_NODISCARD
#endif

// No limit. Every negative value means the same.
#define MOL_TIMEOUT_NONE -1

// The time limit of the client's options (MOLECULE_BUILD_CEILING_S). A call that exceeds it ends with MOL_ERR_TIMEOUT.
#define MOL_TIMEOUT_CEILING INT64_MAX

// The version of this ABI. It changes when programs built with an older header cannot use the new library.
#define MOL_ABI_VERSION 3

// Result of a function. Values are stable and never reused; 21 was in use before.
typedef enum mol_status {
  // Success.
  MOL_OK = 0,
  // The runtime is not on the allowlist. No network, disk or engine was used.
  MOL_ERR_UNKNOWN_RUNTIME = 1,
  // An option, or the environment variable behind it, has an invalid value.
  MOL_ERR_INVALID_OPTION = 2,
  // The template server did not answer (refused, unknown host, no route, time-out, TLS), or answered 408, 429 or 5xx.
  MOL_ERR_GITEA_UNREACHABLE = 3,
  // The template repository, or the branch, does not exist.
  MOL_ERR_REPO_NOT_FOUND = 4,
  // The template server requires a token, or refuses the one it got.
  MOL_ERR_AUTH = 5,
  // The template server's answer is not the one that its API documents.
  MOL_ERR_BAD_RESPONSE = 6,
  // The commit could not be fetched or checked out.
  MOL_ERR_FETCH = 7,
  // The commit has no file called Dockerfile at its root.
  MOL_ERR_NO_DOCKERFILE = 8,
  // No container engine answered, or the engine answered with an error.
  MOL_ERR_ENGINE_UNREACHABLE = 9,
  // The engine, or the builder, cannot run programs for the platform, or one of the template is for another one.
  MOL_ERR_PLATFORM_UNSUPPORTED = 10,
  // The build ran and failed: see step, line, exit_code and log_tail.
  MOL_ERR_BUILD_FAILED = 11,
  // A fetch or a build made no progress for MOLECULE_BUILD_STALL_GRACE_S.
  MOL_ERR_STALLED = 12,
  // The call had MOL_TIMEOUT_CEILING, and took longer than MOLECULE_BUILD_CEILING_S.
  MOL_ERR_TIMEOUT = 13,
  // The cache folder cannot be used, or it has no build log of the runtime.
  MOL_ERR_CACHE = 14,
  // A bug in the library: please report it.
  MOL_ERR_INTERNAL = 15,
  // The call was cancelled.
  MOL_ERR_CANCELED = 16,
  // The timeout_ms of the call passed.
  MOL_ERR_DEADLINE_EXCEEDED = 17,
  // An argument is NULL where it must not be, not UTF-8, out of range, not a commit id, or an unknown name or kind.
  MOL_ERR_INVALID_ARGUMENT = 18,
  // No object has this id: it was freed, or never created.
  MOL_ERR_NO_SUCH_HANDLE = 19,
  // The client was freed while the function ran. A waiting mol_ensure_local_image returns MOL_ERR_CANCELED instead.
  MOL_ERR_CLOSED = 20,
  // MOLECULE_LOCAL_OFFLINE is set, and the engine has no image of the runtime.
  MOL_ERR_NO_LOCAL_IMAGE = 22,
  // The process, or the machine, has no thread or file descriptor left.
  MOL_ERR_PROCESS_LIMIT = 23,
  // No node of the chosen builder answers, or each one that was tried was lost during the build.
  MOL_ERR_BUILDER_UNREACHABLE = 24,
} mol_status;

// Whether images are pulled or built.
typedef enum mol_registry_mode {
  // No registry is set: images are built here.
  MOL_REGISTRY_MODE_LOCAL = 0,
  // A registry is set: the engine pulls from it.
  MOL_REGISTRY_MODE_SAAS = 1,
} mol_registry_mode;

// What a call does.
typedef enum mol_request_kind {
  // Finds or builds the image of `runtime`, for `commit` if that is set. The result has an image.
  MOL_REQUEST_IMAGE = 1,
  // Lists this library's images in the engine and trees in the cache: {"images": ...}
  MOL_REQUEST_LIST = 2,
  // Removes old images and trees of this library, and nothing else: {"images": ..., "trees": ...}
  MOL_REQUEST_PRUNE = 3,
  // Checks everything that a build depends on. Problems are in the report, not an error.
  MOL_REQUEST_DIAGNOSE = 4,
  // The log of the last build of `runtime` with this cache, by any process: {"text": ...}
  MOL_REQUEST_BUILD_LOG = 5,
  // The address of the engine in use, as in DOCKER_HOST: {"docker_host": "unix:///var/run/docker.sock"}
  MOL_REQUEST_ENGINE_HOST = 6,
} mol_request_kind;

// Where images come from.
typedef struct mol_registry {
  // Whether images are pulled or built.
  mol_registry_mode mode;
  // The beginning of every image reference: the string that mol_resolve was given, or a static one.
  const char *prefix;
} mol_registry;

// Why a function or a call failed. No string is NULL; one that does not apply is empty.
typedef struct mol_error {
  // See "Growth".
  size_t size;
  // The kind of failure.
  mol_status code;
  // The line of the failed build step in the Dockerfile, from 1; 0 if unknown.
  uint32_t line;
  // The exit code of the failed build step; 0 if unknown.
  int32_t exit_code;
  // What failed, and where: one line.
  const char *message;
  // What to do next: one line.
  const char *hint;
  // The runtime of the call.
  const char *runtime;
  // The URL of the template repository; empty if this machine, the engine or a builder failed before the build.
  const char *url;
  // The build step that failed, as the builder names it.
  const char *step;
  // The last lines of the build's output.
  const char *log_tail;
  // The numbered lines of the Dockerfile around the step, ">" before those of the step. Empty if the line is unknown.
  const char *excerpt;
} mol_error;

// Options for a client.
typedef struct mol_options {
  uint64_t id;
} mol_options;

// A client: one set of options, one engine, any number of calls at once.
typedef struct mol_client {
  uint64_t id;
} mol_client;

// A call of a client, from its start until its result is taken.
typedef struct mol_call {
  uint64_t id;
} mol_call;

// Something that happened during a call. No string is NULL.
typedef struct mol_event {
  // See "Growth".
  size_t size;
  // The call; for a build that several calls share, the first one. 0 for a "thinned" event of several calls.
  mol_call call;
  // The number of the event, counted for each client from 1. The numbers of dropped events are skipped.
  uint64_t number;
  // What happened, such as "build_started": docs/events.md lists the kinds.
  const char *kind;
  // One line for people.
  const char *message;
  // The whole event, one JSON object with the fields of its kind.
  const char *json;
} mol_event;

// Durations of the steps of a call, or of the build that it joined, in microseconds; 0 for a step that was not needed.
typedef struct mol_timings {
  // The request for the commit, with its retries.
  int64_t lookup_us;
  // The request for the image.
  int64_t inspect_us;
  // The wait for another process, or another client of this process, that built the same image.
  int64_t wait_us;
  // The fetch and the checkout.
  int64_t fetch_us;
  // The build, with the upload of its context.
  int64_t build_us;
  // The tagging.
  int64_t tag_us;
  // The whole call. If it joined a running build, that build's durations can be longer.
  int64_t total_us;
} mol_timings;

// An image that is ready to start. No string is NULL.
typedef struct mol_image {
  // See "Growth".
  size_t size;
  // What to start, tagged with 12 digits of the commit: molecule-local/workspace-template-hermes:0123456789ab.
  const char *reference;
  // The moving reference, …:latest. If a call cannot set it to this image, a "warning" event says so.
  const char *latest_reference;
  // The runtime of the call.
  const char *runtime;
  // The full id of the commit that the image was built from.
  const char *commit_sha;
  // The engine's id of the image.
  const char *image_id;
  // The platform, such as linux/amd64.
  const char *platform;
  // The engine that has the image, such as unix:///var/run/docker.sock: create the container there.
  const char *endpoint;
  // True if the engine had the image: nothing was fetched or built.
  bool cache_hit;
  // Where the time went.
  mol_timings timings;
} mol_image;

// What a call does, for mol_call_start. The fields that its kind does not use are 0:
// mol_request request = {.size = sizeof request, .kind = MOL_REQUEST_LIST};
typedef struct mol_request {
  // sizeof(mol_request).
  size_t size;
  // What the call does.
  mol_request_kind kind;
  // Prune: how many of the newest images of each runtime and platform, and of the newest trees of each runtime,
  // stay. 0: none, unless it stays for another reason.
  uint32_t keep_per_runtime;
  // Prune: how long images and trees stay after they were built or used, in ms. 0: ten minutes; negative: no time.
  int64_t keep_recent_ms;
  // Image and build log: the runtime.
  const char *runtime;
  // Image: all 40 or 64 hexadecimal digits of the commit, or NULL to look it up (pin, or head of the branch).
  const char *commit;
  // Prune: only report what would be removed.
  bool dry_run;
} mol_request;

// How a call ended.
typedef struct mol_result {
  // See "Growth".
  size_t size;
  // The call.
  mol_call call;
  // MOL_OK, or why the call failed.
  mol_status status;
  // The number of the last event before the end; 0 if there was none.
  uint64_t last_event;
  // The image; NULL for other kinds, and after a failure. Freed with the result.
  const mol_image *image;
  // The report, one JSON object (docs/upkeep.md); NULL for images, and after a failure.
  const char *report;
  // Why the call failed; NULL after success. Freed with the result.
  const mol_error *error;
} mol_result;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Returns the library's MOL_ABI_VERSION. Compare it with the header's before any other call.
MOL_NODISCARD uint32_t mol_abi_version(void);

// Returns the library's version, such as "0.1.0". Static: do not free it.
MOL_NODISCARD const char *mol_version(void);

// Returns the name of a status, such as "repo_not_found", or "unknown_status". Static: do not free it.
MOL_NODISCARD const char *mol_status_name(int status);

// Returns whether `runtime` is on the default allowlist (exact match). False for NULL and invalid
// UTF-8. A client whose option "runtimes" is set has its own list.
MOL_NODISCARD bool mol_is_known_runtime(const char *runtime);

// Says whether images are pulled or built. Allocates nothing.
//
// image_registry  the value of MOLECULE_IMAGE_REGISTRY; NULL and "" mean that images are built
// registry        receives the mode, and the prefix: a static string, or image_registry itself
MOL_NODISCARD mol_status mol_resolve(const char *image_registry, mol_registry *registry, mol_error **error);

// Replaces a token in a text by "***", in every spelling (plain, percent-encoded, escaped as in JSON or
// HTML, in hexadecimal, in the base64 of user:token), and the user information of every URL.
//
// text    the text; nothing else in it changes
// token   the token, also a short one; NULL or "" masks only the URLs
// masked  receives the new text, for mol_string_free
MOL_NODISCARD mol_status mol_mask_token(const char *text, const char *token, char **masked, mol_error **error);

// Creates options that all have their defaults.
//
// options  receives the options, for mol_options_free
MOL_NODISCARD mol_status mol_options_new(mol_options *options, mol_error **error);

// Creates options from the environment of the process. No other thread may change the environment
// meanwhile (POSIX, setenv); no other function reads it.
//
// options  receives the options, for mol_options_free
MOL_NODISCARD mol_status mol_options_from_env(mol_options *options, mol_error **error);

// Sets one option. The name must be known; mol_client_new checks the values.
//
// name   the name of the option's environment variable, such as "MOLECULE_GITEA_TOKEN" or "DOCKER_HOST"
//        (docs/local-development.md lists them); or, without a variable:
//        "runtimes"  the allowlist in place of the default one: "claude-code,hermes"
//        "tag_arch"  which tags name the architecture: "auto" or "always"
//        "pins"      commits in place of the branch's head: "hermes=COMMIT,codex=COMMIT"
// value  the value, in the syntax of the variable; copied. "" unsets the option
MOL_NODISCARD mol_status mol_options_set(mol_options options, const char *name, const char *value, mol_error **error);

// Frees options. Clients that were created with them are not affected.
void mol_options_free(mol_options options);

// Creates a client. It connects to nothing before its first call.
//
// options  checked here, and not needed afterwards; if one is invalid, the error's message names it
// events   whether events are kept for mol_client_next_event
// client   receives the client, for mol_client_free
MOL_NODISCARD mol_status mol_client_new(mol_options options, bool events, mol_client *client, mol_error **error);

// Cancels a client's calls, waits up to two seconds until they have ended, and frees the client. Functions that wait
// for its events or results return MOL_ERR_CLOSED; results and events that were not taken are dropped.
void mol_client_free(mol_client client);

// Takes the oldest event of a client, which must have been created with events. All events of a call come before its
// result, except those of a shared build that goes on for other calls after this call was cancelled or ran out of
// time. When the program is slow, events are dropped, and a "thinned" event says how many.
//
// timeout_ms  how long to wait for an event
// event       receives the event, for mol_event_free; NULL if none came in time
MOL_NODISCARD mol_status mol_client_next_event(mol_client client, int64_t timeout_ms, mol_event **event, mol_error **error);

// Gives a file descriptor for poll, select, epoll or kqueue. It is readable while a result or an event waits. Then
// take results and events with a timeout_ms of 0, until there are none.
//
// fd  receives the descriptor; do not read from it or close it: mol_client_free closes it
MOL_NODISCARD mol_status mol_client_fd(mol_client client, int *fd, mol_error **error);

// Gives the counters of a client. Does not wait.
//
// metrics  receives one JSON object (docs/upkeep.md), for mol_string_free
MOL_NODISCARD mol_status mol_client_metrics(mol_client client, char **metrics, mol_error **error);

// Finds or builds the image of a runtime, and waits for it.
//
// runtime     such as "claude-code"
// timeout_ms  MOL_TIMEOUT_CEILING, or how long the call may take
// image       receives the image, for mol_image_free
MOL_NODISCARD
mol_status mol_ensure_local_image(mol_client client,
                                  const char *runtime,
                                  int64_t timeout_ms,
                                  mol_image **image,
                                  mol_error **error);

// Starts a call of any kind without waiting: see mol_call_wait. An invalid request and an unknown runtime fail here.
//
// request     what to do; copied
// timeout_ms  MOL_TIMEOUT_CEILING, or how long the call may take
// call        receives the call
MOL_NODISCARD
mol_status mol_call_start(mol_client client,
                          const mol_request *request,
                          int64_t timeout_ms,
                          mol_call *call,
                          mol_error **error);

// Waits for the end of a call. Each result is returned once; another wait for the same call returns
// MOL_ERR_NO_SUCH_HANDLE. Returns MOL_OK also for a call that failed: result->status has the reason.
//
// call        from mol_call_start; an id of 0 stands for any call of the client
// timeout_ms  how long to wait; if it passes, the call goes on
// result      receives the result, for mol_result_free; NULL if no call ended in time
MOL_NODISCARD mol_status mol_call_wait(mol_client client, mol_call call, int64_t timeout_ms, mol_result **result, mol_error **error);

// Cancels a call, and returns without waiting. The call's result comes soon after, with MOL_ERR_CANCELED unless the
// call had just ended. The fetch or build stops if no other call waits for it. Podman completes a RUN that has
// started, and starts no further step.
//
// call  from mol_call_start; calls that have ended, and {0}, are ignored
mol_status mol_call_cancel(mol_client client, mol_call call, mol_error **error);

// Frees a string from mol_mask_token or mol_client_metrics.
void mol_string_free(char *text);

// Frees an error.
void mol_error_free(mol_error *error);

// Frees an image, but not one of a result: that is freed with the result.
void mol_image_free(mol_image *image);

// Frees a result, with its image, report and error.
void mol_result_free(mol_result *result);

// Frees an event.
void mol_event_free(mol_event *event);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MOL_H */
