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
AUTH ?= off
ROWS ?=
TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
STATIC := target/$(TARGET)/release/twinshard

.PHONY: all
all: image ## The production system on Docker (NAME=twinshard PORT=5000 BIND=127.0.0.1 AUTH=off ROWS=mysql|redb); again, to bring up what is down
	@if [ "$(ROWS)" != redb ] && ! $(MAKE) --no-print-directory db-image; then \
		echo "No image of databases can be built here (Debian's packages are needed)"; [ "$(ROWS)" != mysql ]; fi
	$(STATIC) deploy --name $(NAME) --port $(PORT) --bind $(BIND) --auth $(AUTH) $(if $(ROWS),--rows $(ROWS))

.PHONY: engine
engine: # One line where there is no Docker, before anything is built
	@docker version >/dev/null 2>&1 || { echo "Docker does not answer: is it installed, does it run, and may you use it? (docker ps shows it)" >&2; exit 1; }

.PHONY: image
image: engine static ## The image of a deployment: the statically linked program alone
	rm -rf target/image && mkdir -p target/image/rootfs/data target/image/rootfs/secret
	touch target/image/rootfs/data/.keep target/image/rootfs/secret/.keep
	cp $(STATIC) target/image/twinshard && strip target/image/twinshard
	docker build -q -t $(shell echo $(NAME) | tr A-Z a-z)/twinshard:latest --label twinshard.deployment=$(NAME) -f prod/docker/Dockerfile target/image

.PHONY: db-image
db-image: ## The image of the databases, out of Debian's packages (NAME)
	prod/docker/db-image.sh $(NAME)

.PHONY: static
static: # The program, linked to nothing, so that it runs in an image that holds nothing else
	$(CARGO) build --release --locked -p twinshard --target $(TARGET) \
		--config 'target.$(TARGET).rustflags=["--cfg", "tokio_unstable", "-C", "target-feature=+crt-static"]'

.PHONY: down
down: static ## Removes the containers and the network of a deployment, and keeps its data (NAME)
	$(STATIC) undeploy --name $(NAME) --keep-data

.PHONY: clean
clean: static ## Removes everything of a deployment: containers, network, volumes, image (NAME); asks first at a terminal
	$(STATIC) undeploy --name $(NAME)

.PHONY: restart
restart: ## Stops a deployment and brings it up again (NAME)
	$(MAKE) down
	$(MAKE) all

.PHONY: logs
logs: ## What the balancer of a deployment says (NAME)
	docker logs -f $$(docker ps -aq --filter label=twinshard.deployment=$(NAME) --filter label=twinshard.role=balancer)

.PHONY: status
status: static ## What a deployment is doing (PORT)
	$(STATIC) status --url http://127.0.0.1:$(PORT)

.PHONY: test
test: ## Every test: machines, storage, simulated scenarios, processes (minutes)
	$(CARGO) build --release --locked -p twinshard
	@if docker version >/dev/null 2>&1; then $(MAKE) static; else echo "No Docker engine answers: its tests are skipped"; fi
	$(CARGO) test --workspace --locked

.PHONY: check
check: ## Format, lints, what the core depends on, core tests (seconds when warm)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test -p twinshard-core --locked --quiet

.PHONY: db
db: ## A MariaDB for the tests of rows in a database, unpacked under target/db (needs Debian's packages)
	tests/db/get.sh mariadb

.PHONY: test-mysql
test-mysql: ## The tests of rows in a database on a MySQL of Debian's sid instead
	tests/db/get.sh mysql
	TWINSHARD_MARIADBD=$(CURDIR)/target/db/mysql/run $(CARGO) test -p twinshard --locked rows::mysql

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
