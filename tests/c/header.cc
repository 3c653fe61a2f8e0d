// Compiled only: the header in C++, after forward declarations, and included twice.
struct mol_image;
struct mol_client;

const char *reference_of(const mol_image *image);

#include "mol.h"
#include "mol.h"

static_assert(MOL_OK == 0, "success is 0");

const char *reference_of(const mol_image *image)
{
    return image->reference;
}

mol_status use(mol_client client);

mol_status use(mol_client client)
{
    mol_request request = {};
    mol_call call = {};
    mol_result *result = nullptr;

    request.size = sizeof request;
    request.kind = MOL_REQUEST_LIST;
    mol_status status = mol_call_start(client, &request, MOL_TIMEOUT_CEILING, &call, nullptr);
    if (status == MOL_OK)
        status = mol_call_wait(client, call, MOL_TIMEOUT_NONE, &result, nullptr);
    mol_result_free(result);
    return status;
}
