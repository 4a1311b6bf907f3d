"""The figures that a paper shows, all from the content of results.json or of a study."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from checkpoint import replacing
from eval.accuracy import wilson

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


def panels(rows, width, height, columns):
    """A figure with a panel for each task: (figure, [(panel, task, its rows)])."""
    names = list(dict.fromkeys(r["task"] for r in rows))
    columns = min(columns, len(names))
    lines = -(-len(names) // columns)
    size = width * columns + 1.4, height * lines
    fig, axes = plt.subplots(lines, columns, figsize=size, constrained_layout=True, sharey=True, squeeze=False)
    for spare in axes.flat[len(names) :]:
        spare.axis("off")
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return fig, [(panel, task, [r for r in rows if r["task"] == task]) for panel, task in zip(axes.flat, names)]


LEGEND = {"frameon": False, "loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 5, "handlelength": 3}


def plot_curves(rows, path, along):
    """Accuracy along an axis: whole lines in distribution, dashed in the nearest range out of it. What has no place on
    the axis, such as the best context, is a horizontal line."""
    series = list(dict.fromkeys(r["series"] for r in rows))
    fig, tasks = panels(rows, 5.4, 5.0, 2)
    for panel, task, task_rows in tasks:
        ranges = list(task_rows[0]["accuracy"])[:2]
        for i, s in enumerate(series):
            for name, style in zip(ranges, ("-", "--")):
                line = sorted((r["x"], r["accuracy"][name]) for r in task_rows if r["series"] == s and r["x"])
                label, color = f"{s}, {name}", plt.cm.tab10(i % 10)
                if not line:
                    flat = [r["accuracy"][name][0] for r in task_rows if r["series"] == s]
                    panel.axhline(flat[0], ls=style, color=color, lw=1, alpha=0.7, label=label) if flat else None
                    continue
                x = [v for v, _ in line]
                mean, low, high = zip(*(a for _, a in line))
                panel.plot(x, mean, style, color=color, marker="o", ms=3.5, label=label)
                panel.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
        at = sorted({r["x"] for r in task_rows if r["x"]})
        panel.set(xscale="log", xlabel=along, title=task, ylim=(-4, 104), ylabel="final-answer accuracy (%)")
        panel.set_xticks(at, [f"{x:,}" if x < 1e6 else f"{x / 1e6:.1f}M" for x in at])
        panel.minorticks_off()
        panel.legend(fontsize=8, ncol=2, **LEGEND)
    write(fig, path)


def plot_dots(rows, path, _=""):
    """The ranges of every contender as dots, a color for each range; hollow before tuning."""
    series = list(dict.fromkeys(r["series"] for r in rows))
    fig, tasks = panels(rows, 4.6, 0.27 * len(series) + 1.4, 3)
    for panel, task, task_rows in tasks:
        ranges = list(task_rows[0]["accuracy"])
        for i, name in enumerate(ranges):
            color = plt.cm.viridis(i / max(1, len(ranges) - 0.6))
            for r in task_rows:
                y, (mean, _, _) = -series.index(r["series"]), r["accuracy"][name]
                if name in r["before"]:
                    start = r["before"][name][0]
                    panel.plot([start, mean], [y, y], color=color, lw=0.8, alpha=0.5)
                    panel.plot(start, y, "o", ms=5, mfc="white", mec=color)
                panel.plot(mean, y, "o", ms=6, color=color, alpha=0.9)
            panel.plot([], [], "o", color=color, label=name)
        panel.set_yticks([-i for i in range(len(series))], series, fontsize=10)
        panel.set(xlim=(-4, 104), ylim=(0.4 - len(series), 0.6), title=task)
        panel.set_xlabel("final-answer accuracy (%); hollow: before tuning")
        panel.legend(fontsize=9, ncol=2, **LEGEND)
    write(fig, path)
