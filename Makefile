# libspeculators. `make` builds the library, `make demo` shows it at work, `make test` runs every
# check. Needs GNU make, a Rust toolchain and a C/C++ compiler.

CARGO ?= cargo
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man/man1
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
INSTALL ?= install

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
RELEASE := $(CARGO_TARGET_DIR)/release
EXAMPLES := $(CARGO_TARGET_DIR)/examples

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
ABI := $(shell sed -n 's/^pub const SPEC_ABI_VERSION: i32 = \([0-9]*\);/\1/p' src/capi/version.rs)
ABI_MAJOR := $(shell expr $(ABI) / 1000)
ABI_MINOR := $(shell expr $(ABI) % 1000)

# The file is named after its ABI. Programs ask for the major number only (the SONAME), so that a
# library with a higher minor number can take its place; linkers use the name without numbers.
ifeq ($(shell uname -s),Darwin)
LINK_NAME := libspeculators.dylib
SONAME := libspeculators.$(ABI_MAJOR).dylib
REAL_NAME := libspeculators.$(ABI_MAJOR).$(ABI_MINOR).dylib
LIBS_PRIVATE := -lSystem -lc -lm
else
LINK_NAME := libspeculators.so
SONAME := $(LINK_NAME).$(ABI_MAJOR)
REAL_NAME := $(SONAME).$(ABI_MINOR)
LIBS_PRIVATE := -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
endif

EXAMPLE_ARGUMENTS := BUILD="$(EXAMPLES)" SPECULATORS_LIB="$(RELEASE)"

# Where `make kernels` puts compilers of CUDA kernels, and the build what they compiled.
CUDA := $(CARGO_TARGET_DIR)/cuda

.PHONY: build cli demo test test-all sim-test bench kernels kernels-compile kernels-record gpu-pack \
  gpu-selftest mutate install uninstall header lint clean

# Only the libraries: with the rlib among the crate types there would be no link-time optimisation.
build:
	$(CARGO) rustc --release --lib --crate-type cdylib,staticlib
	ln -sf $(LINK_NAME) "$(RELEASE)/$(SONAME)"

# The command `speculators`, in a folder of its own: its library is built without link-time optimisation and
# must not take the place of the other.
COMMAND := $(CARGO_TARGET_DIR)/cli
cli:
	$(CARGO) build --release --features cli --bin speculators --target-dir "$(COMMAND)"

# DEMO takes options of the program, such as DEMO="--temperature 0.8 --batch 4"; MODEL a speculator's
# directory, whose target is the directory `target` beside it; TREE a kind of trees, such as TREE=dynamic.
demo: build
	$(MAKE) -C examples/c generate $(EXAMPLE_ARGUMENTS)
	"$(EXAMPLES)/generate" $(if $(MODEL),--speculator "$(MODEL)" --target "$(MODEL)/../target") \
	    $(if $(TREE),--tree $(TREE)) $(DEMO)

test test-all: build
	CARGO="$(CARGO)" MAKE="$(MAKE)" LIBRARY="$(RELEASE)" EXAMPLES="$(EXAMPLES)" \
	    SIMULATE="$(if $(filter test-all,$@),all)" tests/run

# The part of `make test` that needs no release build: the CUDA backend on a simulated device.
sim-test:
	CARGO="$(CARGO)" MAKE="$(MAKE)" tests/simulated

bench:
	$(CARGO) bench

# Compiles the CUDA kernels for all devices with the nvcc of tools/kernels, which is downloaded, as is
# NVRTC; compares what they need with kernels/budget.txt; compiles them with NVRTC as the library does.
# Needs Python with pip. Later builds embed what was compiled here.
kernels: kernels-compile
	tools/kernels/budget.py check "$(CUDA)/images"
	LD_LIBRARY_PATH="$(CUDA)/lib" SPEC_TEST_NVRTC=1 \
	  $(CARGO) test --quiet --lib backend::cuda::images::tests::nvrtc

kernels-compile:
	tools/kernels/install.sh "$(CUDA)"
	env -u SPEC_NVCC -u SPEC_CUDA_ARCHS -u NVCC $(CARGO) check --quiet --lib

# Writes the budget anew, as the kernels are now.
kernels-record: kernels-compile
	tools/kernels/budget.py record "$(CUDA)/images"

install: build cli
	$(INSTALL) -d "$(DESTDIR)$(LIBDIR)/pkgconfig" "$(DESTDIR)$(INCLUDEDIR)" "$(DESTDIR)$(BINDIR)" \
	    "$(DESTDIR)$(MANDIR)" "$(DESTDIR)$(BASHDIR)" "$(DESTDIR)$(ZSHDIR)" "$(DESTDIR)$(FISHDIR)"
	$(INSTALL) -m 755 "$(COMMAND)/release/speculators" "$(DESTDIR)$(BINDIR)/speculators"
	"$(COMMAND)/release/speculators" man "$(DESTDIR)$(MANDIR)"
	"$(COMMAND)/release/speculators" completions bash > "$(DESTDIR)$(BASHDIR)/speculators"
	"$(COMMAND)/release/speculators" completions zsh > "$(DESTDIR)$(ZSHDIR)/_speculators"
	"$(COMMAND)/release/speculators" completions fish > "$(DESTDIR)$(FISHDIR)/speculators.fish"
	$(INSTALL) -m 644 include/speculators.h "$(DESTDIR)$(INCLUDEDIR)/speculators.h"
	$(INSTALL) -m 755 "$(RELEASE)/$(LINK_NAME)" "$(DESTDIR)$(LIBDIR)/$(REAL_NAME)"
	ln -sf $(REAL_NAME) "$(DESTDIR)$(LIBDIR)/$(SONAME)"
	ln -sf $(SONAME) "$(DESTDIR)$(LIBDIR)/$(LINK_NAME)"
	$(INSTALL) -m 644 "$(RELEASE)/libspeculators.a" "$(DESTDIR)$(LIBDIR)/libspeculators.a"
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	    -e 's|@VERSION@|$(VERSION)|' -e 's|@LIBS_PRIVATE@|$(LIBS_PRIVATE)|' \
	    packaging/speculators.pc.in > "$(DESTDIR)$(LIBDIR)/pkgconfig/speculators.pc"

uninstall:
	rm -f "$(DESTDIR)$(INCLUDEDIR)/speculators.h" "$(DESTDIR)$(LIBDIR)/libspeculators.a"
	rm -f "$(DESTDIR)$(LIBDIR)/$(REAL_NAME)" "$(DESTDIR)$(LIBDIR)/$(SONAME)"
	rm -f "$(DESTDIR)$(LIBDIR)/$(LINK_NAME)" "$(DESTDIR)$(LIBDIR)/pkgconfig/speculators.pc"
	rm -f "$(DESTDIR)$(BINDIR)/speculators" "$(DESTDIR)$(MANDIR)"/speculators*.1
	rm -f "$(DESTDIR)$(BASHDIR)/speculators" "$(DESTDIR)$(ZSHDIR)/_speculators"
	rm -f "$(DESTDIR)$(FISHDIR)/speculators.fish"

# Breaks the CUDA kernels in one place at a time and reports where no test on the simulator notices, in a
# random order. MUTATE takes options of the program, such as MUTATE="--seed 7 --seconds 300".
mutate:
	CARGO="$(CARGO)" $(CARGO) run --quiet --example mutate -- $(MUTATE)

# Collects what tools/gpu/run.sh needs on a machine with a GPU, in gpu-pack.tar.xz of the target folder.
gpu-pack: build
	CARGO="$(CARGO)" MAKE="$(MAKE)" LIBRARY="$(RELEASE)" TARGET="$(CARGO_TARGET_DIR)" tools/gpu/pack.sh

# Proves the pack without a GPU: unpacks it elsewhere and runs it on the simulator.
gpu-selftest: gpu-pack
	$(MAKE) --silent -C tests/simt plain
	tools/gpu/selftest.sh "$(CARGO_TARGET_DIR)/gpu-pack.tar.xz" "$(CARGO_TARGET_DIR)/simt/plain"

# Writes the generated header and the records of the ABI anew.
header:
	UPDATE_HEADER=1 $(CARGO) test --quiet --test header
	UPDATE_ABI=1 $(CARGO) test --quiet --test c_programs abi

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

clean:
	$(CARGO) clean
