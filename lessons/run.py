"""Run the lessons, and make all that is stored of them: the notebooks with their figures, and the numbers in the text.

    python -m lessons.run                 run all, write the .ipynb files and numbers.json: minutes
    python -m lessons.run 1 3             lessons 1 and 3
    python -m lessons.run --solved        run them with the solutions filled in, and write nothing

A lesson is a Python file whose cells begin with `# %%`. The stub of an exercise is the cell tagged "exercise"; its
solution stands in the next markdown cell, in the Python listing of its <details>.

Nobody types a number that was measured. Where the prose of a lesson says {{expression}} or {{expression:.0f}}, the
notebook says its value: Python of the lesson's variables at that place, formatted as in an f-string. slides.md and
other pages of this folder say {{2: expression}} for a value at the end of lesson 2. numbers.json keeps all values;
`fill` puts them into a text.
"""

import argparse
import json
import os
import re
import time
from pathlib import Path

FOLDER = Path(__file__).parent
LESSONS = sorted(FOLDER.glob("[0-9]_*.py"))
NUMBERS = FOLDER / "numbers.json"
NO_OUTPUT = {"TQDM_DISABLE": "1"}  # a bar would be stored as hundreds of lines
PLACEHOLDER = re.compile(r"\{\{(.+?)\}\}")


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
        elif stub is not None and header == "[markdown]" and "<details>" in source and "```python" in source:
            found[stub], stub = (found[stub][0], solution(source)), None
    if stub is not None:
        raise ValueError(f"{path.name}: no solution follows the exercise\n{found[stub][1]}")
    return found


def solution(source):
    """The Python listing of a markdown cell."""
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in source.splitlines())
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


# ---------------------------------------------------------------- numbers in the text


def asked_by_pages(number):
    """The expressions that slides.md and other pages want at the end of a lesson."""
    text = "".join(path.read_text() for path in sorted(FOLDER.rglob("*.md")) if path.name != "README.md")
    found = [expression.partition(":") for expression in PLACEHOLDER.findall(text)]
    return [expression.strip() for lesson, _, expression in found if lesson == str(number)]


def fill(text, number=None):
    """The text with its placeholders filled from numbers.json: the prose of a lesson, or without a number a page."""
    values = json.loads(NUMBERS.read_text())

    def value(match):
        lesson, _, expression = (f"{number}:{match[1]}" if number is not None else match[1]).partition(":")
        try:
            return values[lesson]["text" if number is not None else "pages"][expression.strip()]
        except KeyError:
            raise ValueError(f"{match[0]} has no value yet: run `python -m lessons.run {lesson}`") from None

    return PLACEHOLDER.sub(value, text)


def values_code(expressions):
    """Python that is a dict of the values of expressions, as texts. Those may call what text.py has."""
    values = "{" + ", ".join(f"{e!r}: f'''{{{e}}}'''" for e in expressions) + "}"
    return f"eval({values!r}, vars(__import__('lessons.text').text) | globals())" if expressions else "{}"


def update(values, more):
    """Add values to a dict. Raises ValueError where the same expression has another value at another place."""
    for expression, value in more.items():
        if values.setdefault(expression, value) != value:
            raise ValueError(f"{{{{{expression}}}}} is {values[expression]} and later {value}: give one another name")


# ---------------------------------------------------------------- running


def run_cells(found, path, namespace=None):
    """Execute the code cells one after the other, in one namespace, which is returned. Placeholders of the prose are
    evaluated too, so that one that cannot be raises its error."""
    namespace = {"__name__": "lesson"} if namespace is None else namespace
    for header, source in found:
        if header == "[markdown]":
            eval(values_code(PLACEHOLDER.findall(source)), namespace)
        else:
            exec(compile(source, path.name, "exec"), namespace)
    return namespace


def write_notebook(path):
    """Make the .ipynb of a lesson with its outputs, and its part of numbers.json. The stubs stay, so that the checks
    say what is missing."""
    import jupytext  # of the extra `lessons`
    from nbclient import NotebookClient  # comes with notebook
    from nbformat.v4 import new_code_cell

    number, notebook = path.name[0], jupytext.read(path)
    kept, asked = [], []  # the lesson's cells, and cells that print values: one for each of them, and one at the end
    for cell in notebook.cells:
        in_text = PLACEHOLDER.findall(cell.source) if cell.cell_type == "markdown" else []
        asked.append(new_code_cell(f"print(__import__('json').dumps({values_code(in_text)}))"))
        kept.append(cell)
    at_end = new_code_cell(f"print(__import__('json').dumps({values_code(asked_by_pages(number))}))")
    notebook.cells = [cell for pair in zip(asked, kept) for cell in pair] + [at_end]
    os.environ |= NO_OUTPUT
    NotebookClient(notebook, timeout=None, coalesce_streams=True, resources={"metadata": {"path": FOLDER}}).execute()

    values = {"text": {}, "pages": printed(at_end)}
    for cell in asked:
        update(values["text"], printed(cell))
    numbers = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    NUMBERS.write_text(json.dumps(numbers | {number: values}, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    notebook.cells = kept
    for i, cell in enumerate(kept):
        cell.id = f"cell-{i}"
        cell.metadata.pop("execution", None)  # times of day, which would differ each time
        if cell.cell_type == "code":  # without warnings of libraries, which name folders of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        else:
            cell.source = fill(cell.source, number)
    for i, cell in enumerate((cell for cell in kept if cell.cell_type == "code"), 1):
        cell.execution_count = i
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = i
    jupytext.write(notebook, path.with_suffix(".ipynb"))


def printed(cell):
    """The dict that a cell has printed as JSON."""
    return json.loads("".join(output.text for output in cell.outputs if output.get("name") == "stdout"))


def missing(path):
    """What a lesson needs and is not installed, as a line that says so, or ''."""
    from files.errors import UserError  # imported here, so that figures.py needs nothing but Python
    from files.gguf_reader import smollm2

    try:
        if 'load_model("smollm2"' in path.read_text():
            smollm2()
    except UserError as error:
        return str(error)
    return ""


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("numbers", nargs="*", type=int, help="of lessons (default: all)")
    p.add_argument("--solved", action="store_true", help="run them with their solutions, and write nothing")
    args = p.parse_args()
    for path in LESSONS:
        if args.numbers and int(path.name[0]) not in args.numbers:
            continue
        if why := missing(path):
            print(f"======== {path.name} is skipped: {why}", flush=True)
            continue
        start = time.time()
        if args.solved:
            import matplotlib  # imported here, so that figures.py needs nothing but Python

            matplotlib.use("Agg")
            print(f"\n======== {path.name}")
            run_cells(solved(path), path)
        else:
            write_notebook(path)
        print(f"======== {path.name}: {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
