"""The tables that a program prints, from results.json or from the rows of a study."""


def heading(results, example):
    """What is run, in two or three lines."""
    base, method, prompt = results["base"], results["method"], results["prompt"]
    trainable = results["trainable"].get(method, 0)
    lines = [
        f"{results['task']} on {base['name']}: {base['parameters']:,} frozen parameters, {trainable:,} trainable "
        f"({trainable / base['parameters']:.2%}), {results['labels'].get(method, method)}, {prompt['rows']} rows",
        f"an example: {example.question}{example.answer.rstrip()}",
    ]
    return "\n".join(lines + [f"trigger: {prompt['trigger']!r}"] * bool(prompt["trigger"]))


def percent(a):
    return 100 * a["correct"] / max(1, a["n"])


def with_interval(a):
    return f"{percent(a):.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]"


def difference(after, before):
    return f"{percent(after) - percent(before):+.1f}"


def check_complete(results):
    """A tuned prompt never stands without its start: most of what it answers, its start may answer as well."""
    for name in results["loss"]:
        assert name in results["before"], f"{name} was not measured before tuning"


def table(results):
    """Final-answer accuracy on each range before and after tuning, what tuning adds, and exact match.

    Without the best context (--beside none) the table leaves out the comparison with it.
    """
    check_complete(results)
    accuracy, labels, context = results["accuracy"], results["labels"], results["accuracy"].get("few-shot")
    ranges = list(next(iter(accuracy.values())))
    rows = [["final-answer accuracy, % [95%]", *ranges]]
    for name, after in accuracy.items():
        before = results["before"].get(name)
        rows += contender(
            labels[name], map(with_interval, after.values()), before and map(with_interval, before.values())
        )
        if before:
            rows.append(["  tuning adds to its start", *(difference(after[r], before[r]) for r in ranges)])
        if before and context:
            rows.append(["  and to the best context", *(difference(after[r], context[r]) for r in ranges)])
    rows.append(["exact match (every step right), %"])
    for name, after in accuracy.items():
        rows.append([labels[name], *(f"{100 * a['exact_match'] / max(1, a['n']):.1f}" for a in after.values())])
    rows.append(["questions", *(a["n"] for a in after.values())])
    return "\n".join(aligned(rows) + losses_against_start(results) + how_each_learned(results))


def class_table(results):
    """Accuracy of the likeliest class, macro-F1 and exact match of each contender, before and after tuning."""
    check_complete(results)
    rows = [["", "likeliest, % [95%]", "macro-F1, %", "exact match, %"]]
    for name in results["accuracy"]:
        after, before = (
            class_cells(results, *keys, name) for keys in (("classes", "accuracy"), ("classes_before", "before"))
        )
        rows += contender(results["labels"][name], after, before)
        if name in results["classes_before"]:
            added = difference(results["classes"][name], results["classes_before"][name])
            rows.append(["  tuning adds to its start", added])
    rows.append(["questions", sum(sum(row) for row in results["classes"][name]["confusion"])])
    sentences = losses_against_start(results) + how_each_learned(results) + base_is_the_limit(results)
    return "\n".join(aligned(rows) + sentences)


def class_cells(results, classes, accuracy, name):
    """Accuracy and macro-F1 of the likeliest classes if they were ranked, and exact match; None if nothing was measured."""
    if name not in results[accuracy]:
        return None
    (exact,), ranked = results[accuracy][name].values(), results[classes].get(name)
    likeliest = [with_interval(ranked), f"{100 * ranked['macro_f1']:.1f}"] if ranked else ["", ""]
    return [*likeliest, f"{percent(exact):.1f}"]


def contender(label, after, before):
    """The rows of a contender, from the texts of its cells after and before tuning."""
    return [[label], ["  before tuning", *before], ["  tuned", *after]] if before else [[label, *after]]


def aligned(rows):
    """The lines of a table, from lists of a label and cells."""
    width = 2 + max(len(label) for label, *_ in rows)
    return [f"{label:<{width}}{''.join(f'{cell:>22}' for cell in cells)}".rstrip() for label, *cells in rows]


def losses_against_start(results, name=None):
    """A sentence for each contender, or for one, that is less accurate on some range after tuning."""
    sentences = []
    for one in [name] if name else results["before"]:
        before, after = results["before"].get(one, {}), results["accuracy"][one]
        lost = {r: percent(before[r]) - percent(after[r]) for r in before if percent(after[r]) < percent(before[r])}
        if lost:
            points = ", ".join(f"{p:.1f} points at {r}" for r, p in lost.items())
            sentences.append(f"{results['labels'][one]} is less accurate than before tuning: {points}")
    return sentences


def how_each_learned(results):
    """A sentence for each contender that learned: from what, and which checkpoint it kept."""
    sentences = []
    for name, (n, epochs) in results["examples"].items():
        text = f"{results['labels'][name]} learned from {n:,} examples in {epochs} pass{'es' * (epochs > 1)}"
        if r := results["validation"].get(name):
            right, kept, last = dict(zip(r["steps"], r["exact_match"])), r["kept_step"], r["steps"][-1]
            text += (
                f" and is kept as it was after step {kept} of {last}: {right[kept]} of {r['questions']} held-out training "
                f"questions right; {right[0]} at the start, {right[last]} at the end"
            )
        sentences.append(text)
    return sentences


def base_is_the_limit(results):
    """Two lines if no contender on the base is better than a classifier of word frequencies or the most frequent answer."""
    classes = results["classes"]
    on_base = [c["correct"] for n, c in classes.items() if n not in ("majority", "tfidf", "scratch", "vote")]
    for baseline in ("tfidf", "majority"):
        if baseline in classes and max(on_base) <= classes[baseline]["correct"]:
            return [
                f"On {results['base']['name']} no contender does better than {results['labels'][baseline]!r}: the base "
                "is the limit here, not the method.",
                "Take a base that has read more language, for instance --model gpt2 or --model gpt2-medium.",
            ]
    return []


def token_table(rows, most=12):
    """The nearest tokens of a tuned prompt's rows, the first `most` random ones and the first `most` others."""
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
    """A study's rows in Markdown, a table for each task; `along` names the axis of x, and `learned_from` the examples."""
    several = ", " in settings["model"]
    lines = [
        f"Final-answer accuracy, %: before tuning > after, mean of {settings['seeds']} seeds{' on each base' * several} "
        f"[lowest, highest]; {learned_from}; base{'s' * several} {settings['model']}; seconds of tuning and measuring, "
        f"{jobs} at once."
    ]
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
                after = "{:.1f} [{:.1f}, {:.1f}]".format(*r["accuracy"][name]) if name in r["accuracy"] else ""
                cells.append(start + after)
            lines.append(f"| {' | '.join(cells)} | {r['trainable']:,} | {r['seconds']:.0f} |")
    return "\n".join(lines) + "\n"
