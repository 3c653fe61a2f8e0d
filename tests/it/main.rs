//! The specification of libmol, against a real engine, a real git server and real processes.
//!
//! One program for all of it, because each would link the whole library. `make test` runs it; what
//! it needs from there is in `support::given`.

#[path = "../support/mod.rs"]
mod support;

mod abi;
mod bombs;
mod branches;
mod build_log;
mod c_programs;
mod cache;
mod cancel;
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
mod fetch;
mod fidelity;
mod happy_path;
mod hits;
mod hostile_packs;
mod hostile_server;
mod hostile_trees;
mod https;
mod inputs;
mod leaks;
mod lookup;
mod metrics;
mod misleading_words;
mod options;
mod outside_files;
mod own_engines;
mod packaging;
mod panics;
mod planted;
mod platforms;
mod podman;
mod processes;
mod properties;
mod prune;
mod redirects;
mod retries;
mod server_choices;
mod sharing;
mod shown;
mod siege;
mod signals;
mod ssh;
mod template;
mod vectors;
mod wiped;
