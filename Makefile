# libmol. `make help` lists what there is.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# What to build for, as Rust calls it. For another machine than this one packaging/with-zig compiles.
HOST       := $(shell rustc --version --verbose | sed -n 's/^host: //p')
TARGET     := $(HOST)
PLATFORM   := $(shell packaging/platform $(TARGET))
GO_PACKAGE := go/mol
ARCHIVE    := $(GO_PACKAGE)/libmol_$(PLATFORM).a
CARGO      := cargo
TARGET_DIR := target
ifeq ($(TARGET),$(HOST))
BUILT      := $(TARGET_DIR)/release
BUILD      := $(CARGO) build
RUSTC      := $(CARGO) rustc
else
BUILT      := $(TARGET_DIR)/$(TARGET)/release
BUILD      := rustup target add $(TARGET) && packaging/with-zig $(CARGO) zigbuild --target $(TARGET)
RUSTC      := rustup target add $(TARGET) && packaging/with-zig $(CARGO)-zigbuild rustc --target $(TARGET)
endif
COPY       := $(if $(findstring -musl,$(TARGET)),packaging/add-unwind $(TARGET),cp)

export QUICK PREFIX DESTDIR BINDIR INCLUDEDIR LIBDIR DATADIR PLATFORM

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: lib
lib: ## libmol.a and libmol.so, and the archive where the Go package links it; TARGET= for another machine
	$(BUILD) --release --locked --target-dir $(TARGET_DIR)
	$(COPY) $(BUILT)/libmol.a $(ARCHIVE).new
	mv $(ARCHIVE).new $(ARCHIVE)
	packaging/link-id $(PLATFORM) $(ARCHIVE) > $(ARCHIVE:.a=.go)

.PHONY: command
command: lib ## the command mol, its manual page and completions, in the folder command beside libmol.a; TARGET=
	packaging/command $(TARGET) $(BUILT)/command

.PHONY: musl
musl: MUSL := $(firstword $(subst -, ,$(TARGET)))-unknown-linux-musl
musl: ## for Alpine and the like: the archive that the tag musl links, and a static mol; TARGET=aarch64-… for arm64
	$(MAKE) --no-print-directory command TARGET=$(MUSL)

# Who writes C needs no Go.
GO := $(shell command -v go)
.PHONY: install
install: $(if $(GO),command,lib) ## library, header, mol.pc, command; PREFIX= DESTDIR= BINDIR= INCLUDEDIR= LIBDIR= DATADIR=
	$(if $(GO),,rm -rf $(BUILT)/command)
	packaging/install $(BUILT)

.PHONY: uninstall
uninstall: ## takes it out again
	packaging/install --undo

TARGETS := $(TARGET)
.PHONY: dist
dist: ## one archive for each of TARGETS= (this machine's), and SHA256SUMS, in target/dist
	packaging/dist $(TARGETS)

# As lib, but with points where the tests can stop it (src/testing/point.rs), and compiled quickly. Dependencies are
# compiled once for both; the result is in a folder of its own, and never replaces that of lib.
.PHONY: lib-failpoints
lib-failpoints:
	CARGO_BUILD_BUILD_DIR=target $(CARGO) rustc --release --locked --features failpoints --lib \
	  --config tests/profile.toml --crate-type staticlib,cdylib --target-dir target/failpoints

.PHONY: demo
demo: ## boot a workspace from a template, twice, then from a new commit
	@tests/demo

.PHONY: test
test: ## all tests: Rust, C, Go, with an engine of their own
	@tests/run

.PHONY: soak
soak: ## the tests of sharing, cancelling, killing and leaks again and again, for SOAK_SECONDS (1200)
	@tests/run soak

.PHONY: memcheck
memcheck: ## the C and Go tests under valgrind, AddressSanitizer and the race detector
	@tests/memcheck

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZ_SECONDS (60)
	@tests/fuzz

.PHONY: bench
bench: ## libmol against the docker and git programs, into docs/benchmarks.md; SHORT=1 only to see it work
	@tests/bench $(if $(SHORT),short,all)

.PHONY: check
check: ## what must hold before a commit: format, lints, generated files, other systems; QUICK=1 without those
	@tests/check

.PHONY: generate
generate: ## write the generated files: the C header, the Go package's linker flags
	$(CARGO) build --release --locked
	find target/release/build -path '*/mol-*/out/mol.h' -printf '%T@ %p\n' | sort -n | tail -n 1 \
	  | cut -d ' ' -f 2- | xargs -I % cp % include/mol.h
	cp include/mol.h $(GO_PACKAGE)/mol.h
	$(RUSTC) --release --locked --lib --crate-type staticlib -- --print native-static-libs 2>&1 \
	  | sed -n 's/^note: native-static-libs: //p' | packaging/link-file $(PLATFORM) > $(GO_PACKAGE)/link_$(PLATFORM).go

.PHONY: docs
docs: ## the references as HTML: of the Rust crate in target/doc/mol, of the C header in target/doc/c
	$(CARGO) doc --locked --no-deps
	packaging/c-reference target/doc/c

.PHONY: licences
licences: ## write the licence texts and the SBOM of what is linked in
	packaging/licences
	packaging/sbom

.PHONY: clean
clean: ## remove what was built
	$(CARGO) clean
	rm -f $(GO_PACKAGE)/libmol_*
