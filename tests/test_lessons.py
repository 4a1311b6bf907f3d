"""The lessons run to their end, checks say what is wrong with an answer, and notebooks and numbers are in step."""

import json
import linecache
import re
import warnings

import matplotlib
import pytest

import eval.contexts
import files.gguf_reader
import files.weights
import lessons.run
import train_task
from files.errors import UserError
from lessons import checks
from lessons.figures import figures
from lessons.run import FOLDER, LESSONS, PLACEHOLDER, asked_by_pages, cells, fill, run_cells, solution, solved
from tasks import Task
from tests.wrong_answers import RIGHT, WRONG

matplotlib.use("Agg")
names = [path.stem for path in LESSONS]


def exercises(path):
    """[(stub, check)]: the source of each exercise and of the cell behind it."""
    found = cells(path)
    return [(source, found[i + 1][1]) for i, (header, source) in enumerate(found) if '"exercise"' in header]


def stored(path):
    """The cells of a lesson's notebook."""
    return json.loads(path.with_suffix(".ipynb").read_text())["cells"]


def printed(cell):
    return "".join("".join(output.get("text", "")) for output in cell.get("outputs", []))


# ---------------------------------------------------------------- running


@pytest.fixture
def few(monkeypatch, base):
    """Tasks make a few examples, the search for a context asks two questions, what is measured are an answer's first
    four tokens, and SmolLM2 is a tiny base."""
    load = files.weights.load_model
    tiny = lambda name, **more: load(base if name == "smollm2" else name, **more)  # noqa: E731
    monkeypatch.setattr(files.weights, "load_model", tiny)
    examples, search = Task.examples, eval.contexts.best_context
    monkeypatch.setattr(Task, "examples", lambda self, n, *args, split="test", **more: examples(
        self, min(n, 40 if split == "train" else 2), *args, split=split, **more))  # fmt: skip
    monkeypatch.setattr(eval.contexts, "best_context", lambda *args, **more: search(*args, **more | {"n_questions": 2}))
    write = train_task.generate_answers
    monkeypatch.setattr(train_task, "generate_answers", lambda *args: write(*args[:5], [4] * len(args[4]), *args[6:]))


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_a_lesson_runs_to_its_end_and_prints_what_is_stored(path, few, capsys):
    found, notebook, space, verdicts = solved(path), stored(path), None, []
    assert 3 <= len(exercises(path)) <= 4
    for (header, source), kept in zip(found, notebook, strict=True):
        space = run_cells([(header, source)], path, space)
        fresh, kept = capsys.readouterr().out, printed(kept)
        if "checks.check" in source:
            verdicts.append(fresh)
        elif '"measured"' in header:  # on fewer examples than the stored run: the same columns
            assert heads(fresh) == heads(kept), source
        else:
            assert words(fresh) == words(kept), source
            assert numbers(fresh) == pytest.approx(numbers(kept), rel=1e-2, abs=1e-4), source
    assert verdicts == ["Right.\n"] * len(exercises(path))
    run_cells([("[markdown]", "".join(f"{{{{{e}}}}}" for e in asked_by_pages(path.name[0])))], path, space)
    for stub, check in exercises(path):  # what a student sees before starting
        run_cells([("", stub), ("", check)], path, space)
        assert capsys.readouterr().out.startswith("Not yet: write the function")
    matplotlib.pyplot.close("all")


def words(text):
    """The lines of a text with their numbers left out."""
    return [re.sub(r"\s+", " ", re.sub(NUMBER, "#", line)) for line in text.splitlines()]


def heads(text):
    return [line for line in text.splitlines() if "in-distribution" in line or "before > after" in line]


def numbers(text):
    return [float(n.replace(",", "")) for n in re.findall(NUMBER, text)]


NUMBER = r"-?\d[\d,]*\.?\d*(?:e-?\d+)?"


def test_a_lesson_without_its_base_is_skipped_with_one_line(monkeypatch, capsys):
    def absent():
        raise UserError("smollm2 is missing: make smollm2")

    monkeypatch.setattr(files.gguf_reader, "smollm2", absent)
    monkeypatch.setattr("sys.argv", ["run", "--solved", "6"])
    lessons.run.main()
    assert capsys.readouterr().out == "======== 6_a_real_model.py is skipped: smollm2 is missing: make smollm2\n"
    with pytest.raises(SystemExit, match="Lesson 6 is skipped: smollm2 is missing"):
        run_cells(cells(LESSONS[6]), LESSONS[6])


# ---------------------------------------------------------------- checks


def answers(check, written):
    """[(function, message)] of what people write: [(old, new, message)] of wrong_answers.py."""
    name, found = check.removeprefix("check_"), []
    (code,) = {solution(s) for path in LESSONS for _, s in cells(path) if f"def {name}(" in s and "<details>" in s}
    for old, new, message in written:
        assert old in code, (check, old)
        signature = code[code.index("def ") :].splitlines()[0]
        wrong = code.replace(old, new) if old else "\n    ".join([signature, *new.splitlines()])
        file = f"<{name} {len(found)}>"
        linecache.cache[file] = len(wrong), None, wrong.splitlines(True), file  # so that an error finds its line
        space = dict(checks.solutions())  # which may call one another
        exec(compile(wrong, file, "exec"), space)
        found.append((space[name], message))
    return found


@pytest.mark.parametrize("check", WRONG)
def test_a_check_names_what_is_wrong_and_hands_back_a_solution(check, capsys):
    for answer, message in answers(check, WRONG[check]):
        with warnings.catch_warnings(action="ignore"):
            used = getattr(checks, check)(answer)
        said, then = capsys.readouterr().out.splitlines()
        assert said.startswith("Not yet: ") and message in said, said
        assert "but other numbers" not in said and "Error:" not in said, said
        assert used is checks.solutions()[check.removeprefix("check_")] is not answer and "solution" in then


@pytest.mark.parametrize("check, body", RIGHT)
def test_what_is_right_in_another_way_is_used(check, body, capsys):
    ((answer, _),) = answers(check, [("", body, "")])
    assert getattr(checks, check)(answer) is answer
    assert capsys.readouterr().out == "Right.\n"


def test_a_solution_is_not_taken_for_an_answer(capsys):
    checks.check_vote(checks.solutions()["vote"])
    assert "run the cell of your function first" in capsys.readouterr().out


def test_every_check_belongs_to_an_exercise_and_is_tried_with_wrong_answers():
    used = {name for path in LESSONS for _, check in exercises(path) for name in WRONG if name in check}
    assert used == {name for name in dir(checks) if name.startswith("check_")}
    assert used == set(WRONG) == {check for check, _ in RIGHT}


# ---------------------------------------------------------------- notebooks


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_the_notebook_is_in_step_with_the_python_file_and_holds_its_outputs(path):
    jupytext = pytest.importorskip("jupytext", reason="of the extra lessons")
    ours, notebook = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))
    for cell in ours.cells:  # the text's numbers are those of the stored run
        cell.source = fill(cell.source, path.name[0]) if cell.cell_type == "markdown" else cell.source
    assert [(c.cell_type, c.source) for c in ours.cells] == [(c.cell_type, c.source) for c in notebook.cells]
    outputs = [output for cell in stored(path) for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum(printed(cell).count("Not yet: write") for cell in stored(path)) == len(exercises(path))
    assert path.with_suffix(".ipynb").stat().st_size < 400_000


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_no_measured_number_is_typed(path):
    prose = "\n".join(source for header, source in cells(path) if header == "[markdown]")
    text = PLACEHOLDER.sub("", prose).replace("95% interval", "")
    assert not re.findall(r".*\d ?%.*|.*\d points.*", text)


def test_slides_show_figures_of_the_notebooks_and_have_notes_and_questions():
    slides = (FOLDER / "slides.md").read_text().split("\n---\n")[1:]  # the first part is the header
    shown = re.findall(r"!\[.*?\]\((.*?)\.png\)", "".join(slides))
    assert set(shown) <= set(figures())
    said = [re.findall(r"<!--\s*(?!_)(\w.*?)-->", slide, re.DOTALL) for slide in slides]
    assert all(len(notes) == 1 for notes in said)
    lectures = "".join("T" if "_class: title" in s else "?" if "_class: ask" in s else "." for s in slides).split("T")
    assert [questions.count("?") for questions in lectures] == [0, 5, 5]
    text = re.sub(r"!\[.*?\]", "", PLACEHOLDER.sub("", "".join(slides)))
    assert not re.findall(r".*\d ?%.*|.*\d points.*", text)
