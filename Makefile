# Everything runs in .venv, which is made on first use. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH_FLAGS ?= --trades 1000000 --trades 10000000 --trades 50000000
BENCH_LOANS_FLAGS ?= --loans 200000
# The suite's processes use one core each.
TEST_PROCESSES ?= 2
FLINK := 1.19.1
BEAM := $(shell sed -n 's/^apache-beam==//p' constraints.txt)

# What tests of other engines need is fetched once, and kept here.
CACHE := .cache

.PHONY: help install demo test test-slow airflow-test dataflow-test flink-test prism-test
.PHONY: check bench bench-pages bench-loans bench-flink
.PHONY: clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(VENV)/dev.stamp ## make .venv with everything that development needs

demo: $(VENV)/core.stamp ## generate a day of trades, mark their deliveries, show the result
	@rm -rf demo
	@$(BIN)/ledgerbeam generate trades --output=demo/trades --count=1000000
	@$(BIN)/ledgerbeam run delivery-marking --trades='demo/trades/*.parquet' \
		--trade-date=2026-11-20 --output=demo/results

test: $(VENV)/dev.stamp ## run the test suite, less what is slow
	$(BIN)/pytest -m 'not slow and not airflow and not dataflow and not flink and not prism' -n $(TEST_PROCESSES)

test-slow: $(VENV)/dev.stamp ## run the rest: object-store emulators, installs, benchmarks in small
	$(BIN)/pytest -m slow -n $(TEST_PROCESSES)

airflow-test: $(VENV)/dev.stamp $(CACHE)/airflow/stamp ## carry the DAGs out in Airflow
	$(BIN)/pytest -m airflow

dataflow-test: $(CACHE)/dataflow/stamp ## build jobs for Dataflow, and steer them on a fake service
	$(CACHE)/dataflow/bin/pytest -m dataflow tests/test_dataflow.py

flink-test: $(VENV)/dev.stamp $(CACHE)/flink/stamp ## run the workloads on Flink; needs Java, Maven
	$(BIN)/pytest -m flink

prism-test: $(VENV)/dev.stamp $(CACHE)/prism/prism ## run the workloads on Prism; needs Go
	$(BIN)/pytest -m prism

check: $(VENV)/dev.stamp ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd src && ../$(BIN)/mypy --config-file ../pyproject.toml -p ledgerbeam

bench: $(VENV)/dev.stamp ## measure against DuckDB, Polars, pandas and row-wise Beam
	$(BIN)/python benchmarks/bench_delivery.py $(BENCH_FLAGS)
	$(BIN)/python benchmarks/bench_components.py

bench-pages: $(VENV)/dev.stamp ## measure pages of a PostgreSQL table against a plain loop
	$(BIN)/python benchmarks/bench_pages.py

bench-loans: $(VENV)/dev.stamp ## measure loan workloads against plain loops, row-wise Beam, DuckDB
	$(BIN)/python benchmarks/bench_loans.py $(BENCH_LOANS_FLAGS)

bench-flink: $(VENV)/dev.stamp $(CACHE)/flink/stamp ## measure Flink against the local runner
	$(BIN)/python benchmarks/bench_flink.py

clean: ## remove what the other targets made
	rm -rf $(VENV) $(CACHE) demo build dist src/*.egg-info benchmarks/data
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(CACHE)/airflow/stamp: dags/constraints.txt
	$(PYTHON) -m venv $(CACHE)/airflow
	$(CACHE)/airflow/bin/pip install --quiet --constraint dags/constraints.txt apache-airflow
	@touch $@

$(CACHE)/dataflow/stamp: pyproject.toml tests/dataflow/constraints.txt
	$(PYTHON) -m venv $(CACHE)/dataflow
	$(CACHE)/dataflow/bin/pip install --quiet --constraint tests/dataflow/constraints.txt \
		--editable '.[dataflow]' gcp-storage-emulator hypothesis pytest
	@touch $@

$(CACHE)/flink/stamp: tests/flink/pom.xml constraints.txt
	rm -rf $(CACHE)/flink && mkdir -p $(CACHE)/flink
	$(PYTHON) -m pip download --quiet --no-deps --dest $(CACHE)/flink apache-flink-libraries==$(FLINK)
	tar -xzf $(CACHE)/flink/apache-flink-libraries-$(FLINK).tar.gz -C $(CACHE)/flink \
		--strip-components=2 apache-flink-libraries-$(FLINK)/deps/lib
	rm $(CACHE)/flink/apache-flink-libraries-$(FLINK).tar.gz
	mvn --quiet --batch-mode --file tests/flink/pom.xml package -Doutput=$(abspath $(CACHE)/flink/jar)
	$(PYTHON) -m venv $(CACHE)/flink/workers
	$(CACHE)/flink/workers/bin/pip install --quiet --constraint constraints.txt '.[gcp]'
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

$(VENV)/dev.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
