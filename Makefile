# Everything a fresh Debian 12 needs: `make demo` and `make test` install what is missing (as root, or with sudo), build,
# and run. CMake does the building (CMakePresets.json); this file only strings the steps together.
SHELL := /bin/bash
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BUILD := build/release
MESHWRIGHT := $(BUILD)/meshwright
DEMO := build/demo

PACKAGES := g++ cmake ninja-build pkg-config openmpi-bin libopenmpi-dev libdnnl-dev libeigen3-dev libboost-dev \
  libboost-graph-dev nlohmann-json3-dev libsqlite3-dev libcli11-dev libfmt-dev libspdlog-dev libsentencepiece-dev \
  zlib1g-dev libgtest-dev libgmock-dev librapidcheck-dev libbenchmark-dev sword-text-web

# make install PREFIX=$HOME/.local; DESTDIR is put before it, for packagers.
PREFIX ?= /usr/local

.PHONY: all setup build test sanitize fuzz demo bench bench-bf16 install clean
all: build

# Installs only what is not there, so that a machine that has everything needs no network and no root.
setup:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing:" $$missing; \
	  $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

build: setup
	@cmake --preset release >/dev/null
	cmake --build --preset release

test: build
	ctest --test-dir $(BUILD) --output-on-failure -j 2

# The same tests with AddressSanitizer and UndefinedBehaviorSanitizer, but for those that need many ranks and long steps.
sanitize: setup
	@cmake --preset dev >/dev/null
	cmake --build --preset dev
	ctest --preset dev -j 2

# Searches for input that breaks a promise of tests/fuzz/targets.h, from every way in, two at a time. What is found lies in
# build/fuzz/finds: put it into tests/fuzz/corpus/ with the change that mends it.
FUZZ_SECONDS := 60
FUZZED := config system plan npy rows
fuzz: PACKAGES += clang-16 libclang-rt-16-dev
fuzz: setup
	@cmake --preset fuzz >/dev/null
	cmake --build --preset fuzz
	@$(MAKE) --no-print-directory -k -j 2 -O $(FUZZED:%=fuzz-%)

fuzz-%: FUZZ_BYTES = 4096
fuzz-config fuzz-system: FUZZ_BYTES = 16384
fuzz-%:
	@mkdir -p build/fuzz/finds build/fuzz/corpus/$*
	@echo "== $*: $(FUZZ_SECONDS) s"
	@build/fuzz/tests/fuzz/fuzz_$* -max_total_time=$(FUZZ_SECONDS) -max_len=$(FUZZ_BYTES) -timeout=20 -rss_limit_mb=2048 \
	  -dict=tests/fuzz/dictionaries/$*.dict -artifact_prefix=build/fuzz/finds/$*- -verbosity=0 -print_final_stats=1 \
	  build/fuzz/corpus/$* tests/fuzz/corpus/$*

# The main job: search the best mesh of the published configuration, rehearse the winner on as many ranks as it has, then
# train a small model of the same kind by the best plan for this machine.
demo: build
	@mkdir -p $(DEMO)
	@echo; echo "== 1. Search: the published JAXformer configuration on 32 TPU v4 chips"
	$(MESHWRIGHT) search configs/jaxformer-moe1b.json --system v4:2x4x4 --db $(DEMO)/meshwright.db
	@echo; echo "== 2. Rehearse: the winning plan's program, on as many ranks as it has, at reduced size"
	$(MESHWRIGHT) run configs/jaxformer-moe1b.json --system v4:2x4x4 --plan best --rehearse --db $(DEMO)/meshwright.db
	@echo; echo "== 3. Train: a small model of the same kind on this machine, by the best plan for it"
	$(MESHWRIGHT) search configs/moe-small.json --system local --db $(DEMO)/meshwright.db
	$(MESHWRIGHT) run configs/moe-small.json --system local --plan best --db $(DEMO)/meshwright.db

bench: build
	@for b in engine search training; do echo "== $$b"; $(BUILD)/bench/bench_$$b || exit 1; done

# 300 steps in f32 and in bf16, some minutes.
bench-bf16: build
	@$(BUILD)/bench/bench_bf16

install: build
	@DESTDIR="$(DESTDIR)" cmake --install $(BUILD) --prefix "$(PREFIX)" >/dev/null
	@echo "installed $(DESTDIR)$(PREFIX)/bin/meshwright"

clean:
	rm -rf build
