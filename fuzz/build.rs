//! Compiles the player of random calls, a C program of the tests.

fn main() {
    println!("cargo::rerun-if-changed=../tests/c");
    cc::Build::new()
        .file("../tests/c/random_calls.c")
        .include("../include")
        .define("MOL_TAPE_ONLY", None)
        .std("c11")
        .compile("random_calls");
}
