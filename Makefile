# Needs Python 3.10 or newer with its venv module, make, and a connection to PyPI the first time.
# Another Python than python3: make book PYTHON=python3.12

PYTHON ?= python3
INSTALL := .venv/bin/python -m pip install --disable-pip-version-check -e
CACHE := book/_build/.jupyter_cache
PLAYGROUND := book/_build/web/explore/discriminators.onnx
# Programs of .venv first, for the notebooks' shell commands too. PyTorch's threads sleep while they wait for each other:
# spinning, its default, makes training many times slower as soon as another program wants a core.
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH" OMP_WAIT_POLICY=passive

# What is installed so far: for the book, for the tests too, and what our detectors are compared with.
BOOK := .venv/.book
TEST := .venv/.test
BESIDE := .venv/.beside

# Whether there is a browser for the tests of pages and widgets.
BROWSER := command -v chromium >/dev/null || command -v google-chrome >/dev/null || command -v chromium-browser >/dev/null || command -v chrome >/dev/null
ANOMALIB := .venv/bin/python -c 'import importlib.metadata as m; m.version("anomalib")' 2>/dev/null

# Tests run side by side, and so do chapters, with one thread each: their figures then do not depend on the number of
# cores. Tests of one file, and cells of one chapter, stay in one process.
ALONE := OMP_NUM_THREADS=1
PARALLEL := -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

# Seconds that a cell may take in make chapters.
CELL_SECONDS ?= 600
CHAPTERS := --nbval-lax --nbval-current-env --nbval-cell-timeout=$(CELL_SECONDS) notebooks

.PHONY: help book pdf test chapters machines beside lint notebook notebooks clean

help:
	@echo "make book      run the chapters and build the book into book/_build/html"
	@echo "make pdf       print the built book into one file, book/_build/attnad.pdf"
	@echo "make test      run the tests, of the built book too"
	@echo "make chapters  run every chapter again, by nbval, and compare what it prints"
	@echo "make machines  run the tests of training again, as on other machines: more threads, older processors"
	@echo "make beside    install anomalib, and run the tests that set its detectors beside ours"
	@echo "make lint      check the code's rules, format and types"
	@echo "make notebook  open the chapters in JupyterLab"
	@echo "make notebooks run the chapters in place, for their pictures on GitHub and in the README"
	@echo "make clean     remove the built book, the chapters' runs and caches (.venv stays)"

# Each target installs the lists of pyproject.toml that it needs, once, and again when they change.
$(BOOK): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.10 or newer, or name yours: make $(MAKECMDGOALS) PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else "attnad needs Python 3.10 or newer; $(PYTHON) is %d.%d. Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[book]'
	@touch $@

$(TEST): $(BOOK)
	$(INSTALL) '.[book,test]'
	@touch $@

$(BESIDE): $(TEST)
	$(INSTALL) '.[book,test,anomalib]'
	@touch $@

# Outputs of executed chapters, and what they trained. Both are stale once what the chapters import or read has changed.
$(CACHE)/.fresh: $(BOOK) _config.yml $(shell find attnad book/results book/web -type f ! -name '*.pyc' 2>/dev/null)
	rm -rf $(CACHE) notebooks/runs
	@mkdir -p $(CACHE)
	@touch $@

# Other projects' scripts, so that the pages ask no other host.
book/_build/web/.fresh: $(BOOK) $(wildcard book/web/*)
	$(RUN) python book/web/collect.py
	@touch $@

# One covariance for all places keeps the playground's model small: brick is brick everywhere.
$(PLAYGROUND): book/_build/web/.fresh attnad/features/places.py attnad/detectors/gaussian.py attnad/run/export.py
	rm -rf book/_build/discriminators
	$(RUN) attnad train textures --recipe discriminators --shrink 1 --out book/_build/discriminators
	$(RUN) attnad export book/_build/discriminators $@

# The chapters are run as many at once as there are cores: Jupyter Book runs them one after the other.
define EXECUTE
$(RUN) jcache notebook -p $(CACHE) add notebooks/*.ipynb
$(RUN) $(ALONE) jcache project -p $(CACHE) execute --executor local-parallel --timeout 600
endef

book: $(BOOK) $(CACHE)/.fresh $(PLAYGROUND)
	$(EXECUTE)
	$(RUN) jupyter-book build . --toc book/_toc.yml --path-output book --all -n -W --keep-going
	@$(BROWSER) || echo "There is no Chromium or Chrome here: make test will leave out the pages and widgets."
	@echo "The book is built. Open it in a browser: $(CURDIR)/book/_build/html/index.html"

pdf: $(TEST)
	$(RUN) python book/web/pdf.py

test: $(TEST) $(CACHE)/.fresh
	$(RUN) $(ALONE) pytest $(PARALLEL) -m "not machines" tests
	@$(BROWSER) || echo "Not tested: the pages and widgets, for want of a browser. Install Chromium or Chrome, then make book and make test."
	@test -e book/_build/html/index.html || echo "Not tested: the chapters and the built pages. Run make book, then make test again."
	@$(ANOMALIB) || echo "Not tested: anomalib's detectors beside ours, for want of anomalib. Run make beside: it installs anomalib and runs these tests."

chapters: $(TEST) $(CACHE)/.fresh
	$(RUN) $(ALONE) pytest $(PARALLEL) $(CHAPTERS)

# More threads than cores, then the instructions that most laptops have; last what asks for other machines by itself.
TRAINING := tests/test_steps.py tests/test_train.py tests/test_run.py tests/test_cli.py tests/test_ray.py
machines: $(TEST)
	$(RUN) OMP_NUM_THREADS=4 pytest $(TRAINING)
	$(RUN) ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 pytest $(TRAINING)
	$(RUN) pytest -m machines tests/test_machine.py tests/test_promises.py

beside: $(BESIDE)
	$(RUN) $(ALONE) pytest tests/test_beside.py

lint: $(TEST)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

notebook: $(BOOK) $(CACHE)/.fresh
	$(RUN) jupyter lab notebooks

# Committed executed, without progress bars; the README's picture is the tour's output of the cell "maps".
notebooks: $(BOOK) $(CACHE)/.fresh
	$(EXECUTE)
	export PATH="$(CURDIR)/.venv/bin:$$PATH"; for chapter in notebooks/*.ipynb; do jcache notebook -p $(CACHE) merge $$chapter $$chapter || exit 1; done
	$(RUN) python notebooks/tidy.py

clean:
	rm -rf book/_build notebooks/runs .pytest_cache .ruff_cache .hypothesis
	find attnad tests notebooks -name __pycache__ -prune -exec rm -rf {} +
