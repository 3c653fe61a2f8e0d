# libmol. `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# The Rust target to build for. Targets other than this machine's are compiled with packaging/with-zig, for glibc GLIBC
# and newer. With PORTABLE=1, so is this machine's own.
HOST       := $(shell packaging/host)
TARGET     := $(HOST)
PLATFORM   := $(shell packaging/platform $(TARGET))
GO_PACKAGE := go/mol
CARGO      := cargo
TARGET_DIR := target
GLIBC      := 2.28
# The oldest macOS, that of Go 1.26.
MACOSX_DEPLOYMENT_TARGET := 12.0
ifeq ($(TARGET)$(PORTABLE),$(HOST))
BUILT      := $(TARGET_DIR)/release
BUILD      := $(CARGO) build
RUSTC      := $(CARGO) rustc
else
FOR        := --target $(TARGET)$(if $(findstring linux-gnu,$(TARGET)),.$(GLIBC))
BUILT      := $(TARGET_DIR)/$(TARGET)/release
BUILD      := rustup target add $(TARGET) && packaging/with-zig $(CARGO) zigbuild $(FOR)
RUSTC      := rustup target add $(TARGET) && packaging/with-zig $(CARGO)-zigbuild rustc $(FOR)
endif
ifneq ($(findstring apple-darwin,$(TARGET)),)
# For Linux, GNU ld removes unreachable code from libmol.a. For macOS, link-time optimization does.
export CARGO_PROFILE_RELEASE_LTO := fat
ifeq ($(findstring apple-darwin,$(HOST)),)
# packaging/macos/prelink links the shared library.
BUILD      := $(RUSTC) --lib --crate-type staticlib
endif
endif
# What is installed: libmol.a, libmol.so where the target has one, and the folder command.
PACKAGE    := $(BUILT)/package

# Cargo's own variable: it puts a hash into the file names of libmol too, although libmol is also a cdylib. Without the
# hash, the library that ships and the one for the tests overwrite each other in the shared build folder, and every
# `make test` compiles both again. Scripts that call cargo in the folder target set the same value, because it is part
# of every crate's hash.
export __CARGO_DEFAULT_LIB_METADATA := libmol
export QUICK PREFIX DESTDIR BINDIR INCLUDEDIR LIBDIR DATADIR PLATFORM PORTABLE GLIBC MACOSX_DEPLOYMENT_TARGET

# The command needs Go.
GO := $(shell command -v go)
.PHONY: all
all: $(if $(GO),command,lib) ## build the library and, where Go is installed, the command mol: what a plain `make` does

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: lib
lib: ## build libmol.a and libmol.so, and copy the first to where the Go package links it; TARGET= to cross-compile
	@packaging/prelink --check $(TARGET)
	$(BUILD) --release --locked --target-dir $(TARGET_DIR)
	packaging/prelink $(TARGET) $(BUILT) $(PACKAGE)
	packaging/go-library $(PLATFORM) $(PACKAGE)/libmol.a $(GO_PACKAGE)

.PHONY: command
command: lib ## build mol, its manual page and completions, in the folder command beside libmol.a; TARGET= to cross-compile
	packaging/command $(TARGET) $(PACKAGE)/command

.PHONY: musl
musl: MUSL := $(firstword $(subst -, ,$(TARGET)))-unknown-linux-musl
musl: ## build, for Alpine and other musl systems, the archive for the Go build tag musl, and a static mol; TARGET=aarch64-… for arm64
	$(MAKE) --no-print-directory command TARGET=$(MUSL)

# Where there is no cargo, packaging/install says what to run first.
MISSING := $(if $(wildcard $(PACKAGE)/libmol.a),,$(if $(shell command -v $(CARGO)),all))
.PHONY: install
install: $(MISSING) ## install what was built, or build it first; PREFIX= DESTDIR= BINDIR= INCLUDEDIR= LIBDIR= DATADIR=
	packaging/install $(PACKAGE)

.PHONY: uninstall
uninstall: ## remove what install has installed, with the same settings
	packaging/install --undo

TARGETS := $(TARGET)
.PHONY: dist
dist: ## build one archive for each of TARGETS= (default: this machine), and SHA256SUMS, in target/dist
	packaging/dist $(TARGETS)

.PHONY: deb
deb: TARGETS := $(foreach machine,x86_64 aarch64,$(machine)-unknown-linux-gnu)
deb: ## build the Debian packages mol, libmol3 and libmol-dev for TARGETS= (default: amd64 and arm64), in target/dist
	packaging/deb $(TARGETS)

VERSION :=
.PHONY: release
release: TARGETS := $(foreach system,unknown-linux-gnu unknown-linux-musl apple-darwin,x86_64-$(system) aarch64-$(system))
release: ## build the archives and the Go modules of VERSION=0.2.0, for TARGETS= (default: Linux and macOS), in target/dist
	packaging/release "$(VERSION)" $(TARGETS)

.PHONY: demo
demo: ## boot a workspace from a template, twice, then from a new commit
	@scripts/demo

.PHONY: test
test: ## run the default test suites (Rust, C, Go) on private engines, and the demo
	@tests/run

.PHONY: soak
soak: ## repeat the tests of sharing, cancelling, killing and leaks for SOAK_SECONDS (1200)
	@tests/run soak

.PHONY: memcheck
memcheck: ## run the C and Go tests under valgrind, AddressSanitizer and the race detector
	@tests/memcheck

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZ_SECONDS (60)
	@scripts/fuzz

.PHONY: mutants
mutants: ## run mutation tests of masking, names, options, lookup, sharing, cache and context, for MINUTES (60)
	@tests/run mutants

.PHONY: bench
bench: ## compare libmol with the docker and git programs, write docs/benchmarks.md; SHORT=1 for a quick trial run
	@scripts/bench $(if $(SHORT),short,all)

.PHONY: check
check: ## run the checks for a merge: formats, lints, generated files, slow test suites; QUICK=1, for a commit, skips these
	@scripts/check

.PHONY: generate
generate: ## regenerate the C header and the Go package's linker flags
	$(CARGO) build --release --locked
	find target/release/build -path '*/mol-*/out/mol.h' -printf '%T@ %p\n' | sort -n | tail -n 1 \
	  | cut -d ' ' -f 2- | xargs -I % cp % include/mol.h
	cp include/mol.h $(GO_PACKAGE)/mol.h
	$(RUSTC) --release --locked --lib --crate-type staticlib -- --print native-static-libs 2>&1 \
	  | sed -n 's/^note: native-static-libs: //p' | packaging/link-file $(PLATFORM) > target/link.go
	mv target/link.go $(GO_PACKAGE)/link_$(PLATFORM).go

.PHONY: docs
docs: ## build the HTML references: the Rust crate in target/doc/mol, the C header in target/doc/c
	$(CARGO) doc --locked --no-deps
	packaging/c-reference target/doc/c

.PHONY: licences
licences: ## regenerate the licence texts and the SBOM of the linked dependencies
	packaging/licences
	packaging/sbom

.PHONY: clean
clean: ## remove all build results
	$(CARGO) clean
	rm -f $(GO_PACKAGE)/libmol_*
