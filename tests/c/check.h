/* What every program here begins with: the header under test comes first, so that it must stand on
 * its own feet. */
#include "mol.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program, and says where, unless it holds. */
#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)
