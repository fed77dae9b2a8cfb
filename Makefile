# Everything runs in .venv, which is made on first use. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8017
BENCH_FLAGS ?= --trades 1000000 --trades 10000000 --trades 50000000
BENCH_LOANS_FLAGS ?= --loans 200000
NEMESIS_FLAGS ?= --trials 20
SIGNALS ?= 20
# Of each property, of which the slow ones are tried with half as many: 20,000 in all.
FUZZ_CASES ?= 1500
# Of each operation, and ten times as many ways through several of them.
API_CASES ?= 100
PAIRS ?= all
# The suite's processes use one core each.
TEST_PROCESSES ?= 2
# The slow ones wait for processes, leases and databases in between.
SLOW_TEST_PROCESSES ?= 3
FLINK := 1.19.1
AXE := 4.14.1
BEAM := $(shell sed -n 's/^apache-beam==//p' constraints.txt)

# Each of the suites' thousands of processes would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

# What tests of other engines need is fetched once, and kept here.
CACHE := .cache

empty :=
space := $(empty) $(empty)

# What `make test` runs: the tests that need nothing but .venv and a few seconds each.
FAST := not slow and not airflow and not browser and not dataflow and not flink and not kafka and not prism
PYTHONS := 3.11 3.12 3.13

# Types are checked in a folder of links: beside `io/`, mypy would take it for the standard library's.
MYPY := ../../$(BIN)/mypy --config-file ../../pyproject.toml
# Folders whose modules import each other by bare names.
SCRIPTS := dags dags/provider/ledgerbeam_provider benchmarks benchmarks/comparison benchmarks/components benchmarks/delivery benchmarks/loans
SCRIPTS += benchmarks/messages benchmarks/migration
SCRIPTS += examples/payment_requests docs
# What pages of the site are made of, and what they link to.
PAGES := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md Dockerfile
PAGES += docs benchmarks dags examples rules tests

.PHONY: help install demo up clean
.PHONY: test test-slow correctness fuzz fuzz-api crash-pairs nemesis signals matrix
.PHONY: airflow-test browser-test dataflow-test flink-test kafka-test prism-test screenshots
.PHONY: check types audit docs coverage mutants
.PHONY: bench bench-compare bench-lists bench-pages bench-loans bench-flink bench-messages bench-record bench-replay bench-service
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^## /{print "\n" substr($$0, 4)} /^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)

## Run

install: $(VENV)/dev.stamp ## make .venv with everything that development needs

demo: $(VENV)/core.stamp ## generate a day of trades, mark their deliveries, show the result
	@rm -rf demo
	@echo 'a million trades are generated, which takes some seconds'
	@$(BIN)/ledgerbeam generate trades --output=demo/trades --count=1000000
	@echo 'their deliveries are marked'
	@$(BIN)/ledgerbeam run delivery-marking --trades='demo/trades/*.parquet' \
		--trade-date=2026-11-20 --output=demo/results
	@echo 'next: . $(BIN)/activate'
	@echo '      ledgerbeam verify demo/results/delivery-marking/2026-11-20'
	@echo 'and then: docs/your-first-batch-process.md'

up: $(VENV)/service.stamp ## run the service on this machine: http://localhost:8017, or PORT
	@$(BIN)/ledgerbeam up --port=$(PORT)

## Test

test: $(VENV)/dev.stamp ## run the test suite, less what is slow
	$(BIN)/pytest -m '$(FAST)' -n $(TEST_PROCESSES)

test-slow: $(VENV)/dev.stamp ## run the rest: object-store emulators, installs, benchmarks in small
	$(BIN)/pytest -m slow -n $(SLOW_TEST_PROCESSES)

correctness: $(VENV)/dev.stamp ## published examples, and 100,000 random loans by other libraries
	$(BIN)/pytest tests/rules/test_correctness.py tests/rules/test_calendar.py tests/differential \
		-m 'slow or not slow' -n $(TEST_PROCESSES) --dist loadfile

fuzz: export LEDGERBEAM_FUZZ_CASES = $(FUZZ_CASES)
fuzz: $(VENV)/dev.stamp ## change files, records and command lines by chance: 20,000 cases
	$(BIN)/pytest tests/fuzz -m 'slow or not slow' --timeout=3600

fuzz-api: export LEDGERBEAM_API_CASES = $(API_CASES)
fuzz-api: $(VENV)/dev.stamp ## call the whole REST API with anything: 10,000 calls
	$(BIN)/pytest tests/service/test_any_call.py -m slow -s --timeout=0

crash-pairs: export LEDGERBEAM_PAIRS = $(PAIRS)
crash-pairs: $(VENV)/dev.stamp ## kill a service at two points of one night: PAIRS=40, or all
	$(BIN)/pytest tests/service/test_two_crashes.py -m slow

nemesis: $(VENV)/dev.stamp ## disturb recorded runs at random: NEMESIS_FLAGS='--seed=1 --trials=500'
	$(BIN)/python -m tests.nemesis $(NEMESIS_FLAGS)

signals: export LEDGERBEAM_RANDOM_MOMENTS = $(SIGNALS)
signals: $(VENV)/dev.stamp ## interrupt module runs at random moments: SIGNALS=100
	$(BIN)/pytest tests/batch/launch/test_interrupts.py -k random -m slow -n $(TEST_PROCESSES)

matrix: ## run what `make test` runs on every supported Python that is found
	@found=; missing=; \
	for version in $(PYTHONS); do \
		if PYENV_VERSION=$$version python$$version -c '' 2>/dev/null; \
		then found="$$found $$version"; \
		else missing="$$missing $$version"; \
		fi; \
	done; \
	status=1; test -z "$$found" || { $(MAKE) $$(printf ' matrix-%s' $$found); status=$$?; }; \
	echo "Pythons found and tested:$${found:- none}" >&2; \
	test -z "$$missing" || echo "NOT TESTED, since not on this machine:$$missing" >&2; \
	exit $$status

matrix-%: $(CACHE)/python-%/stamp
	$(CACHE)/python-$*/bin/pytest -m '$(FAST)' -n $(TEST_PROCESSES)

airflow-test: $(VENV)/dev.stamp $(CACHE)/airflow/stamp ## carry the DAGs out in Airflow
	$(BIN)/pytest -m airflow

browser-test: $(VENV)/dev.stamp $(CACHE)/axe-$(AXE)/axe.min.js ## use the page in a browser; needs Chromium, npm
	LEDGERBEAM_AXE=$(CACHE)/axe-$(AXE)/axe.min.js $(BIN)/pytest -m browser tests/service/browser

screenshots: $(VENV)/dev.stamp ## take the pictures of docs/page again; needs Chromium
	$(BIN)/python -m tests.service.browser.screenshots docs/page

dataflow-test: $(CACHE)/dataflow/stamp ## build jobs for Dataflow, and steer them on a fake service
	$(CACHE)/dataflow/bin/pytest -m dataflow tests/engines/test_dataflow.py

flink-test: $(VENV)/dev.stamp $(CACHE)/flink/stamp ## run the workloads on Flink; needs Java, Maven
	$(BIN)/pytest -m flink

kafka-test: $(VENV)/dev.stamp $(CACHE)/kafka/stamp ## post messages to a Kafka broker; needs Java, Maven
	$(BIN)/pytest -m kafka

prism-test: $(VENV)/dev.stamp $(CACHE)/prism/prism ## run the workloads on Prism; needs Go
	$(BIN)/pytest -m prism

## Measure

coverage: $(VENV)/dev.stamp ## measure which lines and branches `make test` reaches
	$(BIN)/pytest -m '$(FAST)' -n $(TEST_PROCESSES) --cov --cov-report=term

# The tests of a module are those whose file or name mentions it.
mutants: export PYTEST_ADDOPTS := $(if $(RULES),-k '$(subst $(space), or ,$(notdir $(subst .,/,$(RULES))))')
mutants: $(VENV)/dev.stamp ## change rules and see whether tests notice: make mutants RULES=money
	$(BIN)/mutmut run $(RULES:%='ledgerbeam.rules.%.*')
	@$(BIN)/python -m tests.support.mutants $(RULES)

bench: $(VENV)/dev.stamp ## measure against DuckDB, Polars, pandas and row-wise Beam
	$(BIN)/python benchmarks/bench_delivery.py $(BENCH_FLAGS)
	$(BIN)/python benchmarks/bench_components.py

bench-compare: $(VENV)/dev.stamp ## measure a comparison of two instances against DuckDB
	$(BIN)/python benchmarks/bench_compare.py

bench-pages: $(VENV)/dev.stamp ## measure pages of a PostgreSQL table against plain loops
	$(BIN)/python benchmarks/bench_pages.py
	$(BIN)/python benchmarks/bench_migration.py

bench-loans: $(VENV)/dev.stamp ## measure loan workloads against plain loops, row-wise Beam, DuckDB
	$(BIN)/python benchmarks/bench_loans.py $(BENCH_LOANS_FLAGS)

bench-messages: $(VENV)/dev.stamp $(CACHE)/peers/stamp ## measure messages against raw SQL and peers; needs Go, npm
	$(BIN)/python benchmarks/bench_messages.py $(BENCH_MESSAGES_FLAGS)

bench-record: $(VENV)/dev.stamp ## measure what it costs that a run is on record
	$(BIN)/python benchmarks/bench_record.py

bench-flink: $(VENV)/dev.stamp $(CACHE)/flink/stamp $(CACHE)/spark/stamp ## measure Flink against the local runner, and Spark
	$(BIN)/python benchmarks/bench_flink.py

bench-replay: $(VENV)/dev.stamp $(CACHE)/flink/stamp ## measure a replay of messages on Beam and on Flink against a consumer
	$(BIN)/python benchmarks/bench_replay.py

bench-service: $(VENV)/dev.stamp $(CACHE)/bench-airflow/stamp $(CACHE)/bench-prefect/stamp ## measure the service beside Airflow and Prefect, on PostgreSQL
	$(BIN)/python benchmarks/bench_service.py

bench-lists: $(VENV)/dev.stamp ## measure lists and pages in front of a million runs
	$(BIN)/python benchmarks/bench_lists.py

## Housekeeping

check: types ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp ## types alone
	@mkdir -p $(CACHE)/types
	@ln -sfn $(addprefix ../../,src/ledgerbeam tests dags benchmarks examples docs) $(CACHE)/types
	cd $(CACHE)/types && $(MYPY) -p ledgerbeam -p tests
	cd $(CACHE)/types && for folder in $(SCRIPTS); do $(MYPY) $$folder/*.py || exit 1; done

audit: $(CACHE)/audit/stamp ## ask PyPI which pinned dependencies are known to be vulnerable
	$(CACHE)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

docs: $(VENV)/dev.stamp ## build the pages and the API reference as a site: build/site
	@mkdir -p $(CACHE)/docs
	@ln -sfn $(addprefix ../../,$(PAGES)) $(CACHE)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove what the other targets made
	rm -rf $(VENV) $(CACHE) demo build dist src/*.egg-info benchmarks/data mutants .coverage*
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

# pyenv's commands need to be told which of its versions is meant.
$(CACHE)/python-%/stamp: pyproject.toml constraints.txt
	PYENV_VERSION=$* python$* -m venv --clear $(CACHE)/python-$*
	$(CACHE)/python-$*/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(CACHE)/audit/stamp:
	$(PYTHON) -m venv $(CACHE)/audit
	$(CACHE)/audit/bin/pip install --quiet pip-audit
	@touch $@

$(CACHE)/axe-$(AXE)/axe.min.js:
	mkdir -p $(@D)
	cd $(@D) && npm pack --silent axe-core@$(AXE)
	tar -xzf $(@D)/axe-core-$(AXE).tgz -C $(@D) --strip-components=1 package/axe.min.js package/LICENSE
	rm $(@D)/axe-core-$(AXE).tgz

$(CACHE)/airflow/stamp: dags/constraints.txt
	$(PYTHON) -m venv $(CACHE)/airflow
	$(CACHE)/airflow/bin/pip install --quiet --constraint dags/constraints.txt apache-airflow
	@touch $@

$(CACHE)/bench-airflow/stamp: dags/constraints.txt
	$(PYTHON) -m venv $(CACHE)/bench-airflow
	$(CACHE)/bench-airflow/bin/pip install --quiet --constraint dags/constraints.txt apache-airflow \
		asyncpg==0.32.0 psycopg2-binary==2.9.13
	@touch $@

$(CACHE)/bench-prefect/stamp: benchmarks/orchestrators/prefect.txt
	$(PYTHON) -m venv $(CACHE)/bench-prefect
	$(CACHE)/bench-prefect/bin/pip install --quiet --requirement benchmarks/orchestrators/prefect.txt
	@touch $@

$(CACHE)/dataflow/stamp: pyproject.toml tests/engines/dataflow/constraints.txt
	$(PYTHON) -m venv $(CACHE)/dataflow
	$(CACHE)/dataflow/bin/pip install --quiet --constraint tests/engines/dataflow/constraints.txt \
		--editable '.[dataflow]' gcp-storage-emulator hypothesis pytest
	@touch $@

$(CACHE)/flink/stamp: tests/engines/flink/pom.xml constraints.txt
	rm -rf $(CACHE)/flink && mkdir -p $(CACHE)/flink
	$(PYTHON) -m pip download --quiet --no-deps --dest $(CACHE)/flink apache-flink-libraries==$(FLINK)
	tar -xzf $(CACHE)/flink/apache-flink-libraries-$(FLINK).tar.gz -C $(CACHE)/flink \
		--strip-components=2 apache-flink-libraries-$(FLINK)/deps/lib
	rm $(CACHE)/flink/apache-flink-libraries-$(FLINK).tar.gz
	mvn --quiet --batch-mode --file tests/engines/flink/pom.xml package -Doutput=$(abspath $(CACHE)/flink/jar)
	$(PYTHON) -m venv $(CACHE)/flink/workers
	$(CACHE)/flink/workers/bin/pip install --quiet --constraint constraints.txt '.[gcp,postgres]'
	@touch $@

$(CACHE)/spark/stamp: constraints.txt
	$(PYTHON) -m venv $(CACHE)/spark
	$(CACHE)/spark/bin/pip install --quiet --constraint constraints.txt pyspark==4.3.0 pyarrow
	@touch $@

$(CACHE)/kafka/stamp: tests/engines/kafka/pom.xml
	rm -rf $(CACHE)/kafka && mkdir -p $(CACHE)/kafka
	mvn --quiet --batch-mode --file tests/engines/kafka/pom.xml package -Doutput=$(abspath $(CACHE)/kafka/libs)
	@touch $@

$(CACHE)/peers/stamp: $(wildcard benchmarks/messages/*.txt benchmarks/messages/river/* benchmarks/messages/graphile/*)
	rm -rf $(CACHE)/peers && mkdir -p $(CACHE)/peers
	cd benchmarks/messages/river && go build -o $(abspath $(CACHE)/peers/river) .
	cp -r benchmarks/messages/graphile $(CACHE)/peers/graphile
	cd $(CACHE)/peers/graphile && npm ci --silent
	$(PYTHON) -m venv $(CACHE)/peers/procrastinate
	$(CACHE)/peers/procrastinate/bin/pip install --quiet --constraint benchmarks/messages/constraints.txt \
		procrastinate 'psycopg[binary]'
	@touch $@

$(CACHE)/prism/prism: constraints.txt
	GOBIN=$(abspath $(CACHE)/prism) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM)
	@touch $@

$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@touch $@

$(VENV)/core.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/service.stamp: $(VENV)/core.stamp
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[service]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
