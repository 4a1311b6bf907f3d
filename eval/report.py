"""The tables that a person reads, all from the content of results.json or of a study."""

from files.errors import UserError


def heading(results, example):
    """What is run, in two or three lines."""
    base, rows, method = results["base"], results["prompt"]["rows"], results["method"]
    trainable = results["trainable"].get(method, 0)
    lines = [
        f"{results['task']} on {base['name']}: {base['parameters']:,} frozen parameters, {trainable:,} trainable "
        f"({100 * trainable / base['parameters']:.2f}%), {results['labels'].get(method, method)}, {rows} rows",
        f"an example: {example.question}{example.answer.rstrip()}",
    ]
    if results["prompt"]["trigger"]:
        lines.append(f"trigger: {results['prompt']['trigger']!r}")
    return "\n".join(lines)


def percent(a):
    return 100 * a["correct"] / max(1, a["n"])


def with_interval(a):
    return f"{percent(a):.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]"


def difference(after, before):
    return f"{percent(after) - percent(before):+.1f}"


def line(label, cells, width):
    return f"{label:<{width}}" + "".join(f"{cell:>22}" for cell in cells)


def check_complete(results):
    """Raises UserError where a result would stand without its own start, or without the best that a context can do:
    most of what a tuned prompt answers, its start or a few worked examples may answer as well."""
    for name, curve in results["loss"].items():
        if curve and name not in results["before"]:
            raise UserError(f"{results['labels'][name]}: no accuracy before tuning, and no table without that")
    if "few-shot" not in results["accuracy"]:
        raise UserError("the best context was not measured: there is no table without it")


def table(results):
    """Final-answer accuracy of each contender on each range: what learned before and after, and what tuning added.

    Raises UserError where a start or the best context is missing.
    """
    check_complete(results)
    ranges = list(results["accuracy"]["few-shot"])
    width = 2 + max(len(label) for label in [*results["labels"].values(), "exact match (every step right), %"])
    lines = [line("final-answer accuracy, % [95%]", ranges, width)]
    context = results["accuracy"]["few-shot"]
    for name, after in results["accuracy"].items():
        before, label = results["before"].get(name), results["labels"][name]
        if before is None:
            lines.append(line(label, [with_interval(after[r]) for r in ranges], width))
        else:
            lines.append(label)
            lines.append(line("  before tuning", [with_interval(before[r]) for r in ranges], width))
            lines.append(line("  tuned", [with_interval(after[r]) for r in ranges], width))
            lines.append(line("  tuning adds to its start", [difference(after[r], before[r]) for r in ranges], width))
            lines.append(line("  and to the best context", [difference(after[r], context[r]) for r in ranges], width))
    lines += losses_against_start(results)
    lines.append("exact match (every step right), %")
    for name, after in results["accuracy"].items():
        exact = [f"{100 * after[r]['exact_match'] / max(1, after[r]['n']):.1f}" for r in ranges]
        lines.append(line(results["labels"][name], exact, width))
    lines.append(line("questions", [after[r]["n"] for r in ranges], width))
    return "\n".join(lines + what_tuning_saw(results))


def what_tuning_saw(results):
    """How many examples each contender learned from, and for each that was validated which state it ended as."""
    labels, lines = results["labels"], []
    if results["examples"]:
        seen = [f"{labels[name]} {n:,} x {epochs}" for name, (n, epochs) in results["examples"].items()]
        lines.append(f"learned from (examples x passes): {', '.join(seen)}")
    for name, r in results["validation"].items():
        right, kept, last = dict(zip(r["steps"], r["exact_match"])), r["kept_step"], r["steps"][-1]
        lines.append(
            f"{labels[name]} is kept as it was after step {kept} of {last}, with {right[kept]} of {r['questions']} "
            f"held-back training questions right; its start had {right[0]}, its end {right[last]}"
        )
    return lines


def losses_against_start(results, name=None):
    """A line for each contender, or for one, whose tuning lost accuracy on task_rows range against its own start."""
    lines = []
    for one in [name] if name else results["before"]:
        before, after = results["before"].get(one, {}), results["accuracy"][one]
        lost = {r: percent(before[r]) - percent(after[r]) for r in before if percent(after[r]) < percent(before[r])}
        if lost:
            what = ", ".join(f"{points:.1f} points at {r}" for r, points in lost.items())
            lines.append(f"{results['labels'][one]} ended below its own start: {what}")
    return lines


def class_table(results):
    """Accuracy of the likeliest answer, macro-F1 and exact match of each contender, before and after tuning."""
    check_complete(results)
    width = max(34, 2 + max(len(label) for label in results["labels"].values()))
    lines = [line("", ["likeliest, % [95%]", "macro-F1, %", "exact match, %"], width)]
    for name, by_range in results["accuracy"].items():
        (exact,), label = by_range.values(), results["labels"][name]
        if name in results["before"]:
            (start,) = results["before"][name].values()
            lines += [label, line("  before tuning", class_cells(start, results["classes_before"].get(name)), width)]
            label = "  tuned"
        lines.append(line(label, class_cells(exact, results["classes"].get(name)), width))
        if name in results["classes_before"]:
            added = difference(results["classes"][name], results["classes_before"][name])
            lines.append(line("  tuning adds to its start", [added], width))
    lines.append(line("questions", [exact["n"]], width))
    return "\n".join(lines + losses_against_start(results) + what_tuning_saw(results) + base_is_the_limit(results))


def class_cells(exact, ranked):
    """Accuracy and macro-F1 of the likeliest answers, where they were ranked, and exact match of what was written."""
    likeliest = [with_interval(ranked), f"{100 * ranked['macro_f1']:.1f}"] if ranked else ["", ""]
    return [*likeliest, f"{percent(exact):.1f}"]


def base_is_the_limit(results):
    """A line where no contender on the base does better than a classifier of word frequencies, or than the most
    frequent answer."""
    on_base = {n: c for n, c in results["classes"].items() if n not in ("majority", "tfidf", "scratch", "vote")}
    best = max(on_base, key=lambda name: on_base[name]["correct"])
    for rival in ("tfidf", "majority"):
        if rival in results["classes"] and on_base[best]["correct"] <= results["classes"][rival]["correct"]:
            return [
                f"On {results['base']['name']} no contender does better than {results['labels'][rival]!r}: the base is "
                "the limit here, not the method.",
                "Take a base that has read more language, for instance --model gpt2 or --model gpt2-medium.",
            ]
    return []


def token_table(rows, most=12):
    """The tuned prompt as its nearest tokens, a line a row, the first `most` of each kind."""
    lines = [f"{'row':>4}  {'began as':<12} {'cosine to start':>15}   nearest tokens now (cosine)"]
    for random in (True, False):
        of_kind = [(i, r) for i, r in enumerate(rows) if (r["init_token"] is None) == random]
        for i, r in of_kind[:most]:
            near = "  ".join(f"{t!r} {c:.2f}" for t, c in r["nearest"])
            start = "random" if random else repr(r["init_token"])
            lines.append(f"{i:>4}  {start:<12} {r['cosine_to_init']:>15.2f}   {near}")
        if len(of_kind) > most:
            lines.append(f"      ... {len(of_kind) - most} more in results.json")
    return "\n".join(lines)


def study_table(rows, settings, jobs, learned_from, along=""):
    """Markdown, a table for each task, of a study with those `settings`; `learned_from` says from what, and `along`
    what the cells' x is. Raises UserError where a row that learned lacks its start, or a task the best context."""
    seeds, base = f"{settings['seeds']} seeds", f"base {settings['model']}"
    if ", " in settings["model"]:
        seeds, base = f"{seeds} on each base", f"bases {settings['model']}"
    lines = [
        f"Final-answer accuracy, %: before tuning > after, mean of {seeds} [lowest, highest]; {learned_from}; {base}; "
        f"seconds of tuning and measuring, {jobs} at once."
    ]
    for task in dict.fromkeys(r["task"] for r in rows):
        task_rows = [r for r in rows if r["task"] == task]
        if not any(r["series"] == "best context" for r in task_rows):
            raise UserError(f"{task}: the best context was not measured: there is no table without it")
        ranges = list(dict.fromkeys(name for r in task_rows for name in r["accuracy"]))
        head = ["", *([along] if along else []), *ranges, "trainable", "seconds"]
        lines += ["", f"**{task}**", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for r in task_rows:
            if r["trainable"] and not r["before"]:
                raise UserError(f"{task}, {r['series']}: no accuracy before tuning, and no table without that")
            cells = [r["series"], *([f"{r['x']:,}" if r["x"] else ""] if along else [])]
            for name in ranges:
                start = f"{r['before'][name][0]:.1f} > " if name in r["before"] else ""
                after = "{:.1f} [{:.1f}, {:.1f}]".format(*r["accuracy"][name]) if name in r["accuracy"] else ""
                cells.append(start + after)
            lines.append(f"| {' | '.join(cells)} | {r['trainable']:,} | {r['seconds']:.0f} |")
    return "\n".join(lines) + "\n"
