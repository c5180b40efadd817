# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
INSTALLED := $(VENV)/.installed

export HPSEARCH_HOME ?= $(CURDIR)/.hpsearch
export HPSEARCH_ALLOWED_ROOTS ?= $(CURDIR)/studies
export HPSEARCH_URL ?= http://127.0.0.1:$(PORT)
unexport PYTHONDONTWRITEBYTECODE  # some images set it: each of many processes would compile all of it anew

.PHONY: demo serve test check format schema clean

demo: $(INSTALLED)  ## Run a real search on this machine and show its ranking
	$(BIN)/hpsearch run studies/quickstart.yaml --port $(PORT)
	@echo "Look at it again: make serve, then open http://127.0.0.1:$(PORT)/dashboard"

serve: $(INSTALLED)  ## Keep the service up
	$(BIN)/hpsearch serve --port $(PORT)

test: $(INSTALLED)  ## All tests, in three processes: they often wait
	$(BIN)/pytest -n 3 --no-loadscope-reorder

check: $(INSTALLED)  ## Style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(INSTALLED)  ## Write the published JSON schema anew
	$(BIN)/hpsearch schema > studies/study.schema.json

# Without a GPU, PyTorch's CPU build is taken: uv knows where it is. What it can't reach, pip looks for itself.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("hpsearch needs Python 3.11 or newer; set PYTHON=python3.12, say") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
	  $(BIN)/pip install --quiet uv && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=cpu -c constraints.txt torch 2>/dev/null \
	  || echo "PyTorch's CPU index can't be reached; taking torch from where pip looks"; fi
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .hpsearch
