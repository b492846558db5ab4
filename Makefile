# Twinshard. `make` alone lists what there is.
.DEFAULT_GOAL := help
CARGO ?= cargo
DIR ?= data
PORT ?= 5000

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## A cluster on this machine, not yet initialised (PORT=5000 DIR=data); Ctrl-C stops it
	$(CARGO) build --release --locked -p twinshard
	exec target/release/twinshard up --port $(PORT) --dir $(DIR)

.PHONY: demo
demo: ## The default cluster, a load, a kill -9 in the middle, and what came of it
	$(CARGO) build --release --locked -p twinshard
	exec target/release/twinshard demo

.PHONY: test
test: ## Every test: machines, storage, simulated scenarios, processes (minutes)
	$(CARGO) build --release --locked -p twinshard
	$(CARGO) test --workspace --locked

.PHONY: check
check: ## Format, lints, what the core depends on, core tests (seconds when warm)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test -p twinshard-core --locked --quiet

.PHONY: explore
explore: ## Burn seeds in the explorer (SEEDS=100000 START=0)
	$(CARGO) build --release --locked -p twinshard-sim --no-default-features
	exec target/release/twinshard-sim explore --seeds $(or $(SEEDS),100000) --start $(or $(START),0)

.PHONY: explore-turmoil
explore-turmoil: ## Burn seeds in the turmoil world: the production driver over a simulated network (SEEDS=200 START=0)
	$(CARGO) build --release --locked -p twinshard-sim
	exec target/release/twinshard-sim explore --engine turmoil --seeds $(or $(SEEDS),200) --start $(or $(START),0) --jobs 2

.PHONY: planted
planted: ## Search every planted bug until it shows (START=0); fails if one does not within its budget
	$(CARGO) build --release --locked -p twinshard-sim --no-default-features
	exec target/release/twinshard-sim explore --planted all --start $(or $(START),0) --jobs 2
