"""The tables that a person reads, all from the content of results.json or of a study."""


def heading(results, example):
    """What is run, in three lines."""
    base, rows, method = results["base"], results["prompt"]["rows"], results["method"]
    trainable = results["trainable"].get(method, 0)
    lines = [
        f"{results['task']} on {base['name']}: {base['parameters']:,} frozen parameters, {trainable:,} trainable "
        f"({100 * trainable / base['parameters']:.2f}%), {results['labels'].get(method, method)}, {rows} rows",
        f"an example: {example.question}{example.answer.rstrip()}",
        f"trigger: {results['prompt']['trigger']!r}",
    ]
    return "\n".join(lines)


def percent(a):
    return 100 * a["correct"] / max(1, a["n"])


def with_interval(a):
    return f"{percent(a):.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]"


def check_complete(results):
    """Raises ValueError where a result would stand without its own start, or without the best that a context can do:
    most of what a tuned prompt answers, its start or a few worked examples may answer as well."""
    for name, curve in results["loss"].items():
        if curve and name not in results["before"]:
            raise ValueError(f"{results['labels'][name]}: no accuracy before tuning, and no table without that")
    if "few-shot" not in results["accuracy"]:
        raise ValueError("the best context was not measured: there is no table without it")


def table(results):
    """Final-answer accuracy of each contender on each range: what learned before and after, and what tuning added.

    Raises ValueError where a start or the best context is missing.
    """
    check_complete(results)
    ranges = list(results["accuracy"]["few-shot"])
    width = 2 + max(len(label) for label in [*results["labels"].values(), "exact match (every step right), %"])
    lines = [f"{'final-answer accuracy, % [95%]':<{width}}" + "".join(f"{r:>22}" for r in ranges)]

    def line(label, cells):
        lines.append(f"{label:<{width}}" + "".join(f"{c:>22}" for c in cells))

    context = results["accuracy"]["few-shot"]
    for name, after in results["accuracy"].items():
        before, label = results["before"].get(name), results["labels"][name]
        if before is None:
            line(label, [with_interval(after[r]) for r in ranges])
        else:
            lines.append(label)
            line("  before tuning", [with_interval(before[r]) for r in ranges])
            line("  tuned", [with_interval(after[r]) for r in ranges])
            line("  tuning adds to its start", [f"{percent(after[r]) - percent(before[r]):+.1f}" for r in ranges])
            line("  and to the best context", [f"{percent(after[r]) - percent(context[r]):+.1f}" for r in ranges])
    lines += losses_against_start(results)
    lines.append("exact match (every step right), %")
    for name, after in results["accuracy"].items():
        line(results["labels"][name], [f"{100 * after[r]['exact_match'] / max(1, after[r]['n']):.1f}" for r in ranges])
    line("questions", [after[r]["n"] for r in ranges])
    if results["examples"]:
        seen = [f"{results['labels'][name]} {n:,} x {epochs}" for name, (n, epochs) in results["examples"].items()]
        lines.append(f"learned from (examples x passes): {', '.join(seen)}")
    return "\n".join(lines)


def losses_against_start(results, name=None):
    """A line for each contender, or for one, whose tuning lost accuracy on some range against its own start."""
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
    lines = [f"{'':<{width}}{'likeliest answer, % [95%]':>28}{'macro-F1, %':>14}{'exact match, %':>16}"]

    def line(label, exact, c):
        likeliest = f"{with_interval(c):>28}{100 * c['macro_f1']:>14.1f}" if c else f"{'':>42}"
        lines.append(f"{label:<{width}}{likeliest}{percent(exact):>16.1f}")

    for name, by_range in results["accuracy"].items():
        (exact,), label = by_range.values(), results["labels"][name]
        if name in results["before"]:
            line(f"{label}, before", *results["before"][name].values(), results["classes_before"].get(name))
            label = "  tuned"
        line(label, exact, results["classes"].get(name))
    lines.append(f"{'questions':<{width}}{exact['n']:>28}")
    return "\n".join(lines + base_is_the_limit(results))


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
        some = [(i, r) for i, r in enumerate(rows) if (r["init_token"] is None) == random]
        for i, r in some[:most]:
            near = "  ".join(f"{t!r} {c:.2f}" for t, c in r["nearest"])
            start = "random" if random else repr(r["init_token"])
            lines.append(f"{i:>4}  {start:<12} {r['cosine_to_init']:>15.2f}   {near}")
        if len(some) > most:
            lines.append(f"      ... {len(some) - most} more in results.json")
    return "\n".join(lines)


def study_table(rows, args, along=""):
    """Markdown, a table for each task; `along` is what the cells' x is. Raises ValueError where a row that learned
    lacks its start, or a task the best context."""
    lines = [
        f"Final-answer accuracy, %: before tuning > after, mean of {args.seeds} seeds [lowest, highest]; "
        f"{args.examples:,} examples to tune on, {args.questions} questions a range; base {args.model}; seconds of "
        f"tuning and measuring, {args.jobs} at once."
    ]
    for task in dict.fromkeys(r["task"] for r in rows):
        some = [r for r in rows if r["task"] == task]
        if not any(r["series"] == "best context" for r in some):
            raise ValueError(f"{task}: the best context was not measured: there is no table without it")
        ranges = list(some[0]["accuracy"])
        head = ["", *([along] if along else []), *ranges, "trainable", "seconds"]
        lines += ["", f"**{task}**", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for r in some:
            if r["trainable"] and not r["before"]:
                raise ValueError(f"{task}, {r['series']}: no accuracy before tuning, and no table without that")
            cells = [r["series"], *([f"{r['x']:,}" if r["x"] else ""] if along else [])]
            for name in ranges:
                start = f"{r['before'][name][0]:.1f} > " if name in r["before"] else ""
                cells.append(start + "{:.1f} [{:.1f}, {:.1f}]".format(*r["accuracy"][name]))
            lines.append(f"| {' | '.join(cells)} | {r['trainable']:,} | {r['seconds']:.0f} |")
    return "\n".join(lines) + "\n"
