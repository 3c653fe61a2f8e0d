/* Uses libmol and another Rust static library in one program. Each library panics once per round; prints what each
 * returns. */
#include "check.h"

uint32_t other_panics(void);

static void resolve(void)
{
    mol_registry registry = {MOL_REGISTRY_MODE_LOCAL, NULL};
    mol_error *error = NULL;
    mol_status status = mol_resolve("", &registry, &error);
    printf("mol_resolve %s\n", mol_status_name(status));
    mol_error_free(error);
}

int main(void)
{
    printf("other %u\n", other_panics());
    resolve();
    printf("other %u\n", other_panics());
    resolve();
    return 0;
}
