"""report.html, opened in headless Chromium: what it shows is what results.json and the answers say."""

import json
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

import tasks
import train_task
from eval import page
from files.weights import save_model
from model import GPT, GPTConfig

pytestmark = pytest.mark.xdist_group("page")  # one process makes the runs and starts the browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install Debian's package chromium")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Open a run's page and return it; what fails on it, and what it asks the network for, fails the test."""
    opened, wrong = [], []

    def show(out, width=1920, height=1080, hash="", **options):
        shown = browser.new_page(viewport={"width": width, "height": height}, **options)
        shown.set_default_timeout(120_000)  # a machine may be busy
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        shown.goto((out / "report.html").resolve().as_uri() + hash)
        opened.append(shown)
        return shown

    yield show
    for shown in opened:
        shown.close()
    assert not wrong


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny runs of every sort, {name: folder}; their contenders are wrong nearly always."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    save_model(GPT(GPTConfig(vocab_size=1024, block_size=256, n_layer=2, n_head=2, n_embd=32)), folder / "little")
    shutil.copy("data/nano-2/encoding.json", folder / "little")
    lines = [{"prompt": f"{HOSTILE} {i}", "answer": ["red", HOSTILE, "blue"][i % 3]} for i in range(60)]
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = ["--model", str(folder / "little"), "--examples", "32", "--test-examples", "8", "--epochs", "1"]
    for name, argv in {
        "hybrid": ["--task", "addition", "--trigger", f"Add. {HOSTILE}"],
        "load": ["--task", "addition", "--load", str(folder / "hybrid" / "prefix.safetensors")],
        "deep": ["--task", "word_reversal", "--method", "ptuning2", "--beside", "adapter"],
        "lora": ["--task", "word_reversal", "--method", "lora", "--beside", "adapter"],
        "own": ["--task", str(folder / "own.jsonl"), "--beside", "adapter", "--n-random", "5"],
    }.items():
        with redirect_stdout(StringIO()):
            train_task.main([*few, *argv, "--out", str(folder / name)])
    return {name: folder / name for name in ("hybrid", "load", "deep", "lora", "own")}


def read(out, name):
    return json.loads((out / f"{name}.json").read_text())


def percent(a):
    return f"{100 * a['correct'] / a['n']:.1f}"


@pytest.mark.parametrize("name", ["hybrid", "load", "deep", "lora", "own"])
def test_no_result_stands_without_its_start_and_the_best_context(runs, show, name):
    results, shown = read(runs[name], "results"), show(runs[name])
    after, before = results["accuracy"], results["before"]
    if results["answers"]:
        after, before = ({n: {"all": c} for n, c in results[k].items()} for k in ("classes", "classes_before"))
    lines = shown.locator(".accuracy tbody tr")
    assert lines.count() == len(after) > len(before) > 0
    for line, (contender, by_range) in zip(lines.all(), after.items()):
        assert line.locator("th").inner_text() == results["labels"][contender]
        for cell, (r, a) in zip(line.locator("td").all(), by_range.items()):
            text, context = cell.inner_text(), after["few-shot"][r]
            if contender in before:
                start = before[contender][r]
                gain, over = (100 * (a["correct"] / a["n"] - b["correct"] / b["n"]) for b in (start, context))
                assert text.startswith(f"{percent(start)} → {percent(a)}")
                assert f"{gain:+.1f} to its start, {over:+.1f} to the best context" in text
            else:
                assert text.startswith(percent(a))
    lede = shown.locator(".lede").inner_text()
    assert results["labels"]["few-shot"] in lede and results["labels"][results["method"]] in lede
    assert f"from {percent(next(iter(before[results['method']].values())))}% to" in lede
    assert shown.locator("#again pre").inner_text() == results["command"]
    assert results["command"].startswith("python train_task.py --model")


def test_a_page_without_a_start_or_the_best_context_is_refused(runs, tmp_path):
    results, details = read(runs["hybrid"], "results"), read(runs["hybrid"], "details")
    for part, key in ("before", "hybrid"), ("accuracy", "few-shot"):
        broken = results | {part: {k: v for k, v in results[part].items() if k != key}}
        with pytest.raises(ValueError, match="no table without"):
            page.write_page(tmp_path / "report.html", broken, details)
    assert not (tmp_path / "report.html").exists()


def test_the_page_is_made_again_of_its_files(runs, tmp_path, capsys):
    for file in ("results.json", "details.json"):
        shutil.copy(runs["hybrid"] / file, tmp_path)
    page.main([str(tmp_path)])
    assert (tmp_path / "report.html").read_text() == (runs["hybrid"] / "report.html").read_text()
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="run it again"):
        page.main([str(tmp_path)])


# ---------------------------------------------------------------- questions


def wrong_by_hand(task, out, when, name):
    """{range: [(question, true answer, text, kind)]} of wrong final answers, from the answers themselves."""
    details, found = read(out, "details"), {}
    for r, questions in details["questions"].items():
        found[r] = []
        for (question, truth, _), answer in zip(questions, details["written"][when][name][r]):
            text = truth if answer is None else answer[0]
            if task.final_answer(text) != task.final_answer(truth):
                found[r].append((question, truth, text, task.kind_of_error(truth, text)))
    return found


def test_every_answer_is_kept(runs):
    """Counting them gives the accuracies of results.json."""
    results, task = read(runs["hybrid"], "results"), tasks.load("addition")
    for when in ("before", "accuracy"):
        for name, by_range in results[when].items():
            for r, wrong in wrong_by_hand(task, runs["hybrid"], when, name).items():
                assert by_range[r]["n"] - by_range[r]["correct"] == len(wrong)
    assert "written" not in results


def test_wrong_answers_come_first_with_their_first_wrong_character_marked(runs, show):
    shown = show(runs["hybrid"])
    wrong = wrong_by_hand(tasks.load("addition"), runs["hybrid"], "accuracy", "hybrid")
    listed = [(r, *answer) for r, answers in wrong.items() for answer in answers]
    assert shown.locator("#found").inner_text() == f"{len(listed)} questions"
    items = shown.locator(".answers li").all()
    assert len(items) == min(20, len(listed)) > 0
    for item, (r, question, truth, text, kind) in zip(items, listed):
        assert item.locator("div").first.inner_text() == f"{r} · {kind}"
        true_line, written_line = (line.text_content() for line in item.locator(".mono").all())
        assert true_line.startswith(question) and written_line.startswith(question)
        i = next(i for i in range(99) if truth[i : i + 1] != text[i : i + 1])
        marked = text[i : i + 1]
        glyph = {"": "(end)", " ": "␣", "\n": "⏎"}.get(marked, marked)
        assert item.locator("mark").text_content() == glyph
        assert written_line == question + text[:i] + glyph + text[i + 1 :]


def test_filters_and_counts(runs, show):
    shown, task = show(runs["hybrid"]), tasks.load("addition")
    shown.select_option("[name=who]", "before:hybrid")
    wrong = wrong_by_hand(task, runs["hybrid"], "before", "hybrid")
    rows = {
        row.locator("th").inner_text(): [cell.inner_text() for cell in row.locator("td").all()]
        for row in shown.locator(".kinds tbody tr").all()
    }
    assert rows["wrong"] == [str(len(answers) or "") for answers in wrong.values()]
    kinds = {kind for answers in wrong.values() for *_, kind in answers}
    assert set(rows) - {"right", "right, with a wrong step", "wrong"} == kinds
    for kind in kinds:
        assert rows[kind] == [str(sum(k == kind for *_, k in a) or "") for a in wrong.values()]
    (kind, *_) = sorted(kinds)
    shown.get_by_role("button", name=kind, exact=True).click()
    shown.select_option("[name=range]", "6 digits")
    n = sum(k == kind for *_, k in wrong["6 digits"])
    found = f"{n} question{'' if n == 1 else 's'}"
    assert shown.locator("#found").inner_text() == found
    assert shown.locator(".answers li").count() == n
    again = show(runs["hybrid"], hash=shown.url[shown.url.index("#") :])  # the address holds the filters
    assert again.locator("#found").inner_text() == found
    assert again.input_value("[name=who]") == "before:hybrid" and again.input_value("[name=result]") == kind
    shown.select_option("[name=result]", "all")
    shown.select_option("[name=range]", "all")
    assert shown.locator(".answers li").count() == 20
    shown.click("#more")
    assert shown.locator(".answers li").count() == sum(map(len, read(runs["hybrid"], "details")["questions"].values()))
    assert shown.locator("#more").is_hidden()


# ---------------------------------------------------------------- the prompt


def test_rows_are_shown_with_their_nearest_words_before_and_now(runs, show):
    shown, results = show(runs["hybrid"]), read(runs["hybrid"], "results")
    shown.locator("#rows summary").click()
    lines = shown.locator("#rows details tbody tr").all()
    assert len(lines) == len(results["nearest_tokens"]) == results["prompt"]["rows"]
    for i in (0, 23, 24, len(lines) - 1):
        row = results["nearest_tokens"][i]
        number, start, then, now, cosine = (cell.text_content() for cell in lines[i].locator("td").all())
        assert (number, cosine) == (str(i), f"{row['cosine_to_init']:.2f}")
        assert start == ("random" if i < 24 else repr(row["init_token"]))
        for shown_words, nearest in (then, row["init_nearest"]), (now, row["nearest"]):
            assert shown_words.split() == "".join(f"{t!r}{c:.2f} " for t, c in nearest).split()


MAPS = [("hybrid", "before"), ("hybrid", "tuned"), ("deep", "tuned"), ("load", "tuned")]


@pytest.mark.parametrize("name, when", MAPS)
def test_the_heat_map_reads_as_the_attention_it_is_made_of(runs, show, name, when):
    shown = show(runs[name])
    a = read(runs[name], "details")["attention"][when]
    canvas = shown.locator(f"canvas[data-when={when}]")
    canvas.scroll_into_view_if_needed()
    box, n = canvas.bounding_box(), len(a["rows"][0][0])
    for layer, head, row in (0, 0, 0), (0, 1, 3), (1, 0, n - 1), (1, 1, n // 2):
        canvas.hover(position={"x": (row + 0.5) * box["width"] / n, "y": (2 * layer + head + 0.5) * box["height"] / 4})
        text = shown.locator("#cell").inner_text()
        assert text.startswith(f"layer {layer + 1}, head {head + 1}, row {row} (")
        assert text.endswith(f": {100 * a['rows'][layer][head][row]:.1f}% of the attention")
    strongest = max((w, i, j, k) for i, la in enumerate(a["rows"]) for j, he in enumerate(la) for k, w in enumerate(he))
    _, layer, head, row = strongest
    pixel = [4 * row + 1, 9 * layer + 4 * head + 1]
    read_pixel = "(c, [x, y]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data]"
    assert canvas.evaluate(read_pixel, pixel) == [0xC1, 0x27, 0x2D, 255]


def test_what_has_no_rows_has_no_map_and_no_words(runs, show):
    shown = show(runs["lora"])
    assert shown.locator("canvas").count() == 0 and shown.locator("#rows").count() == 0
    assert shown.locator(".answers li").count() > 0
    deep = show(runs["deep"])
    assert deep.locator("canvas").count() == 2 and deep.locator("table.rows").count() == 0


def test_curves_are_drawn_for_each_contender(runs, show):
    results = read(runs["hybrid"], "results")
    shown = show(runs["hybrid"])
    lengths, loss = shown.locator(".chart").all()
    assert loss.locator("polyline").count() == len(results["loss"])
    assert lengths.locator("polyline").count() == len(results["accuracy"]) + len(results["before"]) - 1  # not scratch's
    names = [item.inner_text() for item in lengths.locator(".legend li").all()]
    assert set(results["labels"].values()) < set(names)
    assert show(runs["load"]).locator(".chart").count() == 1  # nothing was tuned


def test_points_of_the_curve_stand_where_the_accuracy_says(runs):
    results = read(runs["hybrid"], "results")
    for line in page.length_chart(results)["lines"]:
        (name,) = (n for n, label in results["labels"].items() if label == line["label"].split(", before")[0])
        by_range = results["before" if line["before"] else "accuracy"][name].values()
        expected = [100 - 100 * v["correct"] / v["n"] for a in by_range for v in a["by_length"].values()]
        assert [y for _, y in line["points"]] == pytest.approx(expected)
        assert [x for x, _ in line["points"]] == sorted(x for x, _ in line["points"])


# ---------------------------------------------------------------- data of one's own, screens


def test_text_of_the_data_never_becomes_markup(runs, show):
    for name in ("own", "hybrid"):
        shown = show(runs[name])
        assert shown.evaluate("window.hacked") is None
        assert shown.locator("img").count() == 0 and shown.locator("script").count() == 2
    assert HOSTILE in shown.locator("#rows pre").inner_text()
    own = show(runs["own"], hash="#result=all")
    assert HOSTILE in own.locator(".answers li").first.inner_text()
    assert HOSTILE in own.locator(".confusion thead").inner_text()


def test_classes_have_a_table_of_confusions(runs, show):
    results, shown = read(runs["own"], "results"), show(runs["own"])
    cells = [cell.inner_text() for cell in shown.locator(".confusion tbody td").all()]
    assert cells == [str(n or "") for line in results["classes"]["hybrid"]["confusion"] for n in line]
    taken = [kind for kind in shown.locator(".kinds .kind").all_inner_texts() if " taken for " in kind]
    wrong = results["classes"]["hybrid"]["n"] - results["classes"]["hybrid"]["correct"]
    assert sum(int(re.search(r"\d+$", kind.strip())[0]) for kind in taken) == wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_legible_in_light_and_dark(runs, show, scheme):
    """Contrast of text as WCAG 2 defines it: at least 4.5 for AA."""
    shown = show(runs["hybrid"], color_scheme=scheme)

    def luminance(css):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(x) / 255 for x in css)]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))

    def color(selector, which):
        style = shown.locator(selector).first.evaluate(f"e => getComputedStyle(e).{which}")
        return luminance(re.findall(r"\d+", style)[:3])

    paper = color("html", "backgroundColor")
    assert (paper > 0.9) if scheme == "light" else (paper < 0.02)
    for selector in ("body", ".soft", ".red", ".answers .q"):
        low, high = sorted((paper, color(selector, "color")))
        assert (high + 0.05) / (low + 0.05) > 4.5, selector


@pytest.mark.parametrize("name", ["hybrid", "deep", "lora", "own"])
@pytest.mark.parametrize("width", [390, 1920])
def test_nothing_hangs_over_the_side(runs, show, name, width):
    shown = show(runs[name], width=width)
    assert shown.evaluate("document.documentElement.scrollWidth") == width


def test_it_is_one_small_file(runs):
    for out in runs.values():
        assert Path(out / "report.html").stat().st_size < 400_000
