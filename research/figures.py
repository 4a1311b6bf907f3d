"""Makes every plot and generated table of README.md and docs/ again, from the JSON files in docs/.

    python -m research.figures                         # all of them
    python -m research.figures out/addition-nano-2     # the same; first copies that run's numbers to docs/addition.json

A page is written by hand; the text between its comments `<!-- figures -->` and `<!-- end -->` is replaced.
"""

import json
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from eval import plots, report
from files.errors import Parser, run_main
from files.safe import write_json, write_text
from research.studies import STUDIES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RED, GREEN, PURPLE, BLUE = (plots.COLORS[name] for name in ("hybrid", "few-shot", "finetune", "scratch"))
TUNED_ON = {"addition": "1-4 digits", "multiplication": "1-4 digits", "symbolic_sum": "2-5 terms"}
TUNED_ON |= {"word_reversal": "3-8 letters", "last_letter": "2-4 words", "trec-train": "6 classes"}
DEMO = {"one-shot": "one worked example", "few-shot": "best context", "scratch": "trained from scratch"}


def draw_addition(results, path):
    """Accuracy of the demo's contenders by number of digits: the prompt's start and end, text, and from scratch."""
    fig, panel = plt.subplots(figsize=(8, 3.4))
    panel.axvspan(0.5, max(results["in_distribution_lengths"]) + 0.5, color="#000000", alpha=0.06, lw=0)
    before, after = (plots.length_curve(results[key]["hybrid"], [])[:2] for key in ("before", "accuracy"))
    panel.fill_between(before[0], before[1], after[1], color=RED, alpha=0.13, lw=0, label="what tuning adds")
    panel.plot(*after, color=RED, marker="o", ms=5, lw=2, label="prompt, end")
    for name, label in DEMO.items():
        x, y, _ = plots.length_curve(results["accuracy"][name], [])
        panel.plot(x, y, color=plots.COLORS[name], lw=2, label=label)
    panel.plot(*before, color=RED, marker="o", ms=5, mfc="white", ls="--", label="prompt, start")
    panel.set(xlabel="digits of the numbers (gray: tuned on)", ylim=(-4, 106), xticks=before[0])
    panel.set_ylabel("right answers, %")
    panel.legend(fontsize=11, loc="center left", bbox_to_anchor=(1, 0.5))
    plots.write(fig, path)


def draw_tasks(path):
    """Start and end of prompts, LoRA and the best context on every range, on nano-2 and on SmolLM2."""
    fig, panels = plt.subplots(1, 2, figsize=(11, 6.6))
    series = {
        "rows at the input": ("hybrid", {"color": RED, "marker": "o"}),
        "keys and values": ("ptuning2", {"color": BLUE, "marker": "o"}),
        "LoRA": ("lora", {"color": PURPLE, "marker": "D"}),
        "LoRA behind an example": ("lora, 1 shot", {"color": PURPLE, "marker": "D", "mfc": "white"}),
    }
    draw_base(panels[0], read_rows("nano-2/headline"), series)
    draw_base(panels[1], read_rows("smollm2/real_base_text") + read_rows("smollm2/real_base"), series)
    panels[0].set_title("nano-2: pretrained on such tasks")
    panels[1].set_title("SmolLM2-135M: reversal is new to it")
    panels[0].plot([], [], "o", ms=6, mfc="white", mec=plots.INK, label="before tuning")
    labels = {label: handle for handle, label in zip(*panels[0].get_legend_handles_labels())}
    fig.legend(labels.values(), labels, fontsize=12, loc="outside lower center", ncols=3)
    plots.write(fig, path)


def draw_base(panel, rows, series):
    """A line for each range of each task. series: {label of the figure: (name in the rows, its color and marker)}."""
    place, ticks, y = {(r["task"], r["series"]): r for r in rows}, {}, 0
    for task in [name for name in TUNED_ON if (name, "best context") in place]:
        for name, context in place[task, "best context"]["accuracy"].items():
            panel.plot([context[0]] * 2, [y - 0.36, y + 0.36], color=GREEN, lw=2.5, label="best context")
            for i, (label, (which, style)) in enumerate(series.items()):
                if (row := place.get((task, which))) is None:
                    continue
                before, end = row["before"][name], row["accuracy"][name]
                color, at = style["color"], y + 0.3 - 0.2 * i
                panel.plot(end[1:], [at] * 2, color=color, lw=4, alpha=0.25, solid_capstyle="round")
                if style["marker"] == "o":  # a prompt: LoRA begins as the base
                    panel.plot(before[0], at, "o", ms=6, mfc="white", mec=color)
                panel.plot(end[0], at, ls="none", ms=6, label=label, **style)
            ticks[y] = f"{task.removesuffix('-train')}: {TUNED_ON[task]}" if name == "in-distribution" else name
            y -= 1
        y -= 0.7
    panel.set_yticks([*ticks], ticks.values())
    panel.set(xlim=(-4, 104), xticks=[0, 25, 50, 75, 100], xlabel="right answers, %")


def demo_table(results):
    """Markdown: accuracy of the demo's contenders, before and after tuning."""
    ranges = list(results["accuracy"]["few-shot"])
    tuned_on = "{}-{} {}".format(*results["in_distribution_lengths"], results["unit"])
    lines = [f"| right answers, % | {' | '.join([tuned_on, *ranges[1:]])} |", "| --- |" + " --- |" * len(ranges)]
    for name, label in results["labels"].items():
        for when in ["before"] * (name in results["before"] and name != "scratch") + ["accuracy"]:
            ending = {"before": ", start", "accuracy": ", end" * (name in results["before"])}[when]
            cells = [f"{report.percent(results[when][name][r]):.1f}" for r in ranges]
            lines.append(f"| {label}{ending} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{sentence}." for sentence in report.story(results))]) + "\n"


def read_rows(name):
    """The rows of a study, BASE/STUDY."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text())["rows"]


def study_table(file):
    """The name of a study, its rows, what its x axis is, and its table as Markdown. Two files may be of one study."""
    study, name = json.loads(file.read_text()), max((n for n in STUDIES if file.stem.startswith(n)), key=len)
    rows, settings, along = study["rows"], study["settings"], STUDIES[name].axis
    learned = STUDIES[name].learned_from.format(**settings)
    return name, rows, along, report.study_table(rows, settings, 2, learned, along)


def make_study(file):
    """The table and the figures of a study, in the page of the same name."""
    (name, rows, along, text), page = study_table(file), DOCS / "results" / f"{file.stem}.md"
    with tempfile.TemporaryDirectory() as folder:
        plots.plot_study(rows, folder, along)
        for figure in sorted(Path(folder).glob("*.png")):
            made = shutil.copy(figure, page.with_name(figure.name.replace("figure", name)))
            text += f"\n![{made.stem.replace('_', ' ')}]({made.name})\n"
    replace(page, text)


def replace(page, text):
    before, _, rest = page.read_text().partition("<!-- figures -->\n")
    write_text(page, f"{before}<!-- figures -->\n{text}<!-- end -->{rest.partition('<!-- end -->')[2]}")


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("demo", nargs="?", type=Path, help="folder of a finished run of train_task.py --task addition")
    folder = p.parse_args(argv).demo
    if folder:
        results, kept = json.loads((folder / "results.json").read_text()), DOCS / "addition.json"
        copied = "task", "unit", "in_distribution_lengths", "method", "answers", "labels", "accuracy", "before"
        write_json(kept, {key: results[key] for key in copied})
    demo = json.loads((DOCS / "addition.json").read_text())
    for file in sorted((DOCS / "results").glob("*/*.json")):
        make_study(file)
    draw_addition(demo, DOCS / "addition.png")
    draw_tasks(DOCS / "tasks.png")
    replace(ROOT / "README.md", demo_table(demo))


if __name__ == "__main__":
    run_main(main)
