/* Searches the memory of the process for a token after the library has used it.
 *
 *     wiped RUNTIME     with the options in the environment, except the token
 *
 * Standard input has the token in its first line. Each further line is a byte string to search for, in hexadecimal
 * digits, each byte XOR 0x5a, so that only the library has the original bytes in memory. Prints the number of places
 * for each string, before and after the client was freed: "found LINE ALIVE GONE". */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <unistd.h>

#define CHANGE 0x5a
#define MOST 16
#define LENGTH 4096

struct needle {
    unsigned char bytes[LENGTH];
    size_t length;
    int alive, gone;
};

static struct needle needles[MOST];
static int count;

/* Reads standard input with the system call, because stdio would keep a copy. */
static size_t read_all(unsigned char *into, size_t room)
{
    size_t length = 0;
    ssize_t got;
    while (length < room && (got = read(0, into + length, room - length)) > 0)
        length += (size_t)got;
    CHECK(length > 0 && length < room);
    return length;
}

static int digit(unsigned char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

static void wipe(void *memory, size_t length)
{
    memset(memory, 0, length);
    __asm__ volatile("" : : "r"(memory) : "memory");
}

static int places(const unsigned char *memory, size_t size, const struct needle *needle)
{
    int found = 0;
    size_t at, i;
    for (at = 0; at + needle->length <= size; at++) {
        for (i = 0; i < needle->length && (memory[at + i] ^ CHANGE) == needle->bytes[i]; i++)
            ;
        found += i == needle->length;
    }
    return found;
}

/* Searches all writable memory. The buffer is wiped after each piece, so that it does not contain a copy. */
static void search(int gone)
{
    static unsigned char piece[1 << 20];
    char line[512];
    int i, memory = open("/proc/self/mem", O_RDONLY);
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(memory >= 0 && maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long start, end;
        char rights[5];
        if (sscanf(line, "%lx-%lx %4s", &start, &end, rights) != 3 || rights[0] != 'r' || rights[1] != 'w')
            continue;
        while (start < end) {
            size_t want = end - start < sizeof piece ? end - start : sizeof piece;
            ssize_t got;
            if (start <= (unsigned long)piece + sizeof piece && start + want > (unsigned long)piece) {
                start += want;
                continue;
            }
            got = pread(memory, piece, want, (off_t)start);
            if (got <= 0)
                break;
            for (i = 0; i < count; i++)
                *(gone ? &needles[i].gone : &needles[i].alive) += places(piece, (size_t)got, &needles[i]);
            wipe(piece, sizeof piece);
            /* Two pieces overlap, so that a string at their border is found. */
            start += (size_t)got == sizeof piece ? (size_t)got - LENGTH : (size_t)got;
        }
    }
    fclose(maps);
    close(memory);
}

static int total_gone(void)
{
    int i, total = 0;
    for (i = 0; i < count; i++)
        total += needles[i].gone;
    return total;
}

int main(int argc, char **argv)
{
    static unsigned char input[MOST * LENGTH];
    mol_error *error = NULL;
    mol_options options = {0};
    mol_client client = {0};
    mol_image *image = NULL;
    mol_status status;
    size_t length, at, end;
    int i, previous, searches = 20;

    CHECK(argc == 2);
    length = read_all(input, sizeof input);
    for (at = 0; input[at] != '\n'; at++)
        ;
    input[at] = 0;
    CHECK(mol_options_from_env(&options, &error) == MOL_OK);
    CHECK(mol_options_set(options, "MOLECULE_GITEA_TOKEN", (const char *)input, &error) == MOL_OK);
    wipe(input, at);
    for (at++; at < length && count < MOST; at = end + 1, count++) {
        for (end = at; input[end] != '\n'; end += 2)
            needles[count].bytes[needles[count].length++] = (unsigned char)(digit(input[end]) * 16 + digit(input[end + 1]));
    }

    CHECK(mol_client_new(options, false, &client, &error) == MOL_OK);
    mol_options_free(options);
    status = mol_ensure_local_image(client, argv[1], MOL_TIMEOUT_CEILING, &image, &error);
    printf("status %s\n", mol_status_name(status));
    mol_error_free(error);
    mol_image_free(image);
    search(0);
    mol_client_free(client);
    /* Background tasks of the client end shortly after: the search is repeated until two of them agree. */
    do {
        previous = total_gone();
        usleep(500000);
        for (i = 0; i < count; i++)
            needles[i].gone = 0;
        search(1);
    } while (total_gone() != previous && --searches > 0);
    for (i = 0; i < count; i++)
        printf("found %d %d %d\n", i, needles[i].alive, needles[i].gone);
    return 0;
}
