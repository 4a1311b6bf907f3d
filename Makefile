PYTHON ?= python3

demo: .venv/demo
	.venv/bin/python train_task.py --task addition --out out/demo --overwrite

test: .venv/test
	.venv/bin/ruff check .
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto --dist loadgroup

torture: .venv/test
	.venv/bin/python tests/fuzz.py 100000
	.venv/bin/python tests/torture.py --kills 1000
	.venv/bin/python tests/slurm.py

.venv/demo: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet -r requirements.txt
	touch $@

.venv/test: requirements-dev.txt requirements-pretrain.txt requirements-llama.txt requirements-cluster.txt .venv/demo
	.venv/bin/pip install --quiet -r requirements-dev.txt
	touch $@

lessons: .venv/lessons
	.venv/bin/jupyter notebook lessons

lessons-test: .venv/lessons
	.venv/bin/python -m lessons.run
	.venv/bin/python -m lessons.run --notebooks

# needs Node.js, and Chromium or Chrome for the PDF
slides:
	$(PYTHON) -m lessons.figures out/slides
	cp lessons/slides.md out/slides/
	cd out/slides && npx --yes @marp-team/marp-cli@4.5.1 slides.md -o slides.html
	cd out/slides && npx --yes @marp-team/marp-cli@4.5.1 slides.md -o slides.pdf --allow-local-files

.venv/lessons: requirements-lessons.txt .venv/demo
	.venv/bin/pip install --quiet -r requirements-lessons.txt
	touch $@

.PHONY: demo test torture lessons lessons-test slides
