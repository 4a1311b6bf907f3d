"""Run the lessons with their solutions filled in, and bring the notebooks in step with the Python files.

    python -m lessons.run                 run all five, as a student who has solved everything: minutes
    python -m lessons.run 1 3             run lessons 1 and 3
    python -m lessons.run --notebooks     write the .ipynb files, with the outputs that a student begins with

A lesson is a Python file whose cells begin with `# %%`. The stub of an exercise is the cell tagged "exercise"; its
solution stands in the next markdown cell, in the Python listing of its <details>.
"""

import argparse
import os
import re
import time
from pathlib import Path

FOLDER = Path(__file__).parent
LESSONS = sorted(FOLDER.glob("[1-9]_*.py"))
NO_OUTPUT = {"TQDM_DISABLE": "1"}  # a bar would be stored as hundreds of lines


def cells(path):
    """[(header, source)] of a lesson: what stands behind `# %%`, and the lines of the cell."""
    parts = re.split(r"(?m)^# %%(.*)\n", path.read_text())  # the file's own header, then header and source in turn
    return [(header.strip(), source.strip("\n")) for header, source in zip(parts[1::2], parts[2::2])]


def solved(path):
    """The cells of a lesson with each stub replaced by its solution."""
    found, stub = cells(path), None
    for i, (header, source) in enumerate(found):
        if '"exercise"' in header:
            stub = i
        elif stub is not None and header == "[markdown]" and "<details>" in source:
            found[stub], stub = (found[stub][0], solution(source)), None
    if stub is not None:
        raise ValueError(f"{path.name}: no solution follows the exercise\n{found[stub][1]}")
    return found


def solution(source):
    """The Python listing of a markdown cell."""
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in source.splitlines())
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def run_cells(found, path, namespace=None):
    """Execute the code cells one after the other, in one namespace, which is returned."""
    namespace = {"__name__": "lesson"} if namespace is None else namespace
    for header, source in found:
        if header != "[markdown]":
            exec(compile(source, path.name, "exec"), namespace)
    return namespace


def write_notebook(path):
    """Make the .ipynb of a lesson and fill in its outputs; the stubs stay, so that the checks say what is missing."""
    import jupytext  # of the extra `lessons`
    from nbclient import NotebookClient  # comes with notebook

    notebook = jupytext.read(path)
    os.environ |= NO_OUTPUT
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": FOLDER}}).execute()
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        cell.metadata.pop("execution", None)  # times of day, which would differ each time
        if cell.cell_type == "code":  # without warnings of libraries, which name folders of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    jupytext.write(notebook, path.with_suffix(".ipynb"))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("numbers", nargs="*", type=int, help="of lessons (default: all)")
    p.add_argument("--notebooks", action="store_true", help="run them as they stand, and write the .ipynb files")
    args = p.parse_args()
    import matplotlib  # imported here, so that figures.py needs nothing but Python

    matplotlib.use("Agg")
    for path in LESSONS:
        if args.numbers and int(path.name[0]) not in args.numbers:
            continue
        start = time.time()
        if args.notebooks:
            write_notebook(path)
        else:
            print(f"\n======== {path.name}")
            run_cells(solved(path), path)
        print(f"======== {path.name}: {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
