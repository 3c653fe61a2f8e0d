/*
 * Prints the image of a workspace runtime. Builds it first if the engine does not have it.
 *
 *     cc -o ensure ensure.c $(pkg-config --cflags --libs mol)
 *     ./ensure claude-code [TIMEOUT_MS]
 *
 * docs/local-development.md lists the environment variables that set the options. The exit status is 0 or the
 * mol_status, and 64 after a wrong command line, or with a library whose ABI differs from the header's.
 */
#include <mol.h>
#include <stdio.h>
#include <stdlib.h>

static void print_image(const mol_image *image)
{
    printf("reference %s\n", image->reference);
    printf("latest %s\n", image->latest_reference);
    printf("commit %s\n", image->commit_sha);
    printf("id %s\n", image->image_id);
    printf("platform %s\n", image->platform);
    printf("engine %s\n", image->endpoint);
    printf("hit %d\n", image->cache_hit);
    printf("seconds %.3f\n", (double)image->timings.total_us / 1e6);
}

static void print_error(const mol_error *error)
{
    fprintf(stderr, "error %s\n", mol_status_name(error->code));
    fprintf(stderr, "message %s\n", error->message);
    fprintf(stderr, "hint %s\n", error->hint);
    if (error->url[0] != '\0')
        fprintf(stderr, "url %s\n", error->url);
    if (error->step[0] != '\0')
        fprintf(stderr, "step %s\nline %u\nexit %d\n", error->step, (unsigned)error->line, (int)error->exit_code);
    if (error->log_tail[0] != '\0')
        fprintf(stderr, "log %s\n", error->log_tail);
}

int main(int argc, char **argv)
{
    mol_registry registry;
    mol_options options = {0};
    mol_client client = {0};
    mol_image *image = NULL;
    mol_error *error = NULL;
    mol_status status;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: ensure RUNTIME [TIMEOUT_MS]\n");
        return 64;
    }
    if (mol_abi_version() != MOL_ABI_VERSION) {
        fprintf(stderr, "libmol has ABI version %u, the header has %u\n", (unsigned)mol_abi_version(), (unsigned)MOL_ABI_VERSION);
        return 64;
    }

    status = mol_resolve(getenv("MOLECULE_IMAGE_REGISTRY"), &registry, &error);
    if (status == MOL_OK && registry.mode == MOL_REGISTRY_MODE_SAAS) {
        printf("registry %s\n", registry.prefix); /* a registry is set: pull from there, and build nothing */
        return 0;
    }
    if (status == MOL_OK)
        status = mol_options_from_env(&options, &error);
    if (status == MOL_OK)
        status = mol_client_new(options, false, &client, &error);
    if (status == MOL_OK)
        status = mol_ensure_local_image(client, argv[1], argc == 3 ? atoll(argv[2]) : MOL_TIMEOUT_CEILING, &image, &error);
    if (status == MOL_OK)
        print_image(image);
    else
        print_error(error);

    mol_error_free(error);
    mol_image_free(image);
    mol_client_free(client);
    mol_options_free(options);
    return (int)status;
}
