//! The specification of libmol, against a real engine, a real git server and real processes.
//!
//! One test binary, because each binary links the whole library. `make test` runs it and sets the
//! variables that `support::required_var` reads.

#[path = "../support/mod.rs"]
mod support;

mod abi;
mod base_images;
mod bombs;
mod branches;
mod build_log;
mod builders;
mod c_programs;
mod cache;
mod cancel;
mod case_insensitive;
mod crash;
mod credentials;
mod diagnose;
mod disk;
mod docker_host;
mod dockerignore;
mod documents;
mod endless_engine;
mod engine_faults;
mod engine_tls;
mod farm;
mod fetch;
mod fidelity;
mod happy_path;
mod hits;
mod hostile_cache;
mod hostile_packs;
mod hostile_server;
mod hostile_trees;
mod https;
mod image_transfer;
mod inputs;
mod leaks;
mod lookup;
mod metrics;
mod misleading_words;
mod options;
mod outside_files;
mod own_builders;
mod own_engines;
mod packaging;
mod panics;
mod platforms;
mod podman;
mod printable_text;
mod processes;
mod properties;
mod prune;
mod redirects;
mod release;
mod retries;
mod server_choices;
mod shared_cache;
mod sharing;
mod siege;
mod signals;
mod ssh;
mod template;
mod token_memory;
mod vectors;
