# Everything that a person or CI does here. `make` alone lists the targets.
#
# Whatever is downloaded or built once goes to target/cache, or to TORCHMODEL_CACHE, a folder that outlives `git clean`.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export CARGO_TERM_PROGRESS_WHEN ?= never
CARGO := cargo
IMAGE := target/image
RELEASE := target/release
# A workspace of their own.
FUZZ_TARGETS := runtime/fuzz/targets/Cargo.toml

# say TEXT: a line that stands out, with the time since `make` began.
START := $(shell date +%s)
say = printf '\n=== [%d:%02d] %s\n' $$((($$(date +%s) - $(START)) / 60)) $$((($$(date +%s) - $(START)) % 60)) "$(1)"

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- What a newcomer runs --------------------------------------------------------------------------------------------

.PHONY: demo
demo: runtime demo-files ## Serve a real model on this machine and ask it about real sound
	@examples/demo.sh

.PHONY: cluster-demo
cluster-demo: image-files demo-files ## The same on a real Kubernetes cluster, which it starts and removes again (root)
	@examples/cluster-demo.sh

.PHONY: test
test: lint test-code test-cluster ## Everything that CI checks: lints, unit, integration and end-to-end tests (root)
	@$(call say,all of make test passed)

# --- Building --------------------------------------------------------------------------------------------------------

.PHONY: libtorch
libtorch: ## Fetch libtorch (pinned and checksummed wheels) into target/libtorch
	@runtime/torch-shim/libtorch.sh cpu

.PHONY: runtime
runtime: libtorch ## Build the runtime for release
	@$(call say,building the runtime (the first time about 8 minutes on two cores))
	@$(CARGO) build --release --locked -p torchmodel-runtime

.PHONY: image-files
image-files: libtorch ## Build what the images hold into target/image
	@$(call say,building operator and runtime for release (the first time about 10 minutes on two cores))
	@$(CARGO) build --release --locked -p torchmodel-operator -p torchmodel-runtime
	@rm -rf $(IMAGE)/bin $(IMAGE)/lib
	@mkdir -p $(IMAGE)/bin $(IMAGE)/lib
	@install -m 755 $(RELEASE)/torchmodel-operator $(RELEASE)/torchmodel-runtime $(IMAGE)/bin/
	@install -m 644 target/libtorch/lib/* $(IMAGE)/lib/

.PHONY: image-files-cuda
image-files-cuda: image-files ## The same with the CUDA libraries
	@runtime/torch-shim/libtorch.sh cuda
	@rm -rf $(IMAGE)/lib-cuda
	@mkdir -p $(IMAGE)/lib-cuda
	@install -m 644 target/libtorch-cuda/lib/* $(IMAGE)/lib-cuda/

.PHONY: images
images: image-files ## Build the images of operator and runtime; load them into the local cluster if it runs (root)
	@tests/cluster/images.sh operator runtime

.PHONY: image-cuda
image-cuda: image-files-cuda ## Build the image of the runtime with CUDA (root)
	@tests/cluster/images.sh runtime-cuda

.PHONY: demo-files
demo-files: ## Fetch the demo's model, sounds and client
	@examples/fetch.sh

.PHONY: generate
generate: libtorch ## Write the generated files: CRD, chart copy, lists of flags and metrics
	@$(CARGO) run --quiet -p torchmodel-crds --features kubernetes --bin crd -- --write
	@TORCHMODEL_GENERATE=1 $(CARGO) test --quiet -p torchmodel-crds -p torchmodel-operator -p torchmodel-runtime generated

# --- Measuring -------------------------------------------------------------------------------------------------------

.PHONY: bench-wire
bench-wire: libtorch ## Compare what requests cost this runtime and the slice's (ARGUMENTS="--quick" for a short version)
	@runtime/bench/wire.sh $(ARGUMENTS)

# --- The local cluster -----------------------------------------------------------------------------------------------

.PHONY: cluster-programs
cluster-programs: ## Build Kubernetes, containerd, helm and the S3 server (the first time 13 minutes)
	@tests/cluster/packages.sh
	@tests/cluster/programs.sh

.PHONY: cluster-up
cluster-up: ## Start a real Kubernetes cluster of two nodes, and an S3 server, as one process (root)
	@tests/cluster/up.sh

.PHONY: cluster-down
cluster-down: ## End it, leaving nothing behind (root)
	@tests/cluster/down.sh
	@tests/cluster/verify-clean.sh

# --- Testing ---------------------------------------------------------------------------------------------------------

.PHONY: format
format: ## Write Rust and shell as `make lint` wants them
	@$(CARGO) fmt --all
	@$(CARGO) fmt --manifest-path $(FUZZ_TARGETS)
	@tests/lint.sh format

.PHONY: lint
lint: libtorch ## Format, lints (clippy pedantic, no warnings), scripts, licences
	@$(call say,format)
	@$(CARGO) fmt --all --check
	@$(CARGO) fmt --check --manifest-path $(FUZZ_TARGETS)
	@$(call say,scripts and dependencies)
	@tests/lint.sh
	@$(call say,lints)
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@$(CARGO) clippy --locked -p torchmodel-core --features shuttle --test orders -- -D warnings
	@$(CARGO) clippy --locked --manifest-path $(FUZZ_TARGETS) --target-dir target -- -D warnings
	@$(call say,documentation)
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

.PHONY: test-code
test-code: libtorch cluster-programs demo-files ## Unit and integration tests, with a real API server and a real S3 server
	@$(call say,unit and integration tests)
	@$(CARGO) test --locked --workspace
	@$(call say,the scheduler in many orders of its threads)
	@$(CARGO) test --locked -p torchmodel-core --features shuttle --test orders

.PHONY: test-cycles
test-cycles: libtorch ## Load, ask and unload a model 1,000 times, and compare the growth of memory with libtorch's own (5 minutes)
	@$(call say,memory over 1,000 lives of a version)
	@TORCHMODEL_CYCLES=1000 $(CARGO) test --locked -p torchmodel-runtime --test cycles -- --nocapture

.PHONY: fuzz
fuzz: libtorch ## Give every decoder made-up inputs (ARGUMENTS="rest_json --runs=10000000" for one target and more of them)
	@$(call say,fuzz targets (the first time some minutes to build))
	@runtime/fuzz/run.sh $(ARGUMENTS)

.PHONY: test-clients
test-clients: libtorch ## Ask the runtime with stock clients: perf_analyzer and tritonclient (root)
	@$(call say,stock clients)
	@$(CARGO) build --locked -p torchmodel-runtime
	@tests/clients/run.sh

.PHONY: test-cluster
test-cluster: demo-files ## End-to-end tests on the local cluster, or on the one that KUBECONFIG names
	@$(call say,end-to-end tests)
	@tests/end-to-end.sh

# What was built, of all that is in target; tmp is cargo's, for tests.
BUILT := debug release doc tmp image images

.PHONY: clean
clean: ## Remove what was built, but not what was downloaded
	@! tests/cluster/is-up.sh || { echo "error: the local cluster is up; run \`make cluster-down\` first" >&2; exit 1; }
	@rm -rf $(BUILT:%=target/%)
