/* The form with a queue: submit, take events, perhaps cancel.
 *
 *     queue RUNTIME [TEXT]     with the options in the environment
 *
 * Prints every event; cancels the call at the first one that holds TEXT. The exit status is the
 * mol_status of the call's end. */
#include "check.h"

int main(int argc, char **argv)
{
    mol_options options = 0;
    mol_client client = 0;
    mol_call call = 0;
    mol_event *event = NULL;
    int status = -1;

    CHECK(argc >= 2);
    setvbuf(stdout, NULL, _IOLBF, 0);
    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    CHECK(mol_client_new(options, true, &client, NULL) == MOL_OK);
    mol_options_free(options);
    CHECK(mol_client_submit(client, argv[1], 0, &call, NULL) == MOL_OK);
    CHECK(call != 0);

    while (status < 0) {
        CHECK(mol_client_next_event(client, 120000, &event, NULL) == MOL_OK);
        CHECK(event->call == call);
        CHECK((event->json != NULL) + (event->image != NULL) + (event->error != NULL) == 1);
        if (event->json != NULL) {
            printf("event %s\n", event->json);
            if (argc > 2 && strstr(event->json, argv[2]) != NULL)
                CHECK(mol_client_cancel(client, call, NULL) == MOL_OK);
        } else if (event->image != NULL) {
            printf("reference %s\n", event->image->reference);
            status = MOL_OK;
        } else {
            printf("error %s\nmessage %s\nhint %s\n", mol_status_name(event->error->code), event->error->message,
                   event->error->hint);
            status = (int)event->error->code;
        }
        mol_event_free(event);
    }

    /* One end a call, and none after it; to cancel what has ended is fine. */
    CHECK(mol_client_cancel(client, call, NULL) == MOL_OK);
    event = NULL;
    CHECK(mol_client_next_event(client, 100, &event, NULL) == MOL_ERR_NO_EVENT);
    CHECK(event == NULL);
    mol_client_free(client);
    return status;
}
