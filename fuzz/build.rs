//! Compiles the tape player, a C program of the tests.

fn main() {
    println!("cargo::rerun-if-changed=../tests/c");
    cc::Build::new()
        .file("../tests/c/tape.c")
        .include("../include")
        .define("MOL_TAPE_ONLY", None)
        .std("c11")
        .compile("tape");
}
