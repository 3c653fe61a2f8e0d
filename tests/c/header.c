/* Compiled only. A program can declare the structs itself and so keep mol.h out of its own headers. */
struct mol_image;
struct mol_error;
struct mol_result;
struct mol_event;
struct mol_client;

const char *describe(const struct mol_image *image, const struct mol_error *error);
int finish(struct mol_client client, const struct mol_result *result, const struct mol_event *event);

#include "mol.h"
#include "mol.h"

const char *describe(const mol_image *image, const mol_error *error)
{
    return image != NULL ? image->reference : error->message;
}

int finish(mol_client client, const mol_result *result, const mol_event *event)
{
    enum mol_status status = result->status;
    enum mol_request_kind kind = MOL_REQUEST_IMAGE;
    enum mol_registry_mode mode = MOL_REGISTRY_MODE_LOCAL;

    (void)kind;
    (void)mode;
    return client.id == 0 || event == NULL ? -1 : (int)status;
}
