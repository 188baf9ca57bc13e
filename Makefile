# Godwit: make demo and make test set up what they need; the rest is listed by make help.
SHELL := /bin/bash
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
LINT    := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GENTOOL := go tool -modfile=tools/gen/go.mod
FUZZRUNS ?= 20000
FUZZBUILD ?= -fuzz=.
RUNS ?= 40
BENCHFLAGS ?=
DEMOFLAGS ?=
SEEDS ?= 2000
FIRST ?= 1

# Every step compiles with the same flags, so that each finds in the build cache what another has compiled; only the race detector wants its own.
export CGO_ENABLED = 0
export GOFLAGS := $(GOFLAGS) -trimpath

.PHONY: sim-record sim-calm explore defects help setup build man check test demo imagetest bench sim split matrix packets packets-bridge fuzz generate clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## install and fetch what is missing: QEMU, the guest's kernel, an unprivileged user
	@scripts/setup

build: ## build bin/godwit and bin/godwit-demo
	@go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

man: build ## manual pages and shell completion in bin/share
	@bin/godwit man bin/share/man/man1
	@mkdir -p bin/share/completion && for s in bash zsh fish; do bin/godwit completion $$s > bin/share/completion/godwit.$$s; done

demo: setup build ## three hosts on this machine, a Linux guest that moves between them, nothing lost
	@bin/godwit-demo $(DEMOFLAGS)

# The gate and the runs of real clusters come first: they take the longest, and wait for much of that. Vetting is make check's.
test: setup build ## all tests, with real QEMU, under the race detector
	@CGO_ENABLED=1 go test -race -vet=off -timeout 18m ./test/gate ./test/split ./...

imagetest: setup ## a real cloud image, built here with mmdebstrap, made a VM and entered by SSH; minutes
	@image=$${GODWIT_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/godwit}/cloud/debian-12.raw; \
	  if [ ! -e "$$image" ]; then mkdir -p "$${image%/*}" && test/image/make "$$image"; fi && \
	  go test -count=1 -v -timeout 45m ./test/image -image "$$image"

check: ## format, lint with vet, generated code up to date
	@out=$$($(GENTOOL) gofumpt -l $$(git ls-files '*.go' | grep -v -e '\.pb\.go$$' -e '\.connect\.go$$')); \
	  if [ -n "$$out" ]; then echo "not formatted, run gofumpt -w on:"; echo "$$out"; exit 1; fi
	@$(LINT) run
	@go mod tidy -diff
	@$(MAKE) --no-print-directory generate
	@git diff --exit-code -- api || { echo "generated code is out of date: run make generate and commit it"; exit 1; }

generate: ## write the Go code of the API definition
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && GOBIN=$$tools go install -C tools/gen tool && \
	  PATH=$$tools:$$PATH buf lint && PATH=$$tools:$$PATH buf generate

bench: setup build ## migrations by Godwit and by plain QEMU in turn; results in bench/results
	@go run ./bench $(BENCHFLAGS)

sim: ## whole clusters in virtual time: make sim SEEDS=2000, or make sim SEED=17 for the story of one
	@if [ -n "$(SEED)" ]; then go run ./test/sim -seed $(SEED); else go run ./test/sim -seeds $(SEEDS) -first $(FIRST); fi

sim-record: ## the kept run of 50,000 seeds, anew: test/results/sim.json
	@go run ./test/sim -seeds 50000 -record test/results/sim.json

sim-calm: ## 72 hours of a slow store and busy processors: nothing may be paused or fenced
	@go run ./test/sim -calm 72h

explore: ## every interleaving of one hand-over with faults, further than the tests walk; minutes
	@go test -count=1 -v -timeout 30m -run 'Explorer|NoInterleaving' ./internal/policy/handover -whole

# What the explorer of one hand-over must find, and not the simulator.
EXPLORED := release_early resume_after_release returned_ignored heir_late old_generation authority_unchecked takeover_fenced second_switchover pull_source_killed

defects: ## seed each mistake of fault/defect in turn: the explorer, or the simulator within 5,000 seeds, must find it
	@set -e -o pipefail; for d in $(or $(DEFECTS),$(filter-out defect defect_test,$(patsubst internal/fault/defect/%.go,%,$(wildcard internal/fault/defect/*.go)))); do \
	  printf '%-24s ' $$d; case ' $(EXPLORED) ' in \
	  *" $$d "*) out=$$(go test -v -count=1 -tags defect_$$d -run '^TestNoInterleaving' ./internal/policy/handover) || { echo "$$out"; exit 1; }; \
	    grep '^explorer: found' <<< "$$out";; \
	  *) go run -tags defect_$$d ./test/sim -seeds 5000 -find;; esac; done

split: setup ## RUNS runs of real clusters with faults, judged by a disk that sees every write; kept in test/results/split.json
	@mkdir -p test/results
	@go test -count=1 -timeout 3h -parallel $(or $(AT),4) -v -run TestNoTwoCopies ./test/split -runs $(RUNS) -seed $(or $(SEED),0) -keep $(CURDIR)/test/results/split.json

# The last line is the matrix's own, so the test binary is run without go test. A run of some of the cells (CELLS=30) is kept with KEEP=1 only.
matrix: setup ## each fault in each phase of real migrations, held against what the hand-over's machines allow; kept in test/results/matrix.json
	@mkdir -p test/results bin
	@go test -c -o bin/matrix.test ./test/matrix
	@cd test/matrix && ../../bin/matrix.test -test.run '^TestMatrix$$' -test.v -test.timeout 2h -test.parallel $(or $(AT),2) -cells $(or $(CELLS),0) -seed $(or $(SEED),0) \
	  -at $(or $(AT),2) $(if $(CELLS),$(if $(KEEP),-keep $(CURDIR)/test/results/matrix.json),-keep $(CURDIR)/test/results/matrix.json)

PACKETS = go test -count=1 -timeout 30m -v -run TestNoPacketIsLost ./test/packets -migrations $(or $(MIGRATIONS),20) -aborts $(or $(ABORTS),10) -rate $(or $(RATE),10000)

packets: setup ## 20 migrations and 10 aborted ones, 10,000 packets a second each way, none lost; kept in test/results/packets.json
	@mkdir -p test/results
	@$(PACKETS) -keep $(CURDIR)/test/results/packets.json

packets-bridge: setup ## the same on the bridge driver, measured only; kept in test/results/packets-bridge.json
	@mkdir -p test/results
	@$(PACKETS) -bridge -keep $(CURDIR)/test/results/packets-bridge.json

# Counted, not timed: until Go 1.27 the end of a -fuzztime in seconds can be reported as a failure (go.dev/issue/75804). FUZZBUILD= leaves out the count of
# the code that an input reaches, which guides the search: it wants everything that the tests import compiled once more.
fuzz: ## each fuzz test with FUZZRUNS inputs
	@set -e; tests=$$(mktemp -d) && trap 'rm -rf "$$tests"' EXIT && cache=$$(go env GOCACHE)/fuzz; \
	  for p in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do \
	  go test -c $(FUZZBUILD) -o "$$tests/fuzz.test" ./$$p; \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$p/*_test.go | sed 's/^func //'); do \
	    echo "$$p $$f"; (cd $$p && "$$tests/fuzz.test" -test.run '^$$' -test.fuzz "^$$f$$" -test.fuzztime $(FUZZRUNS)x -test.fuzzminimizetime 10x \
	      -test.fuzzcachedir "$$cache/$$(go list .)"); done; done

clean: ## remove what was built
	@rm -rf bin
