"""Makes every figure and generated table of README.md and docs/ from the JSON files in docs/.

    python -m research.figures             # all of them again
    python -m research.figures out/demo    # first copies the numbers of a finished run of the demo to docs/addition.json

A page is written by hand, and the text between its two comments `<!-- figures -->` and `<!-- end -->` is replaced.
"""

import argparse
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import tasks
from eval import plots, report
from files.errors import run_main
from files.safe import write_json, write_text
from research.studies import AXES, LEARNED_FROM, STUDIES
from tasks import IN_DISTRIBUTION

ROOT = Path(__file__).parent.parent
DOCS, STUDY_FILES = ROOT / "docs", ROOT / "docs" / "results" / "nano-2"
RED, GREEN, PURPLE, BLUE, GRAY = (plots.COLORS[n] for n in ("hybrid", "few-shot", "finetune", "scratch", "zero-shot"))
COPIED = ("task", "unit", "in_distribution_lengths", "labels", "accuracy", "before")  # of the demo's results.json
TASKS = "addition", "multiplication", "symbolic_sum", "word_reversal", "last_letter"
STARTS = {  # of the prompts in the figure of five tasks: title, the prompt's row in methods.json, LoRA's row
    "prompt starts as the instruction,\nLoRA has nothing in its context": ("hybrid, instruction", "lora"),
    "prompt starts as one worked example,\nLoRA has the same example in its context": ("hybrid", "lora, 1 shot"),
}


def replace(path, text):
    """Puts text between the two comments of a page."""
    before, _, rest = path.read_text().partition("<!-- figures -->\n")
    write_text(path, f"{before}<!-- figures -->\n{text}<!-- end -->{rest.partition('<!-- end -->')[2]}")


def draw_idea(path):
    """Text, rows, or keys and values in front of a frozen model."""
    fig, panels = plt.subplots(1, 3, figsize=(9.6, 3.1), constrained_layout=True)
    kinds = ("text: words", GREEN, ["Find", "the", "sum", ":"]), ("rows: trained vectors", RED, ["row"] * 4)
    kinds += (("keys and values: trained", RED, ["", "", "", ""]),)
    for panel, (title, color, prompt) in zip(panels, kinds):
        trained = [prompt[0] == "row", prompt[0] == ""]  # the input, or what is in the layers
        for layer in range(3):
            panel.add_patch(plt.Rectangle((-0.6, layer - 0.4), 8.2, 0.8, fc="#eeeeee", ec="#bbbbbb"))
            panel.plot(range(4), [layer] * 4, "s", ms=9, mec=color, mfc=color if trained[1] else "white", mew=1.4)
            panel.plot(range(4, 8), [layer] * 4, "s", ms=9, mec="#999999", mfc="white", mew=1.4)
            arrow = {"arrowstyle": "->", "color": "#555555", "connectionstyle": "arc3,rad=-0.25"}
            panel.annotate("", (6, layer + 0.14), (1.5, layer + 0.14), arrowprops=arrow)
        for x, word in enumerate([*prompt, *"12+3"]):
            ink, paper = (color if x < 4 else "#555555"), (RED if word == "row" else "white")
            box = {"boxstyle": "round,pad=0.25", "fc": paper, "ec": ink} if word else None
            panel.text(x, -0.9, word, bbox=box, size=8, ha="center", color="white" if paper == RED else ink)
        panel.annotate("answer", (7, 2.4), (7, 2.95), arrowprops={"arrowstyle": "<-"}, ha="center", size=9)
        for x, text in (1.5, "prompt"), (5.5, "question"):
            panel.text(x, -1.5, text, size=9, ha="center", color=color if x < 4 else "#555555")
        panel.set_title(title, size=11, color=color)
        panel.set(xlim=(-0.8, 7.8), ylim=(-1.6, 3.2))
        panel.axis("off")
    panels[0].text(-0.5, 2.6, "frozen model", size=9, color="#777777")
    note = "squares: keys and values; filled: trained; hollow: computed by the frozen model; arrows: attention"
    fig.supxlabel(note, fontsize=10, color="#555555")
    plots.write(fig, path)


def draw_addition(results, path):
    """Accuracy of the demo's two prompts by number of digits: start, end, best context and the model from scratch."""
    fig, panels = plt.subplots(1, 2, figsize=(9.6, 3.6), constrained_layout=True, sharey=True)
    last = max(results["in_distribution_lengths"])
    for panel, name, title in (
        (panels[0], "hybrid-instruction", "prompt starts as the instruction"),
        (panels[1], "hybrid", "prompt starts as one worked example"),
    ):
        plots.style_panel(panel, title)
        panel.title.set_size(12)
        panel.axvspan(0.5, last + 0.5, color="#000000", alpha=0.05, lw=0)
        panel.text((last + 1) / 2, -14, "trained on", ha="center", size=10, color="#777777")
        curves = [plots.by_length(results[k][n], [])[:2] for k, n in (("before", name), ("accuracy", name))]
        panel.fill_between(curves[0][0], curves[0][1], curves[1][1], color=RED, alpha=0.13, lw=0, label="tuning adds")
        for (x, y), style, label in zip(curves, ({"ls": "--", "mfc": "white"}, {"lw": 2}), ("start", "end")):
            panel.plot(x, y, color=RED, marker="o", ms=5, label=label, **style)
        for other, color, label in (("few-shot", GREEN, "best context"), ("scratch", BLUE, "trained from scratch")):
            panel.plot(*plots.by_length(results["accuracy"][other], [])[:2], color=color, lw=1.5, label=label)
        panel.set(xlabel="digits of the numbers", ylim=(-20, 106), yticks=[0, 25, 50, 75, 100])
        panel.set_xticks(curves[0][0])
    panels[0].set_ylabel("right answers, %")
    panels[1].legend(frameon=False, fontsize=10, loc="center left", bbox_to_anchor=(1, 0.5))
    plots.write(fig, path)


def draw_tasks(rows, path):
    """The start and end of two prompts, LoRA and the best context on every range of five tasks."""
    place = {(r["task"], r["series"]): r for r in rows}
    lines = [(task, name) for task in TASKS for name in place[task, "best context"]["accuracy"]]
    y = [-i - 0.9 * TASKS.index(task) for i, (task, _) in enumerate(lines)]
    fig, panels = plt.subplots(1, 2, figsize=(9.6, 6.6), constrained_layout=True, sharey=True)
    for panel, (title, (prompt, lora)) in zip(panels, STARTS.items()):
        plots.style_panel(panel, title)
        panel.title.set_size(11)
        for (task, name), at in zip(lines, y):
            start, end = place[task, prompt]["before"][name], place[task, prompt]["accuracy"][name]
            weights, context = place[task, lora]["accuracy"][name], place[task, "best context"]["accuracy"][name]
            for (_, low, high), color, up in ((end, RED, 0.17), (weights, PURPLE, -0.2)):
                panel.plot([low, high], [at + up] * 2, color=color, lw=4, alpha=0.25, solid_capstyle="round")
            panel.plot([context[0]] * 2, [at - 0.36, at + 0.36], color=GREEN, lw=2.5, label="best context")
            panel.plot(start[0], at + 0.17, "o", ms=6, mfc="white", mec=RED, label="prompt: start")
            panel.plot(end[0], at + 0.17, "o", ms=6, color=RED, label="prompt: end")
            panel.plot(weights[0], at - 0.2, "D", ms=5, color=PURPLE, label="LoRA: end")
        panel.set(xlim=(-4, 104), xticks=[0, 25, 50, 75, 100])
        panel.set_xlabel("right answers, %", fontsize=11)
        panel.tick_params(labelsize=10)
    names = [f"{task}: {tuned_lengths(task)}" if name == IN_DISTRIBUTION else name for task, name in lines]
    panels[0].set_yticks(y, names)
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels())))
    fig.legend(handles.values(), handles, frameon=False, fontsize=11, loc="outside lower center", ncols=4)
    plots.write(fig, path)


def tuned_lengths(name):
    task = tasks.load(name)
    return "{}-{} {}".format(*task.ranges[IN_DISTRIBUTION], task.unit)


def demo_table(results):
    """Markdown: accuracy of the demo's contenders, before and after tuning."""
    ranges = list(results["accuracy"]["few-shot"])
    lines = [f"| right answers, % | {' | '.join(ranges)} |", "| --- |" + " --- |" * len(ranges)]
    for name, label in results["labels"].items():
        for key, when in (("before", ", start"), ("accuracy", ", end" if name in results["before"] else "")):
            if name in results[key] and (key, name) != ("before", "scratch"):
                cells = [f"{report.percent(results[key][name][r]):.1f}" for r in ranges]
                lines.append(f"| {label}{when} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def make_study(file):
    """The table and the figures of a study, in the page of the same name."""
    study, page = json.loads(file.read_text()), file.parent.parent / f"{file.stem}.md"
    name = max((n for n in STUDIES if file.stem.startswith(n)), key=len)
    learned = LEARNED_FROM.get(name, "{examples:,} examples to tune on, {questions} questions a range")
    settings, along = study["settings"], AXES.get(name, "")
    text = report.study_table(study["rows"], settings, 2, learned.format(**settings), along)
    with tempfile.TemporaryDirectory() as folder:
        plots.plot_study(study["rows"], folder, along)
        for figure in sorted(Path(folder).glob("*.png")):
            made = page.with_name(f"{name}_{figure.stem.removeprefix('figure_')}.png")
            made.write_bytes(figure.read_bytes())
            text += f"\n![{made.stem.replace('_', ' ')}]({made.name})\n"
    replace(page, text)


def main(argv=None):
    p = argparse.ArgumentParser(prog="figures.py", description=__doc__.partition("\n")[0])
    p.add_argument("demo", nargs="?", type=Path, help="folder of a finished run of train_task.py --task addition")
    args = p.parse_args(argv)
    if args.demo:
        results = json.loads((args.demo / "results.json").read_text())
        write_json(DOCS / "addition.json", {key: results[key] for key in COPIED})
    for file in sorted(STUDY_FILES.glob("*.json")):
        make_study(file)
    draw_idea(DOCS / "idea.png")
    draw_tasks(json.loads((STUDY_FILES / "methods.json").read_text())["rows"], DOCS / "tasks.png")
    demo = json.loads((DOCS / "addition.json").read_text())
    draw_addition(demo, DOCS / "addition.png")
    replace(ROOT / "README.md", demo_table(demo))


if __name__ == "__main__":
    run_main(main, "figures.py")
