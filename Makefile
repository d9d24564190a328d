# Unisono: build, demonstrate, test, install. GNU make; needs a Rust toolchain and a C compiler, the
# tests a C++ compiler too.
#
#   make                        build/libunisono.a, build/libunisono.so, build/unisono
#   make demo                   train a small language model on 2 ranks, then compare 1, 2 and 4
#   make test                   everything; closing line "N passed, N failed, N skipped"
#   make test-rdma              the RDMA link alone, in a VM with two software RoCE cards (QEMU)
#   make test-rdma-full         the same on software iWARP, and between two VMs, one of which dies
#   make check                  formatting, lints and the header alone
#   make bench                  times everything beside other libraries; writes BENCHMARKS.md
#   make gpu-bundle             build/gpu-bundle: what checks and measures a GPU machine without Rust
#   make install PREFIX=/usr/local LIBDIR=$PREFIX/lib DESTDIR=
#   make uninstall              the same variables: takes away what install put there
#   make clean
#
# DEBUG=1 keeps line tables in the libraries. FILES="a.txt b.txt" gives the demo other text.
# BENCH="--quick shm-all_reduce" benches less; BENCH=--help says what there is.

PREFIX ?= /usr/local
# Debian's is $(PREFIX)/lib/x86_64-linux-gnu, Fedora's $(PREFIX)/lib64.
LIBDIR ?= $(PREFIX)/lib
CARGO ?= cargo
CC ?= cc
CFLAGS ?= -O3 -march=native
INSTALL ?= install
FILES ?=
BENCH ?=

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# Before 1.0 a minor version may break programs, so it is part of the name they look for.
MAJOR := $(firstword $(subst ., ,$(VERSION)))
MINOR := $(word 2,$(subst ., ,$(VERSION)))
SONAME := libunisono.so.$(if $(filter 0,$(MAJOR)),0.$(MINOR),$(MAJOR))
TARGET := $(or $(CARGO_TARGET_DIR),target)
BUILD := build

# What the static library needs of the system: compared with rustc's own list by a test.
LIBS_PRIVATE := -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc

C99 := -std=c99 -Wall -Wextra -Wpedantic
LM := ffi/examples/train_lm.c $(wildcard ffi/examples/lm/*.c)

.PHONY: all lib program demo test test-rdma test-rdma-full check bench gpu-bundle install uninstall
.PHONY: clean libs-private version FORCE
.DELETE_ON_ERROR:

all: lib program

lib: $(BUILD)/libunisono.a

# cargo knows what is stale; an archive it leaves alone keeps its time.
$(TARGET)/release/libunisono.a: FORCE
	$(CARGO) rustc --quiet --release --locked --lib --no-default-features --crate-type staticlib

$(BUILD)/libunisono.a: $(TARGET)/release/libunisono.a scripts/link.sh ffi/unisono.map
	@mkdir -p $(BUILD)
	LIBS="$(LIBS_PRIVATE)" CC="$(CC)" scripts/link.sh $< $(BUILD) $(VERSION) $(SONAME)

program:
	@mkdir -p $(BUILD)
	$(CARGO) build --quiet --release --locked --bin unisono
	@cmp -s $(TARGET)/release/unisono $(BUILD)/unisono || cp $(TARGET)/release/unisono $(BUILD)/unisono

$(BUILD)/train_lm: $(LM) $(wildcard ffi/examples/lm/*.h) ffi/include/unisono.h $(BUILD)/libunisono.a
	$(CC) $(C99) $(CFLAGS) -Iffi/include $(LM) $(BUILD)/libunisono.a $(LIBS_PRIVATE) -o $@

demo: all $(BUILD)/train_lm
	BUILD=$(BUILD) scripts/demo.sh $(FILES)

test:
	CARGO="$(CARGO)" scripts/test.sh

test-rdma: all
	scripts/rdma/test.sh

test-rdma-full: all
	scripts/rdma/full.sh

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --quiet --locked --test capi_header

bench:
	$(CARGO) bench --quiet --locked --bench report -- $(BENCH)

gpu-bundle: all
	LIBS="$(LIBS_PRIVATE)" CC="$(CC)" scripts/gpu_bundle.sh $(BUILD)/gpu-bundle

install: all
	$(INSTALL) -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include
	$(INSTALL) -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(LIBDIR)/cmake/unisono
	$(INSTALL) -d $(DESTDIR)$(LICENCES)
	$(INSTALL) -m 644 LICENSE-MIT LICENSE-APACHE $(DESTDIR)$(LICENCES)
	$(INSTALL) -m 755 $(BUILD)/unisono $(DESTDIR)$(PREFIX)/bin/unisono
	$(INSTALL) -m 644 ffi/include/unisono.h ffi/include/unisono.hpp $(DESTDIR)$(PREFIX)/include
	$(INSTALL) -m 644 $(BUILD)/libunisono.a $(DESTDIR)$(LIBDIR)/libunisono.a
	$(INSTALL) -m 755 $(BUILD)/libunisono.so.$(VERSION) $(DESTDIR)$(LIBDIR)
	ln -sf libunisono.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libunisono.so
	sed $(FILL) ffi/unisono.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/unisono.pc
	for name in unisono-config unisono-config-version; do \
	    sed $(FILL) ffi/cmake/$$name.cmake.in \
	        > $(DESTDIR)$(LIBDIR)/cmake/unisono/$$name.cmake || exit 1; \
	done

# Not the folders: others may have files there. But those that are ours alone.
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/unisono
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/include/,unisono.h unisono.hpp)
	rm -f $(addprefix $(DESTDIR)$(LIBDIR)/,libunisono.a libunisono.so $(SONAME))
	rm -f $(DESTDIR)$(LIBDIR)/libunisono.so.$(VERSION) $(DESTDIR)$(LIBDIR)/pkgconfig/unisono.pc
	rm -rf $(DESTDIR)$(LIBDIR)/cmake/unisono $(DESTDIR)$(LICENCES)

LICENCES = $(PREFIX)/share/licenses/unisono
FILL = -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@LIBDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))|g' \
    -e 's|@VERSION@|$(VERSION)|g' -e 's|@LIBS_PRIVATE@|$(LIBS_PRIVATE)|g'

clean:
	rm -rf $(BUILD)
	$(CARGO) clean

libs-private:
	@echo $(LIBS_PRIVATE)

version:
	@echo $(VERSION)
