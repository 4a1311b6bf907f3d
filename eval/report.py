"""The table a person reads and the plots a paper shows, both from results.json's content."""

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from eval.accuracy import wilson

RED = "#c1272d"  # of whatever was tuned
COLOURS = {
    "finetune": "#b8860b",
    "scratch": "#1f5fa8",
    "few-shot": "#4c9a4c",
    "zero-shot": "#8a8a8a",
}


def table(results):
    """Final-answer accuracy of each method on each range, with its interval, as lines of text."""
    ranges = list(next(iter(results["accuracy"].values())))
    lines = [f"{'final answer right, % [95%]':<28}" + "".join(f"{r:>22}" for r in ranges)]
    for method, by_range in results["accuracy"].items():
        cells = [
            f"{100 * a['correct'] / max(1, a['n']):.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]"
            for a in by_range.values()
        ]
        lines.append(f"{results['labels'][method]:<28}" + "".join(f"{c:>22}" for c in cells))
    lines.append("every step right, %")
    for method, by_range in results["accuracy"].items():
        lines.append(
            f"{results['labels'][method]:<28}"
            + "".join(f"{100 * a['exact_match'] / max(1, a['n']):>22.1f}" for a in by_range.values())
        )
    lines.append(
        f"{'questions':<28}" + "".join(f"{a['n']:>22}" for a in next(iter(results["accuracy"].values())).values())
    )
    return "\n".join(lines)


def class_table(results):
    """Accuracy of the likeliest answer, macro-F1 and exact match of each method, as lines of text."""
    lines = [f"{'':<28}{'likeliest, % [95%]':>24}{'macro-F1, %':>14}{'exact match, %':>16}"]
    for method, by_range in results["accuracy"].items():
        (exact,) = by_range.values()
        cells = f"{'':>24}{'':>14}"
        if c := results["classes"].get(method):
            share = f"{100 * c['correct'] / c['n']:.1f} [{100 * c['low']:.1f}, {100 * c['high']:.1f}]"
            cells = f"{share:>24}{100 * c['macro_f1']:>14.1f}"
        lines.append(f"{results['labels'][method]:<28}{cells}{100 * exact['correct'] / exact['n']:>16.1f}")
    lines.append(f"{'questions':<28}{exact['n']:>24}")
    return "\n".join(lines)


def reading(rows, most=12):
    """The tuned prompt as its nearest tokens, a line a row, the first `most` of each kind."""
    lines = [f"{'row':>4}  {'began as':<12} {'cosine to start':>15}   nearest tokens now (cosine)"]
    for kind in (True, False):
        some = [(i, r) for i, r in enumerate(rows) if (r["began"] is None) == kind]
        for i, r in some[:most]:
            near = "  ".join(f"{t!r} {c:.2f}" for t, c in r["nearest"])
            lines.append(
                f"{i:>4}  {'random' if r['began'] is None else repr(r['began']):<12} {r['moved']:>15.2f}   {near}"
            )
        if len(some) > most:
            lines.append(f"      ... {len(some) - most} more in results.json")
    return "\n".join(lines)


def finish(fig, axis, path):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=9)
    write(fig, path)


def write(fig, path):
    """A PNG, under a temporary name and renamed."""
    path = Path(path)
    fig.savefig(path.with_name("tmp.png"), dpi=160)
    os.replace(path.with_name("tmp.png"), path)
    plt.close(fig)


def plot_loss(results, path):
    """Training loss in nats per answer token against examples seen, smoothed over 20 steps."""
    fig, axis = plt.subplots(figsize=(5.2, 3.6), constrained_layout=True)
    for method, curve in results["loss"].items():
        n = min(20, len(curve["loss"]))
        smooth = [sum(curve["loss"][i : i + n]) / n for i in range(len(curve["loss"]) - n + 1)]
        axis.plot(
            curve["examples"][n - 1 :], smooth, label=results["labels"][method], color=COLOURS.get(method, RED), lw=1.5
        )
    axis.set(xlabel="examples seen", ylabel="loss (nats per answer token)", yscale="log", title=results["task"])
    finish(fig, axis, path)


def plot_lengths(results, path):
    """Accuracy against length with 95% intervals; the lengths tuned on are shaded."""
    fig, axis = plt.subplots(figsize=(5.2, 3.6), constrained_layout=True)
    low, high = results["in_distribution_lengths"]
    axis.axvspan(low - 0.5, high + 0.5, color="#000000", alpha=0.06, lw=0, label="tuned on")
    for method, by_range in results["accuracy"].items():
        points = {}
        for name, a in by_range.items():
            if name not in results["new_words"]:
                points |= {int(k): v for k, v in a["by_length"].items()}
        x = sorted(points)
        y = [100 * points[k]["correct"] / points[k]["n"] for k in x]
        bounds = [wilson(points[k]["correct"], points[k]["n"]) for k in x]
        errors = [
            [max(0, v - 100 * b[0]) for v, b in zip(y, bounds)],
            [max(0, 100 * b[1] - v) for v, b in zip(y, bounds)],
        ]
        axis.errorbar(
            x,
            y,
            errors,
            label=results["labels"][method],
            color=COLOURS.get(method, RED),
            marker="o",
            ms=4,
            lw=1.5,
            capsize=2,
        )
        axis.set_xticks(x)
    axis.set(xlabel=results["unit"], ylabel="final answer right (%)", ylim=(-4, 104), title=results["task"])
    finish(fig, axis, path)


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
