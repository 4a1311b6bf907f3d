"""eval/: intervals by their definition, answers by decoding without a cache, numbers read off tables and figures."""

import base64
import copy
import importlib
import json
import math
import random
from xml.etree import ElementTree

import matplotlib
import pytest
import torch

import tasks
from data.batches import encode
from eval import accuracy, contexts, plots, report
from eval.accuracy import count_exact, generate_answers, rank_choices, score, wilson
from eval.contexts import as_text, best_context, tfidf
from eval.neighbors import nearest_tokens
from files.weights import load_model
from generate import generate
from methods.weights import Scratch
from model import GPT, GPTConfig
from prefix import DeepPrefix, HybridPrefix, PromptTuning, PTuning, TextPrompt, Warp


@pytest.mark.parametrize("correct, n", [(0, 20), (20, 20), (990, 1000)])
def test_wilson_bounds_are_where_the_score_test_turns(correct, n):
    """p is inside if |correct/n - p| <= 1.96 standard errors at p: the bounds solve that."""
    for p in wilson(correct, n):
        if 0 < p < 1 - 1e-12:
            assert math.isclose(abs(correct / n - p), 1.959964 * math.sqrt(p * (1 - p) / n), rel_tol=1e-6)
        else:
            assert correct in (0, n)


@pytest.mark.parametrize("name", tasks.names())
def test_answers_equal_decoding_whether_few_or_most_are_right(tokenizer, monkeypatch, name):
    """nano-2 behind a worked example is mostly right, else it is not. Methods that read or write otherwise than it:
    rows in the question, output rows, keys and values, a network and a tokenizer of its own."""
    if name == "word_reversal":  # several threads share the network, and have a batch each
        monkeypatch.setattr(accuracy, "MOST_TOKENS", 64)
        monkeypatch.setattr(accuracy, "THREADS", 3)
    nano, task = load_model("data/nano-2").freeze(), tasks.load(name)
    shown = tokenizer.encode_task(as_text(task.worth_showing(task.examples(40, split="train"), 1)))
    ways = [HybridPrefix(nano, trigger=shown), PTuning(nano, 2, position="inside"), Scratch(block_size=200)]
    for method in (*ways, DeepPrefix(nano, 0, shown), Warp(nano, trigger=shown, labels=[shown])):
        network, letters, done = method.network(nano), method.tokenizer(tokenizer), []
        with torch.no_grad():
            past = method.past(network)
        examples = sum((task.examples(2, r) for r in list(task.ranges)[:2]), [])
        encoded = [(method.insert_rows(question), answer) for question, answer in encode(letters, examples)]
        longest, stop = max(len(answer) for _, answer in encoded), [letters.stops(task.stop)]
        written = generate(network, [question for question, _ in encoded], longest, past, stop=stop)
        limits = [len(answer) for _, answer in encoded]
        texts = generate_answers(network, past, letters, task, encoded, limits, done.append)
        assert texts == [letters.cut(t[:n], task.stop) for t, n in zip(written, limits)] and sum(done) == len(encoded)
        exact, _ = count_exact(network, past, encoded)
        assert exact == sum(tokens == answer for tokens, (_, answer) in zip(written, encoded))


def test_score_counts_by_hand():
    true = ("1203;000=3$", 1), ("9908;001=18$", 1), ("0101;1001;000=11$", 2)
    examples = [tasks.Example("", answer, length) for answer, length in true]
    got = score(tasks.load("addition"), examples, ["1203;000=3$", "wrong=18$", "0101;1001;000=11"])  # no end
    assert (got["correct"], got["n"], got["exact_match"]) == (2, 3, 1)
    assert got["by_length"] == {"1": {"correct": 2, "n": 2}, "2": {"correct": 0, "n": 1}}
    assert got["errors"] == {"another format": 1, "sum miscopied": 1}


def test_nearest_tokens_are_those_of_the_greatest_cosine(tiny, tokenizer):
    """A row that did not move reads as its token; one that is now a small multiple of another token reads as that."""
    prompt = HybridPrefix(tiny, n_random=2, trigger=tokenizer.encode("Add"))
    prompt.rows.data[2] = tiny.wte.weight[65] * 0.01
    rows = nearest_tokens(tiny, tokenizer, prompt)
    words = [tokenizer.decode([t]) for t in tokenizer.encode("Add")]
    assert [r["init_token"] for r in rows] == [None, None, *words]
    assert all(r["init_nearest"][0] == [r["init_token"], 1.0] for r in rows[2:])
    assert all((r["nearest"][0], r["cosine_to_init"]) == ([r["init_token"], 1.0], 1.0) for r in rows[3:])
    assert rows[2]["nearest"][0] == [tokenizer.decode([65]), 1.0]
    a, b = tiny.wte.weight[65].tolist(), prompt.start[2].tolist()
    cosine = sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    assert math.isclose(rows[2]["cosine_to_init"], cosine, abs_tol=1e-3)
    # what the model sees of these at the start is not the token, or the token more than once
    add = tokenizer.encode("Add")
    for prompt in PTuning(tiny, 2, add), PromptTuning(tiny, 5, add, init="trigger"):
        want = [None, None, *words] if prompt.n_random else (5 * words)[:5]
        assert [r["init_token"] for r in nearest_tokens(tiny, tokenizer, prompt)] == want


# ---------------------------------------------------------------- tables and figures


def some_results():
    """What train_task.py writes, with answers that are right by chance."""
    task, rng = tasks.load("addition"), random.Random(0)

    def random_scores():
        drawn = {r: task.examples(30, r) for r in task.ranges}
        return {r: score(task, e, [x.answer if rng.random() < 0.5 else "" for x in e]) for r, e in drawn.items()}

    return {
        **{"task": "addition", "unit": "digits", "base": {"name": "little"}, "method": "hybrid"},
        **{"answers": [], "in_distribution_lengths": (1, 4), "new_words": ()},
        "labels": {"zero-shot": "zero-shot", "few-shot": "best context (1 longest)", "hybrid": "prefix for $1 or $2"},
        "before": {"hybrid": random_scores()},
        "accuracy": {name: random_scores() for name in ("zero-shot", "few-shot", "hybrid")},
        **{"record": {}, "args": {"own_data": False}},
        "examples": {"hybrid": (96, 2)},
        "validation": {
            "hybrid": {"questions": 8, "steps": [0, 2, 3], "exact_match": [5, 7, 6], "loss": [3, 2, 2], "kept_step": 2}
        },
        "loss": {"hybrid": {"examples": [32, 64, 96], "loss": [3.0, 2.0, 1.0]}},
    }


def some_classes():
    """The same of a task with two classes, on which word frequencies do best."""
    results, right = some_results(), {"few-shot": 9, "hybrid": 12, "tfidf": 15, "scratch": 18, "start": 13}
    ranked = {n: {"in-distribution": {"correct": k, "n": 30, "low": 0, "high": k / 30}} for n, k in right.items()}
    before = {"hybrid": ranked.pop("start")}
    results["labels"] |= {"tfidf": "TF-IDF + logistic regression", "scratch": "from scratch"}
    ranked["hybrid"]["in-distribution"]["confusion"] = [[12, 8], [10, 0]]
    return results | {"answers": ["yes", "no"], "args": {"own_data": True}, "accuracy": ranked, "before": before}


def test_the_story_names_the_range_on_which_the_best_is_worst():
    results = some_results()
    for name, right in (("zero-shot", 0), ("few-shot", 2), ("hybrid", 1)):
        results["accuracy"][name]["7 digits"] |= {"correct": right}
    shares = "zero-shot 0.0%, best context (1 longest) 6.7%, prefix for $1 or $2 3.3%"
    assert report.story(results)[-1] == f"The least accurate range, 7 digits: {shares}"
    for by_range in results["accuracy"].values():
        by_range["in-distribution"] |= {"correct": 0}
    assert "The least accurate range" not in " ".join(report.story(results))


def test_the_table_shows_every_number():
    results = some_results()
    lines = report.table(results).splitlines()
    after, before = (results[when]["hybrid"]["5 digits"] for when in ("accuracy", "before"))
    context = results["accuracy"]["few-shot"]["5 digits"]
    at = lines.index("prefix for $1 or $2")
    for line, a in zip(lines[at + 1 :], (before, after)):
        assert f"{100 * a['correct'] / 30:.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]" in line
    for line, a in zip(lines[at + 3 :], (before, context)):
        assert f"{100 * (after['correct'] - a['correct']) / 30:+.1f}" in line
    columns = [x for x in lines if x.startswith(("zero-shot", "best context (1 longest)  ", "  tuned", "  and to"))]
    assert len(columns) == 6 and len({len(line) for line in columns}) == 1  # columns stand below one another
    first = {name: a["in-distribution"] for name, a in results["accuracy"].items()}
    percents = {name: f"{report.percent(a):.1f}%" for name, a in first.items()}
    start = f"{report.percent(results['before']['hybrid']['in-distribution']):.1f}%"
    at_questions = next(i for i, line in enumerate(lines) if line.startswith("questions"))
    assert lines[at_questions + 1 :][:2] == [
        f"Tuning the prefix for $1 or $2: {start} in distribution before, {percents['hybrid']} after",
        f"Without tuning: zero-shot {percents['zero-shot']}, best context (1 longest) {percents['few-shot']}",
    ]
    assert lines[-1] == (
        "prefix for $1 or $2 learned from 96 examples in 2 passes and is kept as it was after step 2 of 3: "
        "7 of 8 held-out training questions written exactly; 5 at the start, 6 at the end"
    )
    results["accuracy"]["zero-shot"]["5 digits"] |= {"correct": context["correct"] + 3}
    results["record"]["peak_gb"] = 1.23
    text = report.table(results)
    assert "best context (1 longest) is less accurate than zero-shot: " in text and "10.0 points (5 digits)" in text
    assert text.endswith("At most 1.2 GB of memory were in use up to the end of tuning")
    del results["accuracy"]["few-shot"]  # --beside none
    alone = report.table(results)
    assert all(line in alone for line in lines[at : at + 4]) and "best context" not in alone
    del results["before"]["hybrid"]
    with pytest.raises(AssertionError, match="no accuracy before tuning"):
        report.table(results)


def test_the_table_of_classes_shows_the_likeliest():
    results = some_classes()
    text = " ".join(report.table(results).split())
    for words in (
        "before tuning 43.3 [0.0, 43.3] tuned 40.0 [0.0, 40.0]",
        "tuning adds to its start -3.3 and to the best context +10.0",
    ):
        assert words in text


def test_figures_hold_the_numbers():
    results = some_results()
    figures = plots.plot_lengths(results), plots.plot_loss(results), plots.plot_confusion(some_classes())
    lengths, loss, confusion = (fig.axes[0] for fig in figures)
    curves, mine = {c.get_label(): c for c in lengths.containers}, "prefix for $1 or $2"
    assert list(curves) == ["zero-shot", "best context (1 longest)", mine, f"{mine}, before"]
    for label, when in ((mine, "accuracy"), (f"{mine}, before", "before")):
        line, _, (bars,) = curves[label]
        for x, y, bar in zip(line.get_xdata(), line.get_ydata(), bars.get_segments()):
            (right,) = (a["by_length"][str(x)] for a in results[when]["hybrid"].values() if str(x) in a["by_length"])
            assert math.isclose(y, 100 * right["correct"] / right["n"])
            assert bar[:, 1] == pytest.approx([100 * bound for bound in wilson(right["correct"], right["n"])], abs=1e-9)
    assert loss.lines[0].get_ydata() == pytest.approx([3, 2.5, 2])
    assert [t.get_text() for t in confusion.texts] == ["60", "40", "100", "0"]
    assert [t.get_text() for t in confusion.get_yticklabels()] == ["yes (20)", "no (10)"]


def test_one_line_says_that_no_font_has_a_label_s_characters(capsys):
    plots.note.cache_clear()
    for title, lines in (("a $ é", 0), ("\U0010fff0", 1), ("\U0010fff0", 0)):
        figure, axis = plots.plt.subplots()
        axis.set_title(title)
        plots.write(figure, None)
        err = capsys.readouterr().err
        assert err.count("\n") == lines and ("figures show boxes" in err) == lines


def test_text_is_drawn_as_it_is_and_a_picture_that_fails_costs_the_picture(monkeypatch, capsys):
    results, odd = some_classes(), ["$", "$$x^{", "_a\\frac"]
    results |= {"answers": odd[:2], "task": odd[2]}
    svg = base64.b64decode(plots.draw_run(results)["What was taken for what"].split(",")[1]).decode()
    assert all(text in svg for text in odd)
    address = plots.write(plots.plot_loss(results | {"task": "bell \a, escape \x1b, \ufffe"}), None)  # not for XML
    read = ElementTree.fromstring(base64.b64decode(address.split(",")[1]))
    assert "bell \ufffd, escape \ufffd, \ufffd" in "".join(read.itertext())
    capsys.readouterr()
    monkeypatch.setattr(plots, "plot_confusion", lambda results: 1 / 0)
    assert list(plots.draw_run(results)) == ["Loss while tuning"]
    assert capsys.readouterr().err == "<lambda> gives no picture: ZeroDivisionError: division by zero\n"
    plots.plot_study([{"task": "a"}], "nowhere")
    assert capsys.readouterr().err == "the study of a gives no picture: KeyError: 'series'\n"


def test_figures_are_png_files_or_svg_and_no_matplotlibrc_changes_them(tmp_path):
    plots.draw_run(some_results(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"accuracy_by_length.png", "loss.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    drawn = plots.draw_run(some_results())
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: red\n")
    matplotlib.rc_file(tmp_path / "matplotlibrc")
    importlib.reload(plots)
    assert plots.draw_run(some_results()) == drawn


# ---------------------------------------------------------------- contexts and classes


def test_the_best_context_is_the_best_of_its_candidates(tokenizer, monkeypatch):
    torch.manual_seed(1)
    little = GPT(GPTConfig(vocab_size=1024, block_size=512, n_layer=1, n_head=2, n_embd=16)).freeze()
    task = tasks.load("word_reversal")
    examples = task.examples(200, split="train")
    scores, count = [], contexts.count_exact
    monkeypatch.setattr(contexts, "count_exact", lambda *args: scores.append(count(*args)) or scores[-1])
    tokens, best = best_context(little, tokenizer, task, examples, max_tokens=10_000)
    assert tokens == tokenizer.encode_task(best["text"]) and len(best["text"].splitlines()) == best["shots"]
    assert (best["exact_match"], best["loss"]) == min(scores, key=lambda s: (-s[0], s[1])) and len(scores) == 17
    # a context is never asked its own examples, and never longer than there is room for
    tokens, best = best_context(little, tokenizer, task, examples[:9], max_tokens=60)
    assert best["n"] == 9 - best["shots"] and len(tokens) <= 60
    assert best_context(little, tokenizer, task, examples, max_tokens=5) == ([], None)
    # the example that prompts begin as is one of them
    seen = []
    monkeypatch.setattr(little, "prefill", lambda tokens: seen.extend(tokens.tolist()))
    best_context(little, tokenizer, task, examples, max_tokens=10_000, n_questions=1)
    assert len(seen) == 17 and seen[0] == tokenizer.encode_task(as_text(task.worth_showing(examples, 1)))
    little.final_norm = lambda x: x * math.nan
    with pytest.raises(FloatingPointError, match="of untrained behind a worked example"):
        best_context(little, tokenizer, task, examples, max_tokens=10_000)


def test_word_frequencies_tell_classes_apart(tmp_path):
    pytest.importorskip("sklearn")
    colors = {"red": "apples and cherries", "blue": "the sea and the sky"}
    task = your_data(tmp_path, [(f"{text} number {i}", color) for i in range(40) for color, text in colors.items()])
    questions = task.examples(None)
    texts = tfidf(task, task.examples(None, split="train"), questions)
    assert [task.final_answer(t) for t in texts] == [task.final_answer(e.answer) for e in questions]


def your_data(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    return tasks.load(str(path))


@pytest.mark.parametrize("labels", ["abcdefghij", "abc abd abz xbc xbd".split()], ids=len)
def test_the_likeliest_answer_by_brute_force(tiny, tokenizer, tmp_path, labels):
    """Every answer written out behind every question, one at a time, its tokens' log probabilities added up."""
    rows = [(f"{i * 7919} is", labels[i % len(labels)]) for i in range(80)]
    task, tiny = your_data(tmp_path, rows), copy.deepcopy(tiny)
    tiny.wpe.weight.data[20:] *= 10  # random attention, or every question would get the same answer
    tiny.h[0].attn.c_attn.weight.data *= 10
    examples = task.examples(None, split="train")
    before = tokenizer.encode("Say so: ")
    past = TextPrompt(tiny, trigger=before).past(tiny)
    got = rank_choices(tiny, past, tokenizer, task, encode(tokenizer, examples))
    for e, chosen in zip(examples, got):
        totals = []
        for answer in task.classes:
            tokens = before + tokenizer.encode_task(e.question)
            label = tokenizer.encode_task(f" {answer}\n")
            log_p = tiny.logits(tiny(torch.tensor([tokens + label])))[0].log_softmax(-1)
            totals.append(sum(log_p[len(tokens) + i - 1, t].item() for i, t in enumerate(label)))
        assert chosen == totals.index(max(totals))
    assert len(set(got)) > 1


def test_the_confusion_of_classes_by_hand(tmp_path):
    task = your_data(tmp_path, [(str(i), "abc"[i % 3]) for i in range(30)])
    examples = [tasks.Example("", f" {true}\n", 1) for true in "aaaabbb"]
    got = score(task, examples, [f" {chosen}\n" for chosen in "aaabbca"])
    assert got["confusion"] == [[3, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert (got["correct"], got["n"]) == (4, 7)
    got = score(task, [tasks.Example("", " d\n", 1)], [" a\n"])  # which no row to tune on has
    assert (got["correct"], got["n"]) == (0, 1)
