/* Many callers at once, in one process.
 *
 *     crowd CALLERS TIMEOUT_MS ROUNDS RUNTIME...     with the options in the environment
 *
 * Each round submits that many calls, to one runtime after the other, and waits for the end of all of
 * them. Prints every event, and one line for every end. */
#include "check.h"

#define MOST 1000

struct caller {
    mol_call call;
    const char *runtime;
};

static struct caller callers[MOST];

static void print_end(int round, const mol_event *event, const char *runtime)
{
    if (event->image != NULL) {
        CHECK(strcmp(event->image->runtime, runtime) == 0);
        printf("end %d %s ok %s\n", round, runtime, event->image->reference);
    } else {
        CHECK(strcmp(event->error->runtime, runtime) == 0);
        printf("end %d %s %s %s\n", round, runtime, mol_status_name(event->error->code), event->error->message);
    }
}

int main(int argc, char **argv)
{
    mol_options options = 0;
    mol_client client = 0;
    mol_event *event = NULL;
    int count, runtimes, rounds, round, running, i;

    CHECK(argc >= 5);
    count = atoi(argv[1]);
    rounds = atoi(argv[3]);
    runtimes = argc - 4;
    CHECK(count > 0 && count <= MOST);
    setvbuf(stdout, NULL, _IOLBF, 0);
    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    CHECK(mol_client_new(options, true, &client, NULL) == MOL_OK);
    mol_options_free(options);

    for (round = 1; round <= rounds; round++) {
        for (i = 0; i < count; i++) {
            callers[i].runtime = argv[4 + i % runtimes];
            CHECK(mol_client_submit(client, callers[i].runtime, atoll(argv[2]), &callers[i].call, NULL) == MOL_OK);
        }
        for (running = count; running > 0;) {
            CHECK(mol_client_next_event(client, 120000, &event, NULL) == MOL_OK);
            if (event->json != NULL) {
                printf("event %s\n", event->json);
            } else {
                for (i = 0; i < count && callers[i].call != event->call; i++)
                    ;
                CHECK(i < count);
                print_end(round, event, callers[i].runtime);
                callers[i].call = 0; /* a second end of the same call would not be found */
                running--;
            }
            mol_event_free(event);
        }
    }
    mol_client_free(client);
    return 0;
}
