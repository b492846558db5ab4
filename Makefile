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

NAME ?= twinshard
BIND ?= 127.0.0.1
AUTH ?=
ROWS ?=
BALANCERS ?= 1
SHARD_MANAGER ?=
TLS ?=
CA ?=
TOKEN_FILE ?=
FLAGS ?=
CHAOS ?=
TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
STATIC := target/$(TARGET)/release/twinshard

.PHONY: all
all: named image ## The production system on Docker (NAME=twinshard PORT=5000 BIND=127.0.0.1 AUTH=off|required ROWS=mysql|redb DB_IMAGE=mysql:8.4 BALANCERS=1 SHARD_MANAGER=1 TLS=1 CHAOS=1 FLAGS=more of `twinshard deploy`); again, to bring up what is down
	@if [ "$(ROWS)" != redb ] && ! $(MAKE) --no-print-directory db-image; then \
		echo "No image of databases can be built here: it takes a registry, or Debian's packages"; \
		[ "$(ROWS)" != mysql ] && [ -z "$(DB_IMAGE)" ]; fi
	$(STATIC) deploy --name $(NAME) --port $(PORT) --bind $(BIND) --balancers $(BALANCERS) $(if $(AUTH),--auth $(AUTH)) \
		$(if $(ROWS),--rows $(ROWS)) $(if $(filter-out 0,$(SHARD_MANAGER)),--shard-manager) $(if $(TLS),$(if $(filter-out 0,$(TLS)),--tls,--plain)) $(if $(filter-out 0,$(CHAOS)),--chaos) $(FLAGS)

.PHONY: named
named: # A name that images, networks and volumes can have, before anything is built under it
	@printf %s '$(NAME)' | grep -Eqx '[a-z0-9]+([._-][a-z0-9]+)*' || { echo "NAME: small letters and digits, with single '.', '_' and '-' between them" >&2; exit 1; }

.PHONY: engine
engine: # One line where there is no Docker, before anything is built
	@docker version >/dev/null 2>&1 || { echo "Docker does not answer: is it installed, does it run, and may you use it? (docker ps shows it)" >&2; exit 1; }

.PHONY: image
image: named engine static ## The image of a deployment: the statically linked program alone
	rm -rf target/image && mkdir -p target/image/rootfs/data target/image/rootfs/secret
	touch target/image/rootfs/data/.keep target/image/rootfs/secret/.keep
	cp $(STATIC) target/image/twinshard && strip target/image/twinshard
	docker build -q -t $(NAME)/twinshard:latest --label twinshard.deployment=$(NAME) -f prod/docker/Dockerfile target/image

.PHONY: db-image
db-image: named engine ## The image of the databases (NAME DB_IMAGE=mysql:8.4): on that of a registry, or else out of Debian's packages
	@DB_IMAGE="$(DB_IMAGE)" prod/docker/db-image.sh $(NAME)

.PHONY: static
static: # The program, linked to nothing, so that it runs in an image that holds nothing else
	$(CARGO) build --release --locked -p twinshard --target $(TARGET) \
		--config 'target.$(TARGET).rustflags=["--cfg", "tokio_unstable", "-C", "target-feature=+crt-static"]'

.PHONY: down
down: engine static ## Removes the containers and the network of a deployment, and keeps its data (NAME)
	$(STATIC) undeploy --name $(NAME) --keep-data

.PHONY: clean
clean: engine static ## Removes everything of a deployment: containers, network, volumes, image (NAME); asks first at a terminal
	$(STATIC) undeploy --name $(NAME)

.PHONY: restart
restart: engine static ## Stops a deployment and brings it up again as it was (NAME)
	$(STATIC) restart --name $(NAME)

.PHONY: recover
recover: engine static ## Makes a lost register of a stopped deployment anew from what its servers remember (NAME)
	$(STATIC) recover --deployment $(NAME)

.PHONY: logs
logs: engine ## What the balancers of a deployment say (NAME); Ctrl-C ends it
	@for name in $$(docker ps -a --filter label=twinshard.deployment=$(NAME) --filter label=twinshard.members --format '{{.Names}}'); do \
		docker logs -f --tail 200 $$name 2>&1 | sed -u "s/^/$$name: /" & done; wait

.PHONY: status
status: static ## What a deployment is doing (PORT; of one with TLS=1: CA=ca.pem; of one that asks for tokens: TOKEN_FILE=data.token)
	$(STATIC) status --url http$(if $(CA),s)://127.0.0.1:$(PORT) $(if $(CA),--ca $(CA)) $(if $(TOKEN_FILE),--token-file $(TOKEN_FILE))

.PHONY: test
test: ## Every test: machines, storage, simulated scenarios, processes (minutes)
	@tests/db/get.sh mariadb >/dev/null || echo "No MariaDB can be had here: its tests are skipped"
	@if docker version >/dev/null 2>&1; then $(MAKE) static && export TWINSHARD_PROGRAM=$(CURDIR)/$(STATIC); \
		else echo "No Docker engine answers: its tests are skipped"; $(CARGO) build --release --locked -p twinshard; fi && \
		$(CARGO) test --workspace --locked

# What can be played on real machines (`twinshard chaos --help`).
CHAOS_UP = steady-state primary-crash balancer-crash paused-primary lost-disk power-loss add-under-load remove-under-load move-under-load
CHAOS_DOCKER = primary-crash balancer-crash paused-primary lost-disk power-loss isolated-primary register-down database-down \
	remove-under-load move-under-load
DEEP = twinshard-deep

.PHONY: test-deep
test-deep: ## Scenario files with real faults: against processes, then containers where there is Docker (minutes)
	$(CARGO) build --release --locked -p twinshard
	@set -e; for name in $(CHAOS_UP); do echo "== $$name, processes"; TWINSHARD_LOG=error target/release/twinshard chaos scenarios/$$name.toml --up; done
	@if ! docker version >/dev/null 2>&1; then echo "No Docker engine answers: scenarios are not played on containers"; exit 0; fi; set -e; \
		trap 'exit 1' INT TERM; trap '$(MAKE) clean NAME=$(DEEP) </dev/null' EXIT; \
		$(MAKE) all NAME=$(DEEP) PORT=5790 BALANCERS=2 CHAOS=1; \
		for name in $(CHAOS_DOCKER); do echo "== $$name, containers"; $(STATIC) chaos scenarios/$$name.toml --deployment $(DEEP); done; \
		trap - EXIT; $(MAKE) clean NAME=$(DEEP) </dev/null

.PHONY: check
check: ## Format, lints, what the core depends on, core tests (seconds when warm)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test -p twinshard-core --locked --quiet

.PHONY: db
db: ## A MariaDB for the tests of rows in a database, unpacked under target/db (needs Debian's packages)
	tests/db/get.sh mariadb

.PHONY: test-mysql
test-mysql: ## The tests of rows and register in a database on a MySQL of Debian's sid instead
	tests/db/get.sh mysql
	TWINSHARD_MARIADBD=$(CURDIR)/target/db/mysql/run $(CARGO) test -p twinshard --locked mysql

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
