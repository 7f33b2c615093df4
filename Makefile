# SSI-HV: build, test, lab. `make help` lists the targets; ARCHITECTURE.md says how it all fits.
# The first call fetches the pinned tools (tools/setup.sh); a later one needs no network. All that
# is made stays in the checkout: build, dist, .tools, node_modules, .zig-cache, .lab, lab.out.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := all

zig_version := $(shell sed -n 's/^ziglang==\([0-9.]*\) .*/\1/p' tools/zig-requirements.txt)
BUN := .tools/bun/node_modules/.bin/bun
ZIG := .tools/zig-$(zig_version)/ziglang/zig
export ZIG_GLOBAL_CACHE_DIR := $(CURDIR)/.zig-cache/global
export ZIG_LOCAL_CACHE_DIR := $(CURDIR)/.zig-cache

# Releases keep Zig's safety checks: a broken invariant must stop the engine, not corrupt a guest.
# glibc 2.28 is what Debian 10 and RHEL 8 have. Symbols stay in, for gdb and perf (about 2 %).
zig_flags := -dynamic -target x86_64-linux-gnu.2.28 -lc -O safe --name ssihv
# Without the two no-autoload flags the binary would run what a bunfig.toml or .env in the current
# folder says. --bytecode needs --format=esm for top-level await.
bun_flags := --compile --minify --sourcemap=linked --bytecode --format=esm \
	--no-compile-autoload-bunfig --no-compile-autoload-dotenv

setup_inputs := tools/setup.sh tools/bun/package-lock.json tools/zig-requirements.txt \
	tools/fuzz-requirements.txt package.json bun.lock
zig_sources := $(shell find zig -name '*.zig' ! -name '.*' ! -name 'test*' ! -name 'gen_*')
ts_sources := $(shell find $(wildcard src acpi coordinator) -type f ! -name '*.test.ts')

##> all        build dist/ssihv, one file (also what plain `make` does)
.PHONY: all
all: dist/ssihv

##> test       everything: check, unit, end-to-end and lab tests (one of them: SUITE=lab)
.PHONY: test
SUITE ?= all
test: .tools/setup-test.stamp dist/ssihv
	@$(BUN) tools/test.ts --suite '$(SUITE)'

##> check      the fast part: types, lint, layers, sizes, generated files, unit tests
.PHONY: check
check: .tools/setup-build.stamp build/libssihv.so build/dashboard.js.txt
	@$(BUN) tools/test.ts --suite check

##> lab        run CMD='...' in HOSTS=n emulated hosts (more: ARGS='...', see ARGS=--help)
.PHONY: lab
HOSTS ?= 1
lab: .tools/setup-build.stamp
	$(BUN) test/lab/main.ts --hosts $(HOSTS) $(if $(CMD),--cmd '$(subst ','\'',$(value CMD))') $(ARGS)

##> demo       one Linux over two nodes: on this host, or in an emulated one (ARGS='--rung 2')
.PHONY: demo
demo: .tools/setup-test.stamp dist/ssihv
	$(BUN) tools/demo.ts $(ARGS)

##> sim        random schedules of a simulated cluster: SECONDS=60 SEED=n NODES=n, REPLAY='...'
.PHONY: sim
SECONDS ?= 60
sim: .tools/setup-build.stamp
	$(ZIG) run -O safe zig/simulate.zig -lc -- $(if $(REPLAY),replay $(REPLAY),\
		--seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(NODES),--nodes $(NODES)))

##> soak       litmus shapes 10,000,000 times each on KVM, ten boots over two nodes (hours)
.PHONY: soak
soak: .tools/setup-test.stamp dist/ssihv
	@mkdir -p lab.out
	@echo 'litmus shapes on KVM: lab.out/kvm-memory.log'
	@SSIHV_ITERATIONS=10000000 $(BUN) tools/test.ts --suite 'kvm memory' --no-limit \
		>lab.out/kvm-memory.log 2>&1 || { tail -n 30 lab.out/kvm-memory.log; exit 1; }
	@tail -n 1 lab.out/kvm-memory.log
	SSIHV_ITERATIONS=100000 $(BUN) tools/test.ts --suite memory --no-limit
	SSIHV_SOAK=1 $(BUN) test --timeout 900000 ./test/e2e/join.test.ts
	SSIHV_SPAN_BOOTS=10 $(BUN) test --timeout 3700000 ./test/lab/span.test.ts \
		./test/lab/stall.test.ts ./test/lab/memory-nodes.test.ts ./test/lab/balloon.test.ts \
		./test/lab/cluster.test.ts

##> bench      what a fault and a lane cost here, as ratios to a bare socket
.PHONY: bench
bench: .tools/setup-build.stamp
	$(ZIG) run -O safe zig/bench_lane.zig -lc
	$(ZIG) run -O safe zig/bench_fault.zig -lc
	$(ZIG) run -O safe zig/bench_fault.zig -lc -- 200 200

##> format     write the formatting that `make check` asks for
.PHONY: format
format: .tools/setup-build.stamp
	$(BUN) node_modules/@biomejs/biome/bin/biome check --write
	$(ZIG) fmt zig

##> gen        refresh src/native/abi.gen.ts, docs/API.md and docs/METRICS.md
.PHONY: gen
gen: build/abi.gen.ts
	@mkdir -p build
	@$(BUN) tools/api-doc.ts > build/API.md
	@$(BUN) tools/metrics-doc.ts > build/METRICS.md
	@for doc in API.md METRICS.md; do cmp -s build/$$doc docs/$$doc || \
		{ echo "docs/$$doc: refreshed"; cp build/$$doc docs/; }; done

##> clean      remove what was built, end and remove what labs left behind
.PHONY: clean
clean:
	@if [ -x $(BUN) ]; then $(BUN) test/lab/main.ts --reap --all; fi
	rm -rf build dist .zig-cache lab.out

##> distclean  clean, and remove fetched tools, packages and the lab's cache
.PHONY: distclean
distclean: clean
	rm -rf .tools node_modules .lab

##> help       this list
.PHONY: help
help:
	@echo 'make TARGET; the first call fetches about 170 MB of pinned tools into the checkout.'
	@sed -n 's/^##> /  /p' Makefile

.tools/setup-%.stamp: $(setup_inputs) tools/packages.txt
	@sh tools/setup.sh $*
	@touch $@

# Zig does not cache a library made with -femit-bin: make's time stamps do.
build/libssihv.so: $(zig_sources) tools/zig-requirements.txt | .tools/setup-build.stamp
	@mkdir -p build
	$(ZIG) build-lib $(zig_flags) zig/exports.zig -femit-bin=$@

# The tests on KVM as one static file, to be run on a machine with nested paging.
build/tests-kvm: $(shell find zig -name '*.zig') | .tools/setup-build.stamp
	@mkdir -p build
	$(ZIG) test -O safe -target x86_64-linux-musl zig/tests_kvm.zig -lc \
		--test-runner zig/test_runner.zig --test-filter engine.kvm_ --test-filter engine.test_ \
		--test-no-exec -femit-bin=$@

# The generator looks at signatures and layouts only; the bindings change when those did.
gen_inputs := zig/abi.zig zig/abi_hash.zig zig/exports.zig zig/gen_abi.zig
build/abi.gen.ts: $(gen_inputs) | .tools/setup-build.stamp
	@mkdir -p build
	$(ZIG) run zig/gen_abi.zig -lc > $@
	@cmp -s $@ src/native/abi.gen.ts || { echo 'src/native/abi.gen.ts: refreshed'; \
		cp $@ src/native/abi.gen.ts; }

# The commit as of now, touched only when it is another one.
.PHONY: FORCE
build/commit: FORCE
	@mkdir -p build
	@sh tools/commit.sh > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

# The dashboard's script, for browsers. As text: that is how the executable has it.
build/dashboard.js.txt: package.json bun.lock $(ts_sources) | .tools/setup-build.stamp
	@mkdir -p build
	$(BUN) build --target browser --minify coordinator/dashboard/browser/main.ts --outfile $@

dist/ssihv: build/libssihv.so build/abi.gen.ts build/dashboard.js.txt build/commit \
	package.json bun.lock $(ts_sources)
	@mkdir -p dist
	$(BUN) build $(bun_flags) --define SSIHV_COMMIT="\"$$(cat build/commit)\"" \
		src/main.ts --outfile $@
