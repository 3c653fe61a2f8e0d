//! Compiles the C program of the tests that makes random calls.

fn main() {
    println!("cargo::rerun-if-changed=../tests/c");
    cc::Build::new()
        .file("../tests/c/random_calls.c")
        .include("../include")
        .define("MOL_WITHOUT_MAIN", None)
        .std("c11")
        .compile("random_calls");
}
