"""The figures that a paper shows, all from the content of results.json or of a study."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from eval.accuracy import wilson
from files.safe import replacing

RED = "#c1272d"  # of whatever was tuned
COLORS = {
    "hybrid": RED,
    "hybrid-instruction": "#e08a2e",
    "finetune": "#7a4fa3",
    "scratch": "#1f5fa8",
    "few-shot": "#2f7d3b",
    "text": "#8fbf6a",
    "zero-shot": "#8a8a8a",
}


def finish(fig, axis, path):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    write(fig, path)


def write(fig, path):
    """A PNG."""
    with replacing(path) as temporary:
        fig.savefig(temporary, dpi=160)
    plt.close(fig)


def plot_loss(results, path):
    """Training loss in nats per answer token against examples seen, smoothed over 20 steps."""
    fig, axis = plt.subplots(figsize=(5.2, 3.6), constrained_layout=True)
    for method, curve in results["loss"].items():
        n = min(20, len(curve["loss"]))
        smooth = [sum(curve["loss"][i : i + n]) / n for i in range(len(curve["loss"]) - n + 1)]
        axis.plot(
            curve["examples"][n - 1 :], smooth, label=results["labels"][method], color=color_of(results, method), lw=1.5
        )
    axis.set(xlabel="examples seen", ylabel="loss (nats per answer token)", yscale="log", title=results["task"])
    finish(fig, axis, path)


def plot_lengths(results, path):
    """Accuracy against length with 95% intervals; dashed before tuning. The lengths tuned on are shaded."""
    fig, axis = plt.subplots(figsize=(7.2, 4.2), constrained_layout=True)
    low, high = results["in_distribution_lengths"]
    axis.axvspan(low - 0.5, high + 0.5, color="#000000", alpha=0.06, lw=0, label="tuned on")
    for name, after in results["accuracy"].items():
        style = {"color": color_of(results, name), "marker": "o", "ms": 4, "lw": 1.5, "capsize": 2}
        label = results["labels"][name]
        x, y, errors = by_length(after, results["new_words"])
        axis.errorbar(x, y, errors, label=label, **style)
        if name in results["before"] and name != "scratch":
            _, y, errors = by_length(results["before"][name], results["new_words"])
            axis.errorbar(x, y, errors, label=f"{label}, before", ls="--", mfc="white", **style)
        axis.set_xticks(x)
    axis.set(xlabel=results["unit"], ylabel="final-answer accuracy (%)", ylim=(-4, 104), title=results["task"])
    finish(fig, axis, path)


def by_length(by_range, new_words):
    """Lengths, accuracy in % and how far its interval reaches below and above, of the ranges without new words."""
    points = {}
    for name, a in by_range.items():
        if name not in new_words:
            points |= {int(length): (v["correct"], v["n"]) for length, v in a["by_length"].items()}
    x = sorted(points)
    y = [100 * points[k][0] / points[k][1] for k in x]
    bounds = [wilson(*points[k]) for k in x]
    below = [max(0, v - 100 * low) for v, (low, _) in zip(y, bounds)]
    above = [max(0, 100 * high - v) for v, (_, high) in zip(y, bounds)]
    return x, y, [below, above]


def color_of(results, name):
    """A color for each contender: the first prompt's is red."""
    return COLORS.get(name) or plt.cm.tab10(4 + list(results["accuracy"]).index(name) % 6)


def plot_confusion(results, method, path):
    """What was chosen for each true answer, in % of the true answer's questions."""
    names, counts = results["answers"], results["classes"][method]["confusion"]
    share = [[100 * n / max(1, sum(row)) for n in row] for row in counts]
    size = max(3.2, 0.55 * len(names) + 1.6)
    fig, axis = plt.subplots(figsize=(size + 0.6, size), constrained_layout=True)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for i, row in enumerate(share if len(names) <= 12 else []):  # more would not be legible
        for j, v in enumerate(row):
            axis.text(j, i, f"{v:.0f}", ha="center", va="center", fontsize=8, color="white" if v > 55 else "#333333")
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), [f"{n} ({sum(row)})" for n, row in zip(names, counts)], fontsize=8)
    axis.set(xlabel="chosen", ylabel="true (questions)", title=f"{results['task']}, {results['labels'][method]} (%)")
    write(fig, path)


# ---------------------------------------------------------------- studies of compare.py

CONTEXTS = "the example as text", "best context"  # drawn in every figure of a study
MOST_ROWS = 15  # contenders in a figure, besides these


def plot_study(rows, folder, along=""):
    """Figures for each task of a study, figure_TASK.png, with a panel for each range. Of more contenders than a wall
    shows legibly some go to a next figure, figure_TASK_2.png."""
    for task in dict.fromkeys(r["task"] for r in rows):
        task_rows = [r for r in rows if r["task"] == task]
        contexts = [r for r in task_rows if r["series"] in CONTEXTS]
        others = [r for r in task_rows if r not in contexts]
        asked = task_rows if along else others or contexts  # contexts are not asked another task, which a dot may be of
        ranges = [name for name in asked[0]["accuracy"] if all(name in r["accuracy"] for r in asked)]
        path = Path(folder) / f"figure_{task.replace(':', '-')}.png"
        if along:
            plot_curves(task_rows, ranges, task, along, path)
            continue
        n = -(-len(others) // MOST_ROWS) or 1
        for i in range(n):
            part = others[i * len(others) // n : (i + 1) * len(others) // n] + contexts
            plot_dots(part, ranges, task, path.with_stem(f"{path.stem}_{i + 1}") if i else path)


def plot_curves(rows, ranges, task, along, path):
    """Up to three panels side by side, of four two, the legend below them."""
    columns = 2 if len(ranges) == 4 else min(3, len(ranges))
    lines = -(-len(ranges) // columns)
    size = 4.2 * columns + 0.6, 3.5 * lines + 1.8
    fig, panels = plt.subplots(lines, columns, figsize=size, constrained_layout=True, sharey=True, squeeze=False)
    series = list(dict.fromkeys(r["series"] for r in rows))
    for panel, name in zip(panels.flat, ranges):
        style_panel(panel, name)
        draw_curves(panel, rows, name, series)
    for panel in panels.flat[len(ranges) - columns : len(ranges)]:  # those with none below them
        panel.set_xlabel(along, fontsize=14)
    for panel in panels.flat[len(ranges) :]:
        panel.axis("off")
    fig.suptitle(f"{task}: final-answer accuracy (%)", fontsize=16)
    labels = panels.flat[0].get_legend_handles_labels()
    fig.legend(*labels, frameon=False, fontsize=14, loc="outside lower center", ncols=columns)
    write(fig, path)


def plot_dots(rows, ranges, task, path):
    """A panel for each range side by side, a line for each contender."""
    series = list(dict.fromkeys(r["series"] for r in rows))
    size = 2.2 * len(ranges) + 3.2, 0.38 * len(series) + 2
    fig, (panels,) = plt.subplots(1, len(ranges), figsize=size, constrained_layout=True, sharey=True, squeeze=False)
    for panel, name in zip(panels, ranges):
        style_panel(panel, name)
        draw_dots(panel, rows, name, series)
    fig.suptitle(f"{task}: final-answer accuracy (%)", fontsize=16)
    fig.supxlabel("hollow before tuning, red after; dashed line: best context", fontsize=14)
    write(fig, path)


def style_panel(panel, name):
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
    panel.tick_params(labelsize=13)
    panel.set_title(f"on\n{name[3:]}" if name.startswith("on ") else name, fontsize=15)


def draw_curves(panel, rows, name, series):
    """Accuracy on one range along an axis, with the lowest and highest seed shaded: dashed before tuning. What has no
    place on the axis, such as the best context, is a gray line."""
    for i, s in enumerate(series):
        line = sorted((r["x"], r["accuracy"][name], r["before"].get(name)) for r in rows if r["series"] == s and r["x"])
        if not line:
            flat = next(r["accuracy"][name][0] for r in rows if r["series"] == s)
            dash = 1 + 2 * (CONTEXTS.index(s) if s in CONTEXTS else 2 + i % 4)  # a context looks alike in every figure
            panel.axhline(flat, color="#777777", ls=(0, (dash, 2)), lw=1.5, label=s)
            continue
        x, after, before = zip(*line)
        mean, low, high = zip(*after)
        color = plt.cm.tab10(i % 10)
        panel.plot(x, mean, color=color, marker="o", ms=4, label=s)
        panel.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
        if all(before):
            panel.plot(x, [start for start, _, _ in before], color=color, ls="--", lw=1, alpha=0.7)
    at = sorted({r["x"] for r in rows if r["x"]})
    panel.set(xscale="log", ylim=(-4, 104))
    panel.set_xticks(at, [f"{x:,}" if x < 1e6 else f"{x / 1e6:.1f}M" for x in at])
    panel.minorticks_off()


def draw_dots(panel, rows, name, series):
    """Every contender's accuracy on one range: from a hollow dot before tuning to a red one after it."""
    for r in rows:
        if name not in r["accuracy"]:
            continue
        y, (mean, _, _) = -series.index(r["series"]), r["accuracy"][name]
        if r["series"] == "best context":
            panel.axvline(mean, color=COLORS["few-shot"], ls="--", lw=1.5)
        if name in r["before"]:
            start = r["before"][name][0]
            panel.plot([start, mean], [y, y], color=RED, lw=1, alpha=0.5)
            panel.plot(start, y, "o", ms=6, mfc="white", mec=RED)
        panel.plot(mean, y, "o", ms=7, color=RED if name in r["before"] else COLORS["few-shot"])
    panel.set_yticks([-i for i in range(len(series))], series, fontsize=14)
    panel.set_xticks([0, 50, 100])
    panel.set(xlim=(-4, 104), ylim=(0.5 - len(series), 0.6))


def plot_heat(rows, path):
    """Which task's prompt (down) is a good start on which task (across): accuracy in distribution before > after tuning
    on it, in %, the color after. Below it other starts on the same task, tuned on as many examples."""
    names = list(dict.fromkeys(r["task"] for r in rows))
    starts = list(dict.fromkeys(r["series"] for r in rows if r["before"] and "on " + names[0] not in r["accuracy"]))
    table = {r["task"]: r for r in rows if "on " + names[0] in r["accuracy"]}
    labels = [f"prompt of {name}" for name in names] + starts
    cells = [[(table[a]["before"][f"on {b}"][0], table[a]["accuracy"][f"on {b}"][0]) for b in names] for a in names]
    for start in starts:
        of = {r["task"]: r for r in rows if r["series"] == start}
        first = next(iter(of[names[0]]["accuracy"]))
        cells.append([(of[b]["before"][first][0], of[b]["accuracy"][first][0]) for b in names])
    size = 1.5 * len(names) + 3, 0.6 * len(labels) + 1.8
    fig, axis = plt.subplots(figsize=size, constrained_layout=True)
    lowest = min(after for row in cells for _, after in row) - 1
    axis.imshow([[after for _, after in row] for row in cells], cmap="Blues", vmin=lowest, vmax=100, aspect="auto")
    for i, row in enumerate(cells):
        for j, (before, after) in enumerate(row):
            color = "white" if after > (lowest + 100) / 2 else "#333333"
            axis.text(j, i, f"{before:.0f} > {after:.0f}", ha="center", va="center", fontsize=11, color=color)
    axis.axhline(len(names) - 0.5, color="white", lw=4)
    axis.set_xticks(range(len(names)), names, fontsize=11, rotation=20, ha="right")
    axis.set_yticks(range(len(labels)), labels, fontsize=11)
    axis.set_xlabel("tuned on a tenth of its examples, four times over", fontsize=11)
    fig.suptitle("accuracy (%), before > after tuning", fontsize=12)
    write(fig, path)
