/* A tape of bytes that says which function gets which arguments. */
#include <stddef.h>
#include <stdint.h>

/* Plays a tape to its end. Every call must end with a status, and keep what the header promises. Ids
 * are kept from one tape to the next, so that tapes on several threads meet each other's. */
void play(const uint8_t *tape, size_t length);

/* Frees what the tapes have left. */
void rewind_all(void);
