# Two commands do everything on a fresh machine: `make demo` and `make test`.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check format bench peers soak clean

demo: ## the whole path on real images, on the CPU, in minutes
	@bash .ci/install demo
	@$(BIN)/python -m jobs.demo

test: check ## lint, types, tests
	$(BIN)/pytest -m "not peers and not soak"

check: ## lint and types only
	@bash .ci/install test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .mypy_cache/import_linter
	bash -n slurm/*.sh && shellcheck -x slurm/*.sh tests/slurm/*.sh .ci/install .ci/run

peers: ## compare with timm, transformers and datasets
	@bash .ci/install peers
	$(BIN)/pytest -m peers

soak: ## long fault tests: the Slurm cluster, MLflow on PostgreSQL and S3
	@bash .ci/install soak
	$(BIN)/pytest -m soak

format:
	@bash .ci/install test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: ## one line a claim: ours, peer, limit, ratio
	@bash .ci/install peers
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
