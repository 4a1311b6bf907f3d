"""The figures of a run, from results.json, and of a study, from its rows."""

import base64
import io
import math
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}  # whatever a user has for figures of their own
import matplotlib
import matplotlib.pyplot as plt
from matplotlib.font_manager import fontManager

from eval.accuracy import wilson
from files.errors import UserError, note
from files.safe import replacing

INK = "#6c6760"  # the soft gray of report.html
RED = "#c1272d"  # what was tuned
NOT_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF], "\ufffd")  # with one there is no SVG
COLORS = {
    "hybrid": RED,
    "finetune": "#7a4fa3",
    "scratch": "#1f5fa8",
    "few-shot": "#2f7d3b",
    "one-shot": "#8fbf6a",
    "text": "#e08a2e",
    "zero-shot": "#8a8a8a",
}
matplotlib.rcdefaults()
FONTS = "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "Arial Unicode MS"
installed = {font.name for font in fontManager.ttflist}
plt.rc("font", family=["DejaVu Sans", *(name for name in FONTS if name in installed)])
matplotlib.use("agg")
plt.rc("text", color=INK, parse_math=False)  # labels may hold a $
plt.rc("axes", grid=True, labelcolor=INK, edgecolor=INK)
plt.rc("axes.spines", top=False, right=False)
plt.rc(("xtick", "ytick"), color=INK)
plt.rc("svg", fonttype="none", hashsalt="")  # the same figure gives the same SVG
plt.rc("figure.constrained_layout", use=True)
plt.rc("grid", alpha=0.25)
plt.rc("legend", frameon=False)
plt.rc("errorbar", capsize=2)


@contextmanager
def costing_the_picture(name):
    """A picture that fails inside costs the picture: a line says why, and nothing is raised."""
    try:
        yield
    except UserError:  # it cannot be written
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        print(f"{name} gives no picture: {why}", file=sys.stderr)
        plt.close("all")


def draw_run(results, folder=None):
    """Write the figures of a run to a folder as PNG files; without one return {title: address of an SVG image}, for
    report.html. A picture that fails costs the picture."""
    found = {}
    for name, title, plot, is_drawn in (
        ("confusion", "What was taken for what", plot_confusion, results["answers"]),
        ("accuracy_by_length", "Accuracy by length", plot_lengths, not results["args"]["own_data"]),
        ("loss", "Loss while tuning", plot_loss, results["loss"]),
    ):
        with costing_the_picture(plot.__name__):
            if is_drawn:
                found[title] = write(plot(results), folder and folder / f"{name}.png")
    return found


def add_legend(fig, axis):
    fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", fontsize=9, ncols=2)
    return fig


def write(fig, path):
    """Write a figure as a PNG file; without a path return it as the address of an SVG image."""
    with warnings.catch_warnings(record=True) as missing:
        if path:
            with replacing(path) as temporary:
                fig.savefig(temporary, dpi=160)
        else:
            fig.savefig(svg := io.BytesIO(), format="svg", transparent=True, metadata={"Date": None})
            text = svg.getvalue().decode().translate(NOT_XML)
    plt.close(fig)
    if any("Glyph" in str(warning.message) for warning in missing):
        note(f"figures show boxes for characters that no font here has: install {FONTS[0]}")
    return path or "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def plot_loss(results):
    """Loss in nats per answer token over examples seen: the mean of the last 20 steps; dots for held-out examples."""
    fig, axis = plt.subplots(figsize=(5.6, 4.6))
    for name, curve in results["loss"].items():
        last = [curve["loss"][max(0, i - 19) : i + 1] for i in range(len(curve["loss"]))]
        smooth = [sum(losses) / len(losses) for losses in last]
        axis.plot(curve["examples"], smooth, label=results["labels"][name], color=color_of(results, name))
        if held_out := results["validation"].get(name):
            seen = [curve["examples"][step - 1] if step else 0 for step in held_out["steps"]]
            axis.plot(seen, held_out["loss"], "o:", label="the same, held-out", color=color_of(results, name))
    axis.set(xlabel="examples seen", ylabel="loss (nats per answer token)", yscale="log", title=results["task"])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
    return add_legend(fig, axis)


def plot_lengths(results):
    """Accuracy over length with 95% intervals, dashed before tuning. The lengths that were tuned on are shaded."""
    fig, axis = plt.subplots(figsize=(5.6, 4.6))
    low, high = results["in_distribution_lengths"]
    axis.axvspan(low - 0.5, high + 0.5, color=INK, alpha=0.1, lw=0, label="tuned on")
    for name, after in results["accuracy"].items():
        label, before = results["labels"][name], results["before"].get(name)
        drawn = [(after, label, {})]
        if before and name != "scratch":
            drawn.append((before, f"{label}, before", {"ls": "--", "mfc": "white"}))
        for by_range, text, style in drawn:
            x, y, errors = length_curve(by_range, results["new_words"])
            axis.errorbar(x, y, errors, label=text, color=color_of(results, name), marker="o", ms=4, **style)
        axis.set_xticks(x)
    axis.set(xlabel=results["unit"], ylabel="final-answer accuracy (%)", ylim=(-4, 104), title=results["task"])
    return add_legend(fig, axis)


def length_curve(by_range, new_words):
    """Lengths, accuracy in %, and the reach of its interval below and above, of the ranges without new words."""
    counts = {int(x): c for name, a in by_range.items() if name not in new_words for x, c in a["by_length"].items()}
    shares = [(c["correct"] / c["n"], *wilson(c["correct"], c["n"])) for _, c in sorted(counts.items())]
    points = [[100 * share for share in some] for some in shares]
    return sorted(counts), [y for y, _, _ in points], reach(points)


def reach(points):
    """How far whiskers reach below and above, from points (y, lowest, highest)."""
    return [[max(0, y - low) for y, low, _ in points], [max(0, high - y) for y, _, high in points]]


def color_of(results, name):
    """The color of a contender; the run's own method is red."""
    if name in COLORS or name == results["method"]:
        return COLORS.get(name, RED)
    return plt.cm.tab10(4 + list(results["accuracy"]).index(name) % 6)


def plot_confusion(results):
    """What was chosen for each true answer, in % of the true answer's questions: the more, the darker."""
    names, (score,) = [name[:24] for name in results["answers"]], results["accuracy"][results["method"]].values()
    confusion, label = score["confusion"], results["labels"][results["method"]]
    shares = [[100 * n / max(1, sum(row)) for n in row] for row in confusion]
    fig, axis = plt.subplots(figsize=(0.7 * len(names) + 3, 0.6 * len(names) + 1.8))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(shares if len(names) <= 12 else ()):  # more would not be legible
        for j, share in enumerate(row):
            color = "white" if share > 50 else "#333333"
            axis.text(j, i, f"{share:.0f}", ha="center", va="center", color=color)
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axis.set_yticks(range(len(names)), [f"{name} ({sum(row)})" for name, row in zip(names, confusion)])
    axis.grid(False)
    axis.set(xlabel="chosen", ylabel="true (questions)", title=f"{results['task']}\n{label} (%)")
    return fig


CONTEXTS = "the example as text", "best context"  # in every figure of a study


def plot_study(rows, folder, along=""):
    """Write figure_TASK.png for each task of a study, a panel for each range; `along` names the axis of x. A picture
    that fails costs the picture."""
    for task in dict.fromkeys(r["task"] for r in rows):
        with costing_the_picture(f"the study of {task}"):
            plot_task(task, [r for r in rows if r["task"] == task], folder, along)


def plot_task(task, task_rows, folder, along):
    asked = [r for r in task_rows if r["series"] not in CONTEXTS] or task_rows  # contexts see no other task
    ranges = [name for name in asked[0]["accuracy"] if all(name in r["accuracy"] for r in asked)]
    series = {}  # {name: its rows}
    for r in task_rows:
        series.setdefault(r["series"], []).append(r)
    columns = min(3, len(ranges)) if along else len(ranges)
    lines = math.ceil(len(ranges) / columns)
    size = (4.2 * columns + 0.6, 3.5 * lines + 1.8) if along else (2.2 * columns + 3.2, 0.38 * len(series) + 2)
    fig, panels = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    fig.suptitle(f"{task}: final-answer accuracy (%)", fontsize=16)
    for panel, name in zip(panels.flat, ranges):
        panel.set_title(name.replace("on ", "on\n"), fontsize=15)
        panel.tick_params(labelsize=13)
        draw_curves(panel, series, name, along) if along else draw_dots(panel, series, name)
    for panel in panels.flat[len(ranges) :]:
        panel.remove()
    path = Path(folder) / f"figure_{task.replace(':', '-')}.png"
    if along:
        add_legend(fig, panels[0, 0])
    else:
        fig.supxlabel("hollow before tuning, red after; dashed line: best context", fontsize=14)
    write(fig, path)


def draw_curves(panel, series, name, along):
    """Accuracy along an axis with whiskers from the lowest to the highest seed, dashed before tuning. What has no place
    on the axis, such as the best context, is a gray line."""
    for i, (label, rows) in enumerate(series.items()):
        rows = sorted(rows, key=lambda r: r["x"] or 0)
        points = [r["accuracy"].get(name, [math.nan] * 3) for r in rows]
        if not rows[-1]["x"]:
            panel.axhline(points[0][0], color=INK, ls=("--", ":", "-.")[i % 3], label=label)
            continue
        x, color = [r["x"] for r in rows], plt.cm.tab10(i % 10)
        panel.errorbar(x, [y for y, _, _ in points], reach(points), color=color, marker="o", ms=4, label=label)
        panel.plot(x, [r["before"].get(name, [math.nan])[0] for r in rows], color=color, ls="--", lw=1)
    panel.set(xscale="log", ylim=(-4, 104), xlabel=along)
    at = sorted({r["x"] for rows in series.values() for r in rows if r["x"]})
    panel.set_xticks(at, [f"{x:,}" for x in at])
    panel.minorticks_off()


def draw_dots(panel, series, name):
    """A line for each contender: from a hollow dot before tuning to a red one after it, with a whisker from the lowest
    to the highest seed."""
    for i, (label, rows) in enumerate(series.items()):
        for r in (r for r in rows if name in r["accuracy"]):
            mean, color = r["accuracy"][name][0], RED if name in r["before"] else COLORS["few-shot"]
            if label == "best context":
                panel.axvline(mean, color=color, ls="--")
            if name in r["before"]:
                start = r["before"][name][0]
                panel.plot([start, mean], [-i, -i], color=RED, lw=1, alpha=0.5)
                panel.plot(start, -i, "o", ms=6, mfc="white", mec=RED)
            panel.errorbar(mean, -i, xerr=reach([r["accuracy"][name]]), fmt="o", ms=7, color=color)
    panel.set_yticks([-i for i in range(len(series))], series, fontsize=14)
    panel.set(xticks=[0, 50, 100], xlim=(-4, 104), ylim=(0.5 - len(series), 0.6))
