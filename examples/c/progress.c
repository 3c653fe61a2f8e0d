/*
 * Gets the image of a workspace runtime in an event loop: prints the progress, and cancels on Ctrl-C.
 *
 *     cc -o progress progress.c $(pkg-config --cflags --libs mol)
 *     ./progress claude-code
 *
 * docs/local-development.md lists the environment variables that set the options. The exit status is 0 or the
 * mol_status, and 64 after a wrong command line, or with a library whose ABI differs from the header's.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <mol.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The signal handler writes a byte to this pipe, which wakes the loop. */
static int interrupt_pipe[2];

static void on_interrupt(int signal)
{
    int saved = errno;

    (void)signal;
    if (write(interrupt_pipe[1], "", 1) < 0) {
        /* Nothing can be done about it in a signal handler. */
    }
    errno = saved;
}

/*
 * Ends the program with an error of the library. It takes the address of the error: in the arguments of one call, C may
 * read `error` before the function in another argument has set it.
 */
static void check(mol_status status, mol_error *const *error)
{
    if (status == MOL_OK)
        return;
    fprintf(stderr, "%s: %s (%s)\n", mol_status_name(status), (*error)->message, (*error)->hint);
    exit((int)status);
}

static void print_events(mol_client client)
{
    mol_error *error = NULL;
    mol_event *event = NULL;

    for (;;) {
        check(mol_client_next_event(client, 0, &event, &error), &error);
        if (event == NULL)
            return;
        printf("%s: %s\n", event->kind, event->message);
        mol_event_free(event);
    }
}

/* Waits for the result of a call, and prints the events until then. */
static mol_result *run(mol_client client, mol_call call)
{
    struct pollfd wait_for[2] = {{.events = POLLIN}, {.fd = interrupt_pipe[0], .events = POLLIN}};
    mol_error *error = NULL;
    mol_result *result = NULL;

    check(mol_client_fd(client, &wait_for[0].fd, &error), &error);
    while (result == NULL) {
        if (poll(wait_for, 2, -1) < 0) {
            if (errno == EINTR)
                continue; /* a signal: the pipe is readable now */
            perror("poll");
            exit(MOL_ERR_INTERNAL);
        }
        if (wait_for[1].revents != 0) {
            check(mol_call_cancel(client, call, &error), &error);
            wait_for[1].fd = -1; /* poll ignores it from now on */
        }
        check(mol_call_wait(client, call, 0, &result, &error), &error);
        print_events(client); /* all events of a call come before its result */
    }
    return result;
}

int main(int argc, char **argv)
{
    struct sigaction interrupt = {.sa_handler = on_interrupt, .sa_flags = SA_RESETHAND}; /* a second Ctrl-C kills it */
    mol_request request = {.size = sizeof request, .kind = MOL_REQUEST_IMAGE};
    mol_options options = {0};
    mol_client client = {0};
    mol_call call = {0};
    mol_error *error = NULL;
    mol_result *result;
    int status;

    if (argc != 2) {
        fprintf(stderr, "usage: progress RUNTIME\n");
        return 64;
    }
    if (mol_abi_version() != MOL_ABI_VERSION) {
        fprintf(stderr, "libmol has ABI version %u, the header has %u\n", (unsigned)mol_abi_version(),
                (unsigned)MOL_ABI_VERSION);
        return 64;
    }
    if (pipe(interrupt_pipe) != 0 || sigaction(SIGINT, &interrupt, NULL) != 0) {
        perror("progress");
        return MOL_ERR_INTERNAL;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* each line at once, also into a pipe */
    request.runtime = argv[1];
    check(mol_options_from_env(&options, &error), &error);
    check(mol_client_new(options, true, &client, &error), &error);
    check(mol_call_start(client, &request, MOL_TIMEOUT_CEILING, &call, &error), &error);

    result = run(client, call);
    status = (int)result->status;
    if (result->image != NULL)
        printf("image: %s\n", result->image->reference);
    else
        fprintf(stderr, "%s: %s (%s)\n%s\n%s\n", mol_status_name(result->status), result->error->message,
                result->error->hint, result->error->step, result->error->log_tail);
    mol_result_free(result);
    mol_client_free(client);
    mol_options_free(options);
    return status;
}
