/*
 * libmol: turns a workspace runtime name into a container image that is ready to start.
 *
 *     mol_options options = 0;
 *     mol_client client = 0;
 *     mol_image *image = NULL;
 *     mol_error *error = NULL;
 *
 *     if (mol_options_from_env(&options, &error) == MOL_OK &&
 *         mol_client_new(options, false, &client, &error) == MOL_OK &&
 *         mol_ensure_local_image(client, "claude-code", 0, &image, &error) == MOL_OK) {
 *         puts(image->reference);
 *     } else {
 *         fprintf(stderr, "%s (%s)\n", error->message, error->hint);
 *     }
 *     mol_error_free(error);
 *     mol_image_free(image);
 *     mol_client_free(client);
 *     mol_options_free(options);
 *
 * What holds for every function:
 *
 * Status   A function that can fail returns a mol_status, 0 for success, and takes as its last
 *          argument where to put a mol_error that says what failed, where, and what to do next.
 *          That argument may be NULL if only the status is wanted. Out-parameters are written on
 *          success only, and the error on failure only.
 *
 * Strings  are UTF-8 and end in a NUL byte. What goes in is borrowed for the call. What comes out
 *          belongs to the library. A mol_error, mol_image, mol_registry or mol_event is read-only,
 *          owns its strings, and goes back through its own _free function, once; a plain string goes
 *          back through mol_string_free. NULL is fine for all of these. New fields are only ever
 *          added at the end of a struct, so a program that was built before them still works.
 *
 * Ids      Options, clients and calls are known by an id, which is never 0 and never used again. An
 *          id that is freed already, or is of another kind, is MOL_ERR_NO_SUCH_HANDLE.
 *
 * Threads  Every function may be called from any thread at any time; mol_options_from_env alone asks
 *          that no other thread changes the environment meanwhile. No function calls back. The
 *          library starts its own threads with the first client, and they live as long as the
 *          process. A child process may exec; a forked child that does not must not use the library.
 *
 * The host No signal handler is installed, nothing is written to standard output or error, no child
 *          is started, exit is never called, and a panic inside becomes MOL_ERR_INTERNAL.
 *
 * Secrets  No token, and no user information of a URL, is in anything that comes out.
 *
 * This file is generated from src/ffi; change it there.
 */

#ifndef MOL_H
#define MOL_H

#include <stdbool.h>
#include <stdint.h>

// The version of this ABI. It changes when a program that was built against the old header could
// not use the new library.
#define MOL_ABI_VERSION 2

// What a function has to say. The numbers are never changed and never used again for another.
enum mol_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It is done.
  MOL_OK = 0,
  // The runtime is not on the allowlist. Nothing was asked of the network, the disk or the engine.
  MOL_ERR_UNKNOWN_RUNTIME = 1,
  // An option, or the environment variable behind it, holds a value that cannot be used.
  MOL_ERR_INVALID_OPTION = 2,
  // The template server gave no answer: refused, no such host, no route, time-out, TLS.
  MOL_ERR_GITEA_UNREACHABLE = 3,
  // The template repository, or the branch asked for, is not there.
  MOL_ERR_REPO_NOT_FOUND = 4,
  // The template server wants a token, or refuses the one it got.
  MOL_ERR_AUTH = 5,
  // The template server answered something that is not the answer its API documents.
  MOL_ERR_BAD_RESPONSE = 6,
  // The commit could not be fetched or checked out.
  MOL_ERR_FETCH = 7,
  // The commit has no file called Dockerfile at its root.
  MOL_ERR_NO_DOCKERFILE = 8,
  // No container engine answered, or the one that did answered an error.
  MOL_ERR_ENGINE_UNREACHABLE = 9,
  // The engine cannot build or run the platform.
  MOL_ERR_PLATFORM_UNSUPPORTED = 10,
  // The build ran and failed: see step and log_tail.
  MOL_ERR_BUILD_FAILED = 11,
  // A fetch or a build made no progress for the stall grace.
  MOL_ERR_STALLED = 12,
  // The ceiling passed.
  MOL_ERR_TIMEOUT = 13,
  // The cache folder cannot be used.
  MOL_ERR_CACHE = 14,
  // A defect in the library: please report it.
  MOL_ERR_INTERNAL = 15,
  // The call was cancelled.
  MOL_ERR_CANCELED = 16,
  // The time-out that was given with the call has passed.
  MOL_ERR_DEADLINE_EXCEEDED = 17,
  // An argument is NULL where it must not be, is not UTF-8, or is out of range.
  MOL_ERR_INVALID_ARGUMENT = 18,
  // The id names no object: freed already, of another kind, or never made.
  MOL_ERR_NO_SUCH_HANDLE = 19,
  // The client was freed while the call waited.
  MOL_ERR_CLOSED = 20,
  // No event came within the time-out.
  MOL_ERR_NO_EVENT = 21,
  // MOLECULE_LOCAL_OFFLINE is set, and the engine has no image of the runtime.
  MOL_ERR_NO_LOCAL_IMAGE = 22,
  // This process, or the machine, has no thread or file descriptor left.
  MOL_ERR_PROCESS_LIMIT = 23,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mol_status mol_status;
#else
typedef int32_t mol_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Pull or build.
enum mol_registry_mode
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // No registry is set: images are built on this machine.
  MOL_REGISTRY_MODE_LOCAL = 0,
  // A registry is set: the engine pulls from it, and this library has nothing to do.
  MOL_REGISTRY_MODE_SAAS = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mol_registry_mode mol_registry_mode;
#else
typedef int32_t mol_registry_mode;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What can be set. Every value is a string, and "" means "not set". Most have the syntax of the environment
// variable named here; docs/local-development.md has the defaults. The last three have no variable.
enum mol_option
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX: a URL to which the runtime's name is appended.
  MOL_OPTION_REPO_PREFIX = 1,
  // MOLECULE_LOCAL_TEMPLATE_BRANCH: the branch; not set, main or the default branch.
  MOL_OPTION_BRANCH = 2,
  // MOLECULE_GITEA_TOKEN: the token for the template server, of 8 to 1024 visible ASCII characters.
  MOL_OPTION_TOKEN = 3,
  // MOLECULE_LOCAL_BUILD_CACHE: the cache folder. mol_client_new makes a relative path absolute.
  MOL_OPTION_CACHE_DIR = 4,
  // MOLECULE_IMAGE_PLATFORM: os/arch[/variant], or native.
  MOL_OPTION_PLATFORM = 5,
  // MOLECULE_LOCAL_IMAGE_ISOLATION: a suffix for the tags; white space around it is dropped.
  MOL_OPTION_ISOLATION = 6,
  // MOLECULE_LOCAL_OFFLINE: 1 for no network.
  MOL_OPTION_OFFLINE = 7,
  // MOLECULE_LOCAL_RUNTIME_VERSION_PIN: 1 to send the template's version as a build argument.
  MOL_OPTION_RUNTIME_VERSION_PIN = 8,
  // MOLECULE_BUILD_STALL_GRACE_S: how long without output is a stall: seconds, or a duration as in 4m.
  MOL_OPTION_STALL_GRACE_S = 9,
  // MOLECULE_BUILD_CEILING_S: how long a call without a time-out may take: seconds, or as in 1h30m.
  MOL_OPTION_CEILING_S = 10,
  // DOCKER_HOST: the engine's address.
  MOL_OPTION_DOCKER_HOST = 11,
  // DOCKER_CONTEXT: the name of a docker context.
  MOL_OPTION_DOCKER_CONTEXT = 12,
  // DOCKER_CONFIG: the folder of docker's config.json.
  MOL_OPTION_DOCKER_CONFIG = 13,
  // DOCKER_TLS_VERIFY: anything for TLS with DOCKER_HOST.
  MOL_OPTION_DOCKER_TLS_VERIFY = 14,
  // DOCKER_CERT_PATH: the folder of ca.pem, cert.pem and key.pem.
  MOL_OPTION_DOCKER_CERT_PATH = 15,
  // DOCKER_BUILDKIT: 0 for the classic builder.
  MOL_OPTION_DOCKER_BUILDKIT = 16,
  // HTTPS_PROXY: the proxy for https addresses.
  MOL_OPTION_HTTPS_PROXY = 17,
  // HTTP_PROXY: the proxy for http addresses.
  MOL_OPTION_HTTP_PROXY = 18,
  // NO_PROXY: the hosts without a proxy.
  MOL_OPTION_NO_PROXY = 19,
  // SSL_CERT_FILE: a file of trusted certificates.
  MOL_OPTION_SSL_CERT_FILE = 20,
  // SSL_CERT_DIR: a folder of trusted certificates.
  MOL_OPTION_SSL_CERT_DIR = 21,
  // HOME: the home folder.
  MOL_OPTION_HOME = 22,
  // XDG_CACHE_HOME: the folder for caches.
  MOL_OPTION_XDG_CACHE_HOME = 23,
  // XDG_RUNTIME_DIR: the folder for sockets.
  MOL_OPTION_XDG_RUNTIME_DIR = 24,
  // TMPDIR: the folder for temporary files.
  MOL_OPTION_TMPDIR = 25,
  // PATH: the folders of credential helpers and of ssh.
  MOL_OPTION_SEARCH_PATH = 26,
  // MOLECULE_BUILD_MEMORY_MIB: the most memory that the library takes, in MiB.
  MOL_OPTION_MEMORY_MIB = 27,
  // The allowlist of runtimes, in place of the default one: "claude-code,hermes". Names match
  // [a-z0-9][a-z0-9-]*, have at most 64 characters and no hyphen at the end.
  MOL_OPTION_RUNTIMES = 28,
  // Which tags have the architecture: auto (both tags of every platform but linux/amd64), or always
  // (every pinned tag, without the variant, and no moving tag).
  MOL_OPTION_TAG_ARCH = 29,
  // Commits to take in place of the branch's head: "hermes=COMMIT,codex=COMMIT", each with all 40 or 64
  // hexadecimal digits.
  MOL_OPTION_PINS = 30,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mol_option mol_option;
#else
typedef int32_t mol_option;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Where images come from.
typedef struct {
  // Pull or build.
  mol_registry_mode mode;
  // What every image reference begins with. Never NULL.
  const char *prefix;
} mol_registry;

// Why a function failed. No string is NULL; what does not apply is empty.
typedef struct {
  // The kind of failure; the same as the function's status.
  mol_status code;
  // What failed, and where: one line.
  const char *message;
  // What to do next: one line.
  const char *hint;
  // The runtime the call was for.
  const char *runtime;
  // The address of the template repository.
  const char *url;
  // The step of the build that failed, as the builder names it.
  const char *step;
  // The step's line in the Dockerfile, from 1; 0 if it is not known.
  uint32_t line;
  // The exit code of the step's command; 0 if it is not known.
  int32_t exit_code;
  // The last lines of the build's output, with line breaks.
  const char *log_tail;
} mol_error;

// The id of a set of options, from mol_options_new or mol_options_from_env.
typedef uint64_t mol_options;

// The id of a client, from mol_client_new.
typedef uint64_t mol_client;

// How long each step of a call took, in microseconds. A step that was not needed took none.
typedef struct {
  // Asking the template server for the commit.
  int64_t lookup_us;
  // Asking the engine for the image.
  int64_t inspect_us;
  // Waiting for another process that was at the same image.
  int64_t wait_us;
  // Fetching the commit and checking it out.
  int64_t fetch_us;
  // Building, the upload of the context included.
  int64_t build_us;
  // Tagging.
  int64_t tag_us;
  // The whole call.
  int64_t total_us;
} mol_timings;

// An image that is ready to start. No string is NULL.
typedef struct {
  // What to give to the engine: molecule-local/workspace-template-hermes:0123456789ab,
  // say, with the first twelve digits of the commit.
  const char *reference;
  // The reference that moves with the branch.
  const char *latest_reference;
  // The runtime it was asked for.
  const char *runtime;
  // The full id of the commit whose tree is in the image.
  const char *commit_sha;
  // The engine's id of the image.
  const char *image_id;
  // What it was built for, such as linux/amd64.
  const char *platform;
  // The address of the engine that has it, such as unix:///var/run/docker.sock: the one to create
  // the container with.
  const char *endpoint;
  // True if it was there already: nothing was fetched and nothing built.
  bool cache_hit;
  // How long it took.
  mol_timings timings;
} mol_image;

// The id of a call, from mol_client_submit.
typedef uint64_t mol_call;

// Something that happened. Exactly one of json, image and error is set. The end of a call comes exactly
// once for each call that was accepted: an error; or an image, for mol_client_submit; or, for the others,
// json whose "kind" is "result", with the report as its "result".
typedef struct {
  // The call it is about.
  mol_call call;
  // One JSON object, or NULL. Its "kind" says what happened, its "message" is one line for people;
  // docs/events.md has every kind with its fields.
  const char *json;
  // The call has ended well. Freed with the event.
  const mol_image *image;
  // The call has failed. Freed with the event.
  const mol_error *error;
} mol_event;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The library's MOL_ABI_VERSION. Compare it with the header's before anything else.
uint32_t mol_abi_version(void);

// The library's version, such as "0.1.0". Static: not to be freed.
const char *mol_version(void);

// The name of a status, such as "repo_not_found"; "unknown_status" for any other number. Static:
// not to be freed.
const char *mol_status_name(int32_t status);

// Returns whether a name is on the default allowlist (exact match). False for NULL and invalid UTF-8. A client
// with MOL_OPTION_RUNTIMES has a list of its own.
//
// `runtime` is NULL or ends in a NUL byte.
bool mol_is_known_runtime(const char *runtime);

// Where do images come from? `image_registry` is the value of MOLECULE_IMAGE_REGISTRY; NULL or ""
// means that images are built here, and any other value is the registry's prefix, verbatim.
// Free the answer with mol_registry_free.
//
// `image_registry` is NULL or ends in a NUL byte; `registry` and `error` are NULL or may be written.
mol_status mol_resolve(const char *image_registry,
                       mol_registry **registry,
                       mol_error **error);

// Replaces the token in a text by "***", however it is spelled (plain, percent-encoded, escaped as in
// JSON or HTML, in hexadecimal, in the base64 of user:token), and the user information of every URL. A
// NULL or empty token leaves only the URLs. A short token is masked like any other here, although a
// client takes none of less than 8 characters. Nothing else in the text changes. Free the answer with
// mol_string_free.
//
// `text` and `token` are NULL or end in a NUL byte; `masked` and `error` are NULL or may be written.
mol_status mol_mask_token(const char *text,
                          const char *token,
                          char **masked,
                          mol_error **error);

// Makes an empty set of options: every one has its default. Free it with mol_options_free.
//
// `options` and `error` are NULL or may be written.
mol_status mol_options_new(mol_options *options, mol_error **error);

// Makes a set of options from the environment of the process. Free it with mol_options_free.
//
// It reads the environment, so no other thread may change it meanwhile (POSIX, setenv). Nothing
// else in this library does.
//
// `options` and `error` are NULL or may be written; no other thread changes the environment.
mol_status mol_options_from_env(mol_options *options, mol_error **error);

// Sets one option; the value is copied. mol_client_new checks it.
//
// `value` is NULL or ends in a NUL byte; `error` is NULL or may be written.
mol_status mol_options_set(mol_options options,
                           int32_t option,
                           const char *value,
                           mol_error **error);

// Frees a set of options. Clients that were made with it keep what they need. 0 and an id that is
// freed already are fine.
void mol_options_free(mol_options options);

// Makes a client. Nothing is connected to before its first call. The options may be freed at once.
// With `events` the queue gets what happens during calls too, not only their ends; then somebody
// must take them. Free it with mol_client_free.
//
// Fails with MOL_ERR_INVALID_OPTION, naming the environment variable.
//
// `client` and `error` are NULL or may be written.
mol_status mol_client_new(mol_options options, bool events, mol_client *client, mol_error **error);

// Cancels every call of a client, waits until all that they began has stopped, and frees it. A
// mol_client_next_event that waits returns MOL_ERR_CLOSED. 0 and an id that is freed already are
// fine.
void mol_client_free(mol_client client);

// Finds the image for the head of the runtime's template, or makes it, and waits for it. For a runtime in
// MOL_OPTION_PINS the pinned commit takes the place of the head. With a `timeout_ms` above 0 the call ends with
// MOL_ERR_DEADLINE_EXCEEDED after that time; else with MOL_ERR_TIMEOUT after the ceiling. Free the image with
// mol_image_free.
//
// `runtime` is NULL or ends in a NUL byte; `image` and `error` are NULL or may be written.
mol_status mol_ensure_local_image(mol_client client,
                                  const char *runtime,
                                  int64_t timeout_ms,
                                  mol_image **image,
                                  mol_error **error);

// Begins a call and returns at once, with its id. Its end comes through mol_client_next_event,
// exactly once. `timeout_ms` is as for mol_ensure_local_image.
//
// `runtime` is NULL or ends in a NUL byte; `call` and `error` are NULL or may be written.
mol_status mol_client_submit(mol_client client,
                             const char *runtime,
                             int64_t timeout_ms,
                             mol_call *call,
                             mol_error **error);

// Starts a call for exactly one commit of the runtime's template, with all 40 or 64 hexadecimal digits. There
// is no lookup, and no network at all if the engine has the image. Otherwise as mol_client_submit.
//
// `runtime` and `commit` are NULL or end in a NUL byte; `call` and `error` are NULL or may be written.
mol_status mol_client_submit_commit(mol_client client,
                                    const char *runtime,
                                    const char *commit,
                                    int64_t timeout_ms,
                                    mol_call *call,
                                    mol_error **error);

// Cancels a call. Its end comes soon after, with MOL_ERR_CANCELED unless it had just ended by
// itself. What it began stops if no other call wants it; on Podman the RUN that is under way goes on to
// its end, and no further step starts. A call that has ended is fine.
//
// `error` is NULL or may be written.
mol_status mol_client_cancel(mol_client client,
                             mol_call call,
                             mol_error **error);

// Takes the oldest event of a client; waits for one, at most for `timeout_ms`, or for ever if that
// is below 0. Fails with MOL_ERR_NO_EVENT when the time has passed, and with MOL_ERR_CLOSED when
// the client was freed meanwhile. Free the event with mol_event_free.
//
// `event` and `error` are NULL or may be written.
mol_status mol_client_next_event(mol_client client,
                                 int64_t timeout_ms,
                                 mol_event **event,
                                 mol_error **error);

// Says what there is of this library: images of every runtime in the engine, and trees in the cache,
// as one JSON object; docs/upkeep.md has its fields. `timeout_ms` is as for mol_ensure_local_image.
// Free the answer with mol_string_free.
//
// `inventory` and `error` are NULL or may be written.
mol_status mol_list(mol_client client,
                    int64_t timeout_ms,
                    char **inventory,
                    mol_error **error);

// Begins what mol_list does, and returns at once; otherwise as mol_client_submit.
//
// `call` and `error` are NULL or may be written.
mol_status mol_client_submit_list(mol_client client,
                                  int64_t timeout_ms,
                                  mol_call *call,
                                  mol_error **error);

// Removes old images of this library from the engine, and old trees from the cache; with `dry_run` it
// only says what it would remove. The newest `keep_per_runtime` of each runtime stay, what was built or returned
// by a call within the last `keep_recent_ms` milliseconds (0: ten minutes, below 0: nothing stays for that), what
// a container uses, and what the moving tag points at; so does everything that is not this library's, or has
// another isolation. Of calls of other processes that have another cache it knows less; docs/upkeep.md says
// what. The report is one JSON object; docs/upkeep.md has its fields. `timeout_ms` is as
// for mol_ensure_local_image. Free the report with mol_string_free.
//
// `report` and `error` are NULL or may be written.
mol_status mol_prune(mol_client client,
                     uint32_t keep_per_runtime,
                     int64_t keep_recent_ms,
                     bool dry_run,
                     int64_t timeout_ms,
                     char **report,
                     mol_error **error);

// Begins what mol_prune does, and returns at once; otherwise as mol_client_submit.
//
// `call` and `error` are NULL or may be written.
mol_status mol_client_submit_prune(mol_client client,
                                   uint32_t keep_per_runtime,
                                   int64_t keep_recent_ms,
                                   bool dry_run,
                                   int64_t timeout_ms,
                                   mol_call *call,
                                   mol_error **error);

// Looks at everything that a build depends on: the engine, the disks, the cache, the template server
// with the repository of each runtime, the token, logins, proxy and clock. The diagnosis is one JSON
// object, safe to be passed on; docs/upkeep.md has its fields. What is wrong is in it, and no error.
// `timeout_ms` is as for mol_ensure_local_image. Free the diagnosis with mol_string_free.
//
// `diagnosis` and `error` are NULL or may be written.
mol_status mol_diagnose(mol_client client,
                        int64_t timeout_ms,
                        char **diagnosis,
                        mol_error **error);

// Begins what mol_diagnose does, and returns at once; otherwise as mol_client_submit.
//
// `call` and `error` are NULL or may be written.
mol_status mol_client_submit_diagnose(mol_client client,
                                      int64_t timeout_ms,
                                      mol_call *call,
                                      mol_error **error);

// Starts to find the engine that images are built in, and returns at once; otherwise as mol_client_submit.
// The result is {"docker_host": "unix:///var/run/docker.sock"}, for example: the address as DOCKER_HOST has it,
// for whoever creates containers from the images. TLS needs DOCKER_TLS_VERIFY and DOCKER_CERT_PATH besides.
//
// `call` and `error` are NULL or may be written.
mol_status mol_client_submit_engine_host(mol_client client,
                                         int64_t timeout_ms,
                                         mol_call *call,
                                         mol_error **error);

// Gives the log of the last build of a runtime that was made with this cache, in whatever process, as
// one JSON object: its "text" has the lines. Fails with MOL_ERR_CACHE if there is none. `timeout_ms` is
// as for mol_ensure_local_image. Free the log with mol_string_free.
//
// `runtime` is NULL or ends in a NUL byte; `log` and `error` are NULL or may be written.
mol_status mol_build_log(mol_client client,
                         const char *runtime,
                         int64_t timeout_ms,
                         char **log,
                         mol_error **error);

// Begins what mol_build_log does, and returns at once; otherwise as mol_client_submit.
//
// `runtime` is NULL or ends in a NUL byte; `call` and `error` are NULL or may be written.
mol_status mol_client_submit_build_log(mol_client client,
                                       const char *runtime,
                                       int64_t timeout_ms,
                                       mol_call *call,
                                       mol_error **error);

// Gives what a client has done, in numbers, as one JSON object; docs/upkeep.md has its fields. It asks
// nobody and does not wait. Free the metrics with mol_string_free.
//
// `metrics` and `error` are NULL or may be written.
mol_status mol_client_metrics(mol_client client,
                              char **metrics,
                              mol_error **error);

// Frees a string that a function has given as its answer: from mol_mask_token, say. NULL is fine.
//
// `text` is NULL or a string that this library has handed out, and is not used afterwards.
void mol_string_free(char *text);

// Frees an error and its strings. NULL is fine.
//
// `error` is NULL or an error that this library has handed out, and is not used afterwards.
void mol_error_free(mol_error *error);

// Frees an image and its strings. NULL is fine.
//
// `image` is NULL or an image that this library has handed out by itself, not within an event, and
// is not used afterwards.
void mol_image_free(mol_image *image);

// Frees the answer of mol_resolve. NULL is fine.
//
// `registry` is NULL or comes from mol_resolve, and is not used afterwards.
void mol_registry_free(mol_registry *registry);

// Frees an event with all that is in it. NULL is fine.
//
// `event` is NULL or comes from mol_client_next_event, and is not used afterwards.
void mol_event_free(mol_event *event);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MOL_H */
