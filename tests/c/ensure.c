/* The blocking form: where do images come from, get one, and mask a token.
 *
 *     ensure RUNTIME [TIMEOUT_MS]     with the options in the environment
 *
 * Prints the image or the error, one field a line; the exit status is the mol_status. */
#include "check.h"

static int failed(mol_status status, mol_error *error)
{
    CHECK(status != MOL_OK && error != NULL && error->code == status);
    printf("error %s\nmessage %s\nhint %s\nruntime %s\nurl %s\nstep %s\ntail %s\n", mol_status_name(status),
           error->message, error->hint, error->runtime, error->url, error->step, error->log_tail);
    mol_error_free(error);
    return (int)status;
}

int main(int argc, char **argv)
{
    mol_error *error = NULL;
    mol_registry *registry = NULL;
    mol_options options = 0;
    mol_client client = 0;
    mol_image *image = NULL;
    char *masked = NULL;
    mol_status status;

    CHECK(argc >= 2);
    CHECK(mol_abi_version() == MOL_ABI_VERSION);

    status = mol_resolve(getenv("MOLECULE_IMAGE_REGISTRY"), &registry, &error);
    if (status != MOL_OK)
        return failed(status, error);
    printf("mode %s\nprefix %s\n", registry->mode == MOL_REGISTRY_MODE_LOCAL ? "local" : "saas", registry->prefix);
    mol_registry_free(registry);

    status = mol_mask_token("https://u:s3cr3t@host/?t=s3cr3t", "s3cr3t", &masked, &error);
    if (status != MOL_OK)
        return failed(status, error);
    printf("masked %s\n", masked);
    mol_string_free(masked);

    status = mol_options_from_env(&options, &error);
    if (status != MOL_OK)
        return failed(status, error);
    status = mol_client_new(options, false, &client, &error);
    mol_options_free(options);
    if (status != MOL_OK)
        return failed(status, error);
    status = mol_ensure_local_image(client, argv[1], argc > 2 ? atoll(argv[2]) : 0, &image, &error);
    mol_client_free(client);
    if (status != MOL_OK)
        return failed(status, error);

    printf("reference %s\nlatest %s\nruntime %s\ncommit %s\nid %s\nplatform %s\nhit %d\n", image->reference,
           image->latest_reference, image->runtime, image->commit_sha, image->image_id, image->platform,
           image->cache_hit);
    CHECK(image->timings.total_us >= image->timings.build_us);
    CHECK(image->timings.total_us > 0);
    mol_image_free(image);
    return 0;
}
