/* A tape is a sequence of bytes that selects functions and their arguments. */
#include <stddef.h>
#include <stdint.h>

/* Plays a tape to its end. Checks that every function returns a status and does what the header says. Ids are kept
 * for later tapes, and are shared by all threads. */
void play(const uint8_t *tape, size_t length);

/* Frees the objects that the tapes have created. */
void rewind_all(void);
