/* An input is a sequence of bytes that selects functions and their arguments. */
#include <stddef.h>
#include <stdint.h>

/* Runs an input to its end. Checks that every function returns a status and does what the header says. Ids are kept
 * for later inputs, and are shared by all threads. */
void run_input(const uint8_t *bytes, size_t length);

/* Frees the objects that the inputs have created. */
void free_all(void);
