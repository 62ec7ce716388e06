# Two commands do everything on a fresh machine: `make demo` and `make test`.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check docs docs-serve format bench coverage audit release peers soak clean

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
	@$(MAKE) --no-print-directory docs
	$(BIN)/hadolint slurm/Dockerfile
	bash -n slurm/*.sh && shellcheck -x slurm/*.sh tests/slurm/*.sh .ci/install .ci/run .ci/release

docs: ## the documentation site, into build/site; a dead link or a missing page fails
	@bash .ci/install test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-serve: ## the site on http://127.0.0.1:8000, built anew when a page changes
	@bash .ci/install test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

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
	$(BIN)/python -m benchmarks.run_all

coverage: ## which lines the tests run, in every process they start
	@bash .ci/install test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not peers and not soak"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --fail-under 90

audit: ## known vulnerabilities of the exact versions in constraints.txt
	@bash .ci/install audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --desc off

release: ## build the wheel, install it in a clean environment and run every command's help there
	@bash .ci/install audit
	bash .ci/release

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
