// The header is fine for C++ too, alone and twice.
#include "mol.h"
#include "mol.h"

static_assert(MOL_OK == 0, "success is 0");

mol_status use(mol_client client);

mol_status use(mol_client client)
{
    mol_image *image = nullptr;
    mol_status status = mol_ensure_local_image(client, "hermes", 0, &image, nullptr);
    mol_image_free(image);
    return status;
}
