"""report.html: a run on one page, for a reader and for a wall. It needs no network and no server.

    python -m eval.page out/addition-nano-2   # write the page again, after a change of report.html.jinja

It is made of results.json and of details.json, which holds what results.json would be too long with: every question,
what was written after it, and where answers look.
"""

import argparse
import math
from pathlib import Path

import jinja2
from matplotlib.colors import to_hex

from eval import plots, report
from files import errors, schemas
from files.errors import UserError
from files.safe import write_text


def details(task, tests, written, words, before, tuned):
    """The content of details.json.

    questions  {range: [[question, true answer, length]]}
    written    {"before" or "accuracy": {contender: {range: answers}}}, an answer for each question: None where it is
               the true one in every character, else [text, whether its final answer is right, the kind of error]
    attention  {"before" or "tuned": what eval/attention.py returns of the prompt's rows}
    words      what each row began as, None for those that began at random

    tests: {range: examples}. written: {"before" or "accuracy": {contender: {range: texts}}}. before, tuned: of
    attention_to_rows.
    """

    def compared(e, text):
        right = task.final_answer(text) == task.final_answer(e.answer)
        return None if text == e.answer else [text, right, task.kind_of_error(e.answer, text)]

    return {
        "questions": {r: [[e.question, e.answer, e.length] for e in examples] for r, examples in tests.items()},
        "written": {
            when: {
                name: {r: [compared(e, text) for e, text in zip(tests[r], texts)] for r, texts in by_range.items()}
                for name, by_range in by_name.items()
            }
            for when, by_name in written.items()
        },
        "attention": {"before": before, "tuned": tuned},
        "words": words,
    }


# ---------------------------------------------------------------- what the template shows


def table_rows(results):
    """A dict for each contender: name, label, color, and a cell for each range with its accuracy before and after
    tuning in %, the intervals, and what tuning adds to its start and to the best context."""
    before, after = results["before"], results["accuracy"]
    if results["answers"]:  # classes: what counts is the likeliest answer
        before, after = (
            {name: {"likeliest answer": c} for name, c in results[key].items()} for key in ("classes_before", "classes")
        )
    context, rows = after["few-shot"], []
    for name, by_range in after.items():
        cells = []
        for r, a in by_range.items():
            cell = {"range": r, "percent": report.percent(a), "interval": interval(a), "n": a["n"]}
            cell["context"] = report.percent(context[r])
            if "macro_f1" in a:
                cell["macro_f1"] = f"{100 * a['macro_f1']:.1f}"
            if name in before:
                start = before[name][r]
                if "macro_f1" in a:
                    cell["macro_f1"] = f"{100 * start['macro_f1']:.1f} to {cell['macro_f1']}"
                cell["before"], cell["before_interval"] = report.percent(start), interval(start)
                cell["adds"] = report.difference(a, start)
                cell["adds_to_context"] = report.difference(a, context[r])
            cells.append(cell)
        color = color_of(results, name)
        rows.append({"name": name, "label": results["labels"][name], "color": color, "cells": cells})
    return rows


def color_of(results, name):
    """plots.COLORS's, and red for the method that the run is about."""
    return plots.COLORS.get(name) or (plots.RED if name == results["method"] else to_hex(plots.color_of(results, name)))


def interval(a):
    return f"{100 * a['low']:.1f} to {100 * a['high']:.1f}"


def length_chart(results):
    """Accuracy by length: plots.plot_lengths as lines in a square of 100 by 100, (0, 0) at its upper left."""
    chart = {"lines": [], "x_label": results["unit"], "y_label": "final-answer accuracy, %", "x_ticks": []}
    chart["y_ticks"] = [(100 - y, str(y)) for y in (0, 25, 50, 75, 100)]
    lengths = plots.by_length(results["accuracy"]["few-shot"], results["new_words"])[0]
    scale = 100 / (lengths[-1] - lengths[0] + 1)  # half a length is left free at each end
    low, high = results["in_distribution_lengths"]
    chart["tuned_on"] = scale * (low - lengths[0]), scale * (high - low + 1)  # from, width
    chart["x_ticks"] = [(scale * (length - lengths[0] + 0.5), str(length)) for length in lengths]
    for name in results["accuracy"]:
        for when in ("before", "accuracy"):
            by_range = results[when].get(name)
            if by_range is None or name == "scratch" and when == "before":
                continue
            x, y, (below, above) = plots.by_length(by_range, results["new_words"])
            x = [scale * (length - lengths[0] + 0.5) for length in x]
            label = results["labels"][name] + (", before tuning" if when == "before" else "")
            chart["lines"].append(
                {
                    "label": label,
                    "color": color_of(results, name),
                    "before": when == "before",
                    "dots": True,
                    "points": [(a, 100 - b) for a, b in zip(x, y)],
                    "bars": [(a, 100 - b - up, 100 - b + down) for a, b, up, down in zip(x, y, above, below)],
                }
            )
    return chart


def loss_chart(results, most=200):
    """Loss against examples seen, both logarithmic, the mean of the last 20 steps, at most `most` points a line."""
    curves = {}
    for name, curve in results["loss"].items():
        loss = [sum(curve["loss"][max(0, i - 19) : i + 1]) / min(20, i + 1) for i in range(len(curve["loss"]))]
        steps = [round(len(loss) ** (i / most)) - 1 for i in range(1, most + 1)]  # as many for each factor of ten
        steps = sorted({0, *steps, len(loss) - 1})
        curves[name] = [(math.log10(curve["examples"][i]), math.log10(max(loss[i], 1e-9))) for i in steps]
    x, y = zip(*(point for points in curves.values() for point in points))
    (left, right), (bottom, top) = (min(x), max(x)), (min(y), max(y))
    width, height = (right - left) or 1, (top - bottom) or 1
    chart = {"x_label": "examples seen", "y_label": "loss, nats per answer token", "tuned_on": None}
    chart["x_ticks"] = [(100 * (k - left) / width, f"{10**k:,.0f}") for k in log_ticks(left, right)]
    chart["y_ticks"] = [(100 * (top - k) / height, f"{10**k:.2g}") for k in log_ticks(bottom, top)]
    chart["lines"] = [
        {
            "label": results["labels"][name],
            "color": color_of(results, name),
            "before": False,
            "points": [(100 * (a - left) / width, 100 * (top - b) / height) for a, b in points],
            "bars": [],
            "dots": len(points) == 1,
        }
        for name, points in curves.items()
    ]
    return chart


def log_ticks(low, high):
    """The whole numbers from low to high, or these two where fewer than two lie between."""
    whole = [float(k) for k in range(math.ceil(low), math.floor(high) + 1)]
    return whole if len(whole) > 1 else sorted({low, high})


def write_page(path, results, details):
    """Write report.html. Raises UserError where a result would stand without its start or the best context."""
    report.check_complete(results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # data may hold any text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # ranges and contenders in their own order
    by_length = not results["answers"] and not results["args"]["own_data"]
    page = environment.get_template("report.html.jinja").render(
        r=results,
        details=details,
        red=plots.RED,
        rows=table_rows(results),
        table=(report.class_table if results["answers"] else report.table)(results),
        notes=report.losses_against_start(results) + (report.base_is_the_limit(results) if results["answers"] else []),
        seen=report.what_tuning_saw(results),
        lengths=length_chart(results) if by_length else None,
        losses=loss_chart(results) if results["loss"] else None,
    )
    write_text(path, page)


def main(argv=None):
    p = argparse.ArgumentParser(prog="python -m eval.page", description=__doc__)
    p.add_argument("out", type=Path, metavar="FOLDER", help="of a run, with results.json and details.json")
    out = p.parse_args(argv).out
    read = [schemas.read_json(out / name, dict, "run it again") for name in ("results.json", "details.json")]
    try:
        write_page(out / "report.html", *read)
    except (LookupError, TypeError, AttributeError, ArithmeticError, jinja2.TemplateError) as error:
        raise UserError(f"{out} holds no results of this version ({error!r}): run it again") from None


if __name__ == "__main__":
    errors.run_main(main, "python -m eval.page")
