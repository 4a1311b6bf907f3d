"""The tables that a program prints, from results.json or from the rows of a study."""

TEXTS = "zero-shot", "text", "one-shot", "few-shot"  # contenders without tuning


def heading(results, example):
    """What is run, in three or four lines."""
    base, method, prompt = results["base"], results["method"], results["prompt"]
    trainable = results["trainable"].get(method, 0)
    threads = results["record"]["threads"]
    lines = [
        f"{results['task']} on {base['name']}: {base['parameters']:,} frozen parameters, {trainable:,} trainable "
        f"({trainable / base['parameters']:.2%}), {results['labels'].get(method, method)}, {prompt['rows']} rows",
        f"an example: {example.question}{example.answer.rstrip()}",
        f"{threads['tuning']} thread{'s' * (threads['tuning'] > 1)} for tuning, {threads['measuring']} for measuring",
    ]
    return "\n".join(lines + [f"trigger: {prompt['trigger']!r}"] * bool(prompt["trigger"]))


def percent(a):
    return 100 * a["correct"] / max(1, a["n"])


def with_interval(a):
    return f"{percent(a):.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]"


def difference(after, before):
    return f"{percent(after) - percent(before):+.1f}"


def table(results):
    """Final-answer accuracy before and after tuning, what tuning adds, and exact match of each contender.

    Without the best context (--beside none) the comparison with it is left out.
    """
    after, before, labels = results["accuracy"], results["before"], results["labels"]
    context, ranges = after.get("few-shot"), list(next(iter(after.values())))
    rows = [["final-answer accuracy, % [95%]", *ranges]]
    for name, tuned in after.items():
        assert name in before or name not in results["loss"], f"{name}: no accuracy before tuning, so no table"
        if name not in before:
            rows.append([labels[name], *map(with_interval, tuned.values())])
            continue
        start = before[name]
        rows += [[labels[name]], ["  before tuning", *map(with_interval, start.values())]]
        rows.append(["  tuned", *map(with_interval, tuned.values())])
        rows.append(["  tuning adds to its start", *(difference(tuned[r], start[r]) for r in ranges)])
        if context:
            rows.append(["  and to the best context", *(difference(tuned[r], context[r]) for r in ranges)])
    if not results["answers"]:
        rows.append(["exact match (every step right), %"])
        for name, by_range in results["accuracy"].items():
            rows.append([labels[name], *(f"{100 * a['exact_match'] / max(1, a['n']):.1f}" for a in by_range.values())])
    rows.append(["questions", *(a["n"] for a in next(iter(after.values())).values())])
    width = 2 + max(len(label) for label, *_ in rows)
    lines = [f"{label:<{width}}{''.join(f'{cell:>22}' for cell in cells)}".rstrip() for label, *cells in rows]
    return "\n".join(lines + story(results) + remarks(results))


def story(results):
    """What happened, in three sentences without their full stops: what tuning did, what text does without it, and where
    all of them are least accurate. Fewer where a run has no such contenders."""
    after, before, labels, method = (results[key] for key in ("accuracy", "before", "labels", "method"))
    first, *others = next(iter(after.values()))
    scope = "of the questions" if results["answers"] else "in distribution"
    sentences = []
    if method in before:
        start, end = percent(before[method][first]), percent(after[method][first])
        sentences.append(f"Tuning the {labels[method]}: {start:.1f}% {scope} before, {end:.1f}% after")
    texts = [name for name in TEXTS if name in after and name != method]
    if texts:
        sentences.append(f"Without tuning: {shares(after, texts, first, labels)}")
    hardest = min([first, *others], key=lambda r: max(percent(by_range[r]) for by_range in after.values()))
    if hardest != first:
        sentences.append(f"The least accurate range, {hardest}: {shares(after, list(after), hardest, labels)}")
    return sentences


def shares(after, names, r, labels):
    return ", ".join(f"{labels[name]} {percent(after[name][r]):.1f}%" for name in names)


def remarks(results):
    """A sentence for each text that is better than the best context on some range, since that is chosen on training
    questions, and one for each contender that learned: from what, and which checkpoint it kept."""
    after, labels, sentences = results["accuracy"], results["labels"], []
    for name in [name for name in TEXTS[:-1] if name in after and "few-shot" in after]:
        lost = {r: percent(score) - percent(after["few-shot"][r]) for r, score in after[name].items()}
        if points := ", ".join(f"{p:.1f} points ({r})" for r, p in lost.items() if p > 0):
            sentences.append(f"{labels['few-shot']} is less accurate than {labels[name]}: {points}")
    for name, (n, epochs) in results["examples"].items():
        text = f"{labels[name]} learned from {n:,} examples in {epochs} pass{'es' * (epochs > 1)}"
        if r := results["validation"].get(name):
            exact, kept, last = dict(zip(r["steps"], r["exact_match"])), r["kept_step"], r["steps"][-1]
            text += f" and is kept as it was after step {kept} of {last}: {exact[kept]} of {r['questions']} held-out "
            text += f"training questions written exactly; {exact[0]} at the start, {exact[last]} at the end"
        sentences.append(text)
    if gb := results["record"].get("peak_gb"):
        sentences.append(f"At most {gb:.1f} GB of memory were in use up to the end of tuning")
    return sentences


def study_table(rows, settings, jobs, learned_from, along=""):
    """A study's rows in Markdown, a table for each task; `along` names the axis of x."""
    seeds = f"mean of {settings['seeds']} seeds [lowest, highest]" if settings["seeds"] > 1 else "one seed"
    lines = [
        f"Final-answer accuracy, %: before tuning > after, {seeds}; "
        f"{learned_from}; base {settings['model']}; seconds of tuning and measuring, {jobs} at once."
    ]
    score = "{:.1f} [{:.1f}, {:.1f}]" if settings["seeds"] > 1 else "{:.1f}"
    for task in dict.fromkeys(r["task"] for r in rows):
        task_rows = [r for r in rows if r["task"] == task]
        assert any(r["series"] == "best context" for r in task_rows), f"{task}: the best context was not measured"
        ranges = list(dict.fromkeys(name for r in task_rows for name in r["accuracy"]))
        head = ["", *[along] * bool(along), *ranges, "trainable", "seconds"]
        lines += ["", f"**{task}**", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for r in task_rows:
            assert r["before"] or not r["trainable"], f"{task}, {r['series']}: no accuracy before tuning"
            cells = [r["series"], *[f"{r['x']:,}" if r["x"] else ""] * bool(along)]
            for name in ranges:
                start = f"{r['before'][name][0]:.1f} > " if name in r["before"] else ""
                after = score.format(*r["accuracy"][name]) if name in r["accuracy"] else ""
                cells.append(start + after)
            lines.append(f"| {' | '.join(cells)} | {r['trainable']:,} | {r['seconds']:.0f} |")
    return "\n".join(lines) + "\n"
