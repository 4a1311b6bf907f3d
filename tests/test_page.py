"""report.html in headless Chromium shows what results.json and details.json say."""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO

import jinja2
import pytest
from conftest import read_results

import train_task
from eval import page, plots

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

    def show(out, width=1920, hash="", **options):
        shown = browser.new_page(viewport={"width": width, "height": 1080}, **options)
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
def runs(tmp_path_factory, little_base):
    """Tiny runs, {name: folder}; their contenders are wrong nearly always."""
    folder = tmp_path_factory.mktemp("runs")
    base = little_base(folder / "little", n_layer=2, n_embd=32)
    lines = [{"prompt": f"{HOSTILE} {i}", "answer": ["red", HOSTILE, "blue"][i % 3]} for i in range(60)]
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = ["--model", str(base), "--examples", "32", "--test-examples", "8", "--epochs", "1"]
    for name, argv in {
        "hybrid": ["--task", "addition", "--trigger", f"Add. {HOSTILE}"],
        "own": ["--task", str(folder / "own.jsonl"), "--beside", "adapter", "--n-random", "5"],
    }.items():
        with redirect_stdout(StringIO()):
            train_task.main([*few, *argv, "--out", str(folder / name)])
    return {name: folder / name for name in ("hybrid", "own")}


def read_details(out):
    return json.loads((out / "details.json").read_text())


def percent(a):
    return f"{100 * a['correct'] / a['n']:.1f}"


@pytest.mark.parametrize("name", ["hybrid", "own"])
def test_each_accuracy_stands_beside_its_start_and_the_best_context(runs, show, name):
    results, shown = read_results(runs[name]), show(runs[name])
    after, before = results["accuracy"], results["before"]
    lines = shown.locator(".accuracy tbody tr")
    assert lines.count() == len(after) > len(before) > 0
    for line, (contender, by_range) in zip(lines.all(), after.items()):
        assert line.locator("th").inner_text() == results["labels"][contender]
        for cell, (r, a) in zip(line.locator("td").all(), by_range.items()):
            text, start = cell.inner_text(), before.get(contender, {}).get(r)
            interval = f"95% interval: {100 * a['low']:.1f} to {100 * a['high']:.1f}"
            assert cell.locator(".whisker").get_attribute("title") == interval
            assert text.startswith(f"{percent(start)} → {percent(a)}" if start else percent(a))
            if start:
                gain, over = (100 * (a["correct"] - b["correct"]) / a["n"] for b in (start, after["few-shot"][r]))
                assert f"{gain:+.1f} to its start, {over:+.1f} to the best context" in text
    lede = shown.locator(".lede").inner_text()
    assert results["labels"]["few-shot"] in lede and results["labels"][results["method"]] in lede
    assert f": {percent(next(iter(before[results['method']].values())))}% " in lede
    assert shown.locator("#again pre").inner_text() == results["command"]
    assert shown.locator("#play").evaluate("a => a.hash") == f"#{runs[name].name}"
    word = shown.locator("dfn", has_text="best context").first
    word.focus()  # what the term means is in the box below it
    assert "serve best as plain text" in word.evaluate("word => getComputedStyle(word, '::after').content")


def test_the_page_is_made_again_of_its_files(runs, tmp_path, monkeypatch):
    for file in ("results.json", "details.json"):
        shutil.copy(runs["hybrid"] / file, tmp_path)
    page.main([str(tmp_path)])
    assert (tmp_path / "report.html").read_text() == (runs["hybrid"] / "report.html").read_text()
    assert (tmp_path / "report.html").stat().st_size < 400_000
    monkeypatch.setattr(jinja2, "FileSystemLoader", lambda folder: jinja2.DictLoader({"report.html.jinja": "{% if %}"}))
    with pytest.raises(jinja2.TemplateSyntaxError):  # of somebody who changes the template
        page.main([str(tmp_path)])


def test_a_run_whose_pictures_fail_has_its_results_and_its_page(run, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "write", lambda fig, path: 1 / 0)
    done = run("--task", "addition", "--beside", "adapter", "--out", tmp_path / "run").ok()
    assert "plot_lengths gives no picture" in done.err
    assert {"results.json", "report.html"} < {p.name for p in (tmp_path / "run").iterdir()}
    assert "<img" not in (tmp_path / "run" / "report.html").read_text()


def wrong_answers(out, when):
    """[(range, question, true answer, text, kind of error)], as many as results.json counts."""
    details, found = read_details(out), []
    for r, questions in details["questions"].items():
        pairs = zip(questions, details["written"][when]["hybrid"][r])
        wrong = [(r, q, truth, answer[0], answer[2]) for (q, truth, _), answer in pairs if answer and not answer[1]]
        measured = read_results(out)[when]["hybrid"][r]
        assert measured["n"] - measured["correct"] == len(wrong)
        found += wrong
    return found


def test_wrong_answers_come_first_with_their_first_wrong_character_marked(runs, show):
    shown, wrong = show(runs["hybrid"]), wrong_answers(runs["hybrid"], "accuracy")
    assert shown.locator("#found").inner_text() == f"{len(wrong)} questions"
    items = shown.locator(".answers li").all()
    assert len(items) == min(5, len(wrong)) > 0
    for item, (r, question, truth, text, kind) in zip(items, wrong):
        assert item.locator("div").first.inner_text() == f"{r} · {kind}"
        i = next(i for i in range(99) if truth[i : i + 1] != text[i : i + 1])
        glyph = {"": "(end)", " ": "␣", "\n": "⏎"}.get(text[i : i + 1], text[i : i + 1])
        assert item.locator("mark").text_content() == glyph
        assert item.locator(".mono").last.text_content() == question + text[:i] + glyph + text[i + 1 :]


def test_filters(runs, show):
    shown, wrong = show(runs["hybrid"]), wrong_answers(runs["hybrid"], "before")
    questions, kinds = read_details(runs["hybrid"])["questions"], sorted({kind for *_, kind in wrong})
    shown.select_option("[name=who]", "before:hybrid")
    shown.get_by_role("button", name=kinds[0], exact=True).click()
    shown.select_option("[name=range]", "6 digits")
    n = sum((r, kind) == ("6 digits", kinds[0]) for r, *_, kind in wrong)
    again = show(runs["hybrid"], hash=shown.url[shown.url.index("#") :])  # the address holds the filters
    assert shown.locator(".answers li").count() == again.locator(".answers li").count() == min(5, n)
    shown.get_by_role("button", name="all", exact=True).click()
    shown.select_option("[name=range]", "all")
    shown.click("#more")
    assert shown.locator(".answers li").count() == sum(map(len, questions.values()))


def test_rows_are_shown_with_their_nearest_words_before_and_now(runs, show):
    results = read_results(runs["hybrid"])
    lines = show(runs["hybrid"]).locator(".rows tbody tr").all()
    assert len(lines) == len(results["nearest_tokens"]) == results["prompt"]["rows"]
    for i in (0, 23, 24, len(lines) - 1):
        row = results["nearest_tokens"][i]
        number, start, then, now, cosine = (cell.text_content() for cell in lines[i].locator("td").all())
        assert (number, cosine) == (str(i), f"{row['cosine_to_init']:.2f}")
        assert start == ("random" if i < 24 else repr(row["init_token"]))
        for shown_words, nearest in (then, row["init_nearest"]), (now, row["nearest"]):
            assert shown_words.split() == "".join(f"{t!r}{c:.2f} " for t, c in nearest).split()


@pytest.mark.parametrize("name, when", [("hybrid", "before"), ("own", "tuned")])
def test_the_heat_map_reads_as_the_attention_it_is_made_of(runs, show, name, when):
    shown, rows = show(runs[name]), read_details(runs[name])["attention"][when]["rows"]
    canvas = shown.locator(f"canvas[data-when={when}]")
    canvas.scroll_into_view_if_needed()
    box, n = canvas.bounding_box(), len(rows[0][0])
    for layer, head, row in (0, 1, 3), (1, 0, n - 1):
        canvas.hover(position={"x": (row + 0.5) * box["width"] / n, "y": (2 * layer + head + 0.5) * box["height"] / 4})
        text = shown.locator("#cell").inner_text()
        assert text.startswith(f"layer {layer + 1}, head {head + 1}, row {row} (")
        assert text.endswith(f": {100 * rows[layer][head][row]:.1f}% of the attention")
    _, layer, head, row = max(
        (w, i, j, k) for i, la in enumerate(rows) for j, he in enumerate(la) for k, w in enumerate(he)
    )
    read_pixel = "(c, [x, y]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data]"
    assert canvas.evaluate(read_pixel, [4 * row + 1, 9 * layer + 4 * head + 1]) == [0xC1, 0x27, 0x2D, 255]


@pytest.mark.parametrize("name", ["hybrid", "own"])
def test_figures_are_drawn_and_text_of_the_data_never_becomes_markup(runs, show, name):
    shown = show(runs[name], width=390, hash="#result=all")
    drawn = "image => image.decode().then(() => image.naturalWidth)"
    assert shown.locator("img").count() == 2  # none of them the data's
    assert all(image.evaluate(drawn) for image in shown.locator("img").all())
    assert shown.evaluate("window.hacked") is None and shown.locator("script").count() == 2
    assert HOSTILE in shown.locator("#rows pre" if name == "hybrid" else ".answers li").first.inner_text()
    assert shown.evaluate("document.documentElement.scrollWidth") == 390  # nothing hangs over the side
