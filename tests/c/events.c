/* One call with its events, perhaps cancelled.
 *
 *     events RUNTIME [TEXT]     with the options in the environment
 *
 * Prints every event, and cancels the call at the first one whose JSON contains TEXT. The exit status is the
 * mol_status of the result. */
#include "check.h"

/* Checks an event, prints it and frees it. */
static void show(mol_event *event, mol_call call, uint64_t *last)
{
    char expected[64];

    CHECK(event->size == sizeof *event && event->call.id == call.id);
    CHECK(event->number == *last + 1);
    *last = event->number;
    snprintf(expected, sizeof expected, "{\"kind\":\"%s\"", event->kind);
    CHECK(strncmp(event->json, expected, strlen(expected)) == 0);
    CHECK(event->message[0] != '\0' && strchr(event->message, '\n') == NULL);
    printf("event %s\n", event->json);
    mol_event_free(event);
}

int main(int argc, char **argv)
{
    mol_client client;
    mol_call call;
    mol_event *event = NULL;
    mol_result *result = NULL;
    uint64_t last = 0;
    int status;

    CHECK(argc >= 2);
    setvbuf(stdout, NULL, _IOLBF, 0);
    client = client_from_env(true);
    call = start(client, (mol_request){.kind = MOL_REQUEST_IMAGE, .runtime = argv[1]}, MOL_TIMEOUT_CEILING);
    while (result == NULL) {
        CHECK(mol_client_next_event(client, 10, &event, NULL) == MOL_OK);
        if (event != NULL) {
            bool cancel = argc > 2 && strstr(event->json, argv[2]) != NULL;

            show(event, call, &last);
            if (cancel)
                CHECK(mol_call_cancel(client, call, NULL) == MOL_OK);
        } else {
            CHECK(mol_call_wait(client, call, 0, &result, NULL) == MOL_OK);
        }
    }
    /* Events may have come between the two calls above. Their numbers say whether they belong before the result. */
    while (last < result->last_event) {
        CHECK(mol_client_next_event(client, 0, &event, NULL) == MOL_OK && event != NULL);
        show(event, call, &last);
    }
    CHECK(last == result->last_event);
    if (result->image != NULL)
        printf("reference %s\n", result->image->reference);
    else
        printf("error %s\nmessage %s\nhint %s\ntail %s\n", mol_status_name(result->status), result->error->message,
               result->error->hint, result->error->log_tail);
    status = (int)result->status;
    mol_result_free(result);

    /* Each call has one result, and no event after it. A call that has ended can be cancelled. */
    CHECK(mol_call_cancel(client, call, NULL) == MOL_OK);
    result = NULL;
    CHECK(mol_call_wait(client, call, MOL_TIMEOUT_NONE, &result, NULL) == MOL_ERR_NO_SUCH_HANDLE);
    CHECK(mol_call_wait(client, (mol_call){0}, 100, &result, NULL) == MOL_OK && result == NULL);
    CHECK(mol_client_next_event(client, 100, &event, NULL) == MOL_OK && event == NULL);
    mol_client_free(client);
    return status;
}
