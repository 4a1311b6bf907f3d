"""The playground: its ONNX graph is held to model.py, and its page, in headless Chromium, to sample.py."""

import functools
import gzip
import http.server
import json
import os
import shutil
import subprocess
import threading

import pytest
import test_page
import torch
from conftest import ROOT, assert_close

import sample
import tasks
from data.tokenizer import Tokenizer
from eval.attention import attention_weights
from eval.contexts import as_text
from files.safe import read_tensors, write_json
from files.weights import load_model
from generate import generate
from prefix import METHODS, HybridPrefix
from run.prompts import load_prefix, save_prefix

export = pytest.importorskip("playground.export", reason="needs onnx: pip install '.[playground]'")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.xdist_group("playground")  # one process exports, builds the page and starts the browser
TASKS = "addition", "last_letter"
browser = test_page.browser


@pytest.fixture(scope="module")
def nano():
    model = load_model("nano-2").freeze()
    return model, Tokenizer.load(model.folder, model.config.vocab_size)


def write_run(folder, task, method, model, tokenizer):
    """A folder as a run leaves it, of a prompt that was not tuned."""
    folder.mkdir(parents=True)
    right = {"correct": 1, "n": 4}
    scores = {r: {"by_length": {str(n): right for n in range(a, b + 1)}} for r, (a, b) in task.ranges.items()}
    results = dict.fromkeys(("accuracy", "before"), {method.name: scores})
    results |= {"method": method.name, "labels": {method.name: method.label}, "args": {"model": "nano-2"}}
    results |= {"new_words": task.new_words, "in_distribution_lengths": next(iter(task.ranges.values()))}
    write_json(folder / "results.json", results)
    save_prefix(method, folder / "prefix.safetensors", model, tokenizer, task.name, stop=task.stop)


@pytest.fixture(scope="module")
def made(tmp_path_factory, nano):
    """({run: folder}, the page's folder): a prompt for each task that begins as noise and ends as a worked example."""
    model, tokenizer = nano
    folder = tmp_path_factory.mktemp("playground")
    runs = {name: folder / name for name in TASKS}
    for name, run in runs.items():
        task = tasks.load(name)
        text = as_text(task.worth_showing(task.examples(50, split="train"), 1))
        method = HybridPrefix(model, n_random=4, trigger=tokenizer.encode_task(text))
        method.start.copy_(torch.randn(method.start.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        write_run(run, task, method, model, tokenizer)
    export.main(["--run", *map(str, runs.values()), "--out", str(folder / "page")])
    return runs, folder / "page"


@pytest.fixture(scope="module")
def graph(made):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(gzip.decompress((made[1] / "model.onnx.gz").read_bytes()), options)


def step(graph, rows, tokens, past):
    tokens = torch.tensor([tokens], dtype=torch.long)
    feeds = {"rows": rows.numpy(), "tokens": tokens.numpy(), "past_key_values": past.numpy()}
    return [torch.tensor(out) for out in graph.run(None, feeds)]


@torch.no_grad()
def test_the_graph_is_the_network_behind_every_prompt(made, graph, nano):
    model, tokenizer = nano
    nothing, no_rows = export.as_tensor(export.empty_cache(model)), torch.zeros(1, 0, 256)
    for name, run in made[0].items():
        header, tensors = read_tensors(made[1] / f"{name}.safetensors")
        about, (method, _) = json.loads(header["about"]), load_prefix(run / "prefix.safetensors", model, tokenizer)
        for rows, past in zip(tensors["rows"], (model.prefill(method.start[None]), method.past(model))):
            _, cache, *_ = step(graph, rows[None], [], nothing)
            assert_close(cache, export.as_tensor(past), 1e-3)
        asked = tokenizer.encode_task(next(iter(about["questions"].values()))[0][0])
        (written,) = generate(model, [asked], 60, past, stop=[about["stops"]])
        tokens = torch.tensor([asked + written])
        logits, _, *attention = step(graph, no_rows, asked + written, cache)
        torch.testing.assert_close(logits, model.logits(model(tokens, past)), atol=1e-3, rtol=0)
        assert logits[0, len(asked) - 1 : -1].argmax(-1).tolist() == written
        for ours, theirs in zip(attention, attention_weights(model, tokens, past), strict=True):
            assert_close(ours, theirs)


def test_a_prompt_is_added_to_a_page_that_is_there(made, nano, tmp_path):
    (model, tokenizer), page, task = nano, tmp_path / "page", tasks.load("addition")
    shutil.copytree(made[1], page)
    before = (page / "model.onnx.gz").stat().st_mtime_ns
    write_run(tmp_path / "keys", task, METHODS["ptuning2"](model, 3), model, tokenizer)
    write_run(tmp_path / "low", task, METHODS["lora"](model), model, tokenizer)
    export.main(["--run", str(tmp_path / "keys"), "--out", str(page)])
    assert json.loads((page / "index.json").read_text())["prompts"] == [*made[0], "keys"]
    assert (page / "model.onnx.gz").stat().st_mtime_ns == before
    _, keys = read_tensors(page / "keys.safetensors")
    assert keys["cache"].shape == (2, 6, 2, 1, 4, 3, 64) and keys["rows"].shape == (2, 0, 256)
    with pytest.raises(export.UserError, match="lora is no KV cache"):
        export.main(["--run", str(tmp_path / "low"), "--out", str(page)])
    words = Tokenizer(tokenizer.encoding, "bpe")
    write_run(tmp_path / "words", task, HybridPrefix(model, 2), model, words)
    with pytest.raises(export.UserError, match="tokenize bytes"):
        export.main(["--run", str(tmp_path / "words"), "--out", str(page)])


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def address(made, browser):
    """Where the built page is served."""
    if not (ROOT / "playground" / "node_modules").exists() or not shutil.which("npx"):
        pytest.skip("no Node.js, or its packages are missing: npm ci --prefix playground")
    env = os.environ | {"PLAYGROUND_OUT": str(made[1])}
    done = subprocess.run(["npm", "run", "build"], cwd=ROOT / "playground", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=made[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def show(browser, address):
    """Open the page. What fails on it, and what it asks of another origin, fails the test."""
    opened, wrong = [], []

    def show(hash="", script="", routes=(), expect=True, **options):
        context = browser.new_context(viewport={"width": 1366, "height": 768}, **options)
        page = context.new_page()
        page.set_default_timeout(120_000)  # a machine may be busy
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") and expect else None)
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else wrong.append(r.url))
        page.add_init_script(script)
        for pattern in routes:
            page.route(pattern, lambda route: route.fulfill(status=404))
        page.goto(address + hash)
        opened.append(context)
        if expect:
            page.wait_for_function("'ready' in document.body.dataset")
            rest(page)
        return page

    yield show
    for context in opened:
        context.close()
    assert not wrong


def rest(page):
    """Wait until the page has written and counted everything."""
    page.wait_for_function("!document.body.dataset.busy")


def written(page, box="#behind"):
    return page.locator(f"{box} .text").inner_text()


def ask(page, question):
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_function("!document.body.dataset.busy.includes('ask')")


def count(page):
    """How many of 20 fresh questions have a right answer: they are asked once they can be seen."""
    page.locator("#tiles").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#right').innerText.endsWith('of 20 right')")
    return int(page.inner_text("#right").split()[0])


def test_the_page_writes_what_sample_writes(made, show, nano):
    page, model = show(), nano[0]
    for name, run in made[0].items():
        page.get_by_label(name.replace("_", " "), exact=True).check(force=True)
        about = json.loads(read_tensors(made[1] / f"{name}.safetensors")[0]["about"])
        (question, *_), *_ = next(iter(about["questions"].values()))
        args = sample.parse_args(["--prefix", str(run / "prefix.safetensors"), "--compare", "--dtype", "float32"])
        bases = sample.load_bases(args, model)
        ask(page, question)
        for box, text in zip(("#behind", "#alone"), sample.answer(bases, question, args)):
            shown = (question + text).replace(" ", "␣").replace("\n", "⏎")
            assert written(page, box).removesuffix("∎").removesuffix(about["stop"]) == shown


def test_every_control_changes_what_it_should(show):
    page = show("#addition")
    ask(page, "321+654=")
    right = "321+654=1405;2507;3609;000=975$"
    assert written(page) == right and "✓" in page.inner_text("#behind .verdict")
    assert count(page) == 20 and page.locator("#dots .right").count() == 20

    # another kind of prompt, and the slider between the first two
    for kind in "example", "instruction", "random", "start":
        page.check(f"#kinds [value={kind}]", force=True)
        rest(page)
        assert (written(page) == right) == (kind == "example")
        assert page.locator("#t").is_disabled() == (kind != "start")
    assert page.input_value("#t") == "0" and count(page) < 20
    page.focus("#t")
    page.keyboard.press("End")
    rest(page)
    assert written(page) == right and page.locator("#kinds [value=end]").is_checked()

    # tiles: by keyboard, and their words
    tiles = page.locator("#tiles button")
    tiles.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tile").startswith("Row 2 began as random numbers. Nearest words")
    for i in range(tiles.count()):
        if i != 1:
            tiles.nth(i).dispatch_event("click")
    page.keyboard.press("Enter")
    rest(page)
    assert page.locator("#tiles [aria-pressed=true]").count() == 0
    assert written(page) == written(page, "#alone")  # nothing is left of the prompt
    page.check("#kinds [value=example]", force=True)
    rest(page)

    # attention: a head, and a character of the answer
    page.locator("#behind .a").nth(1).focus()
    whole = page.inner_text("#look")
    page.get_by_role("button", name="layer 2, head 3").click()
    assert page.inner_text("#look").startswith("Layer 2, head 3 gave") and page.inner_text("#look") != whole
    page.locator("#behind .a").nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#meaning").startswith("“0” is the carry from the column before. Column 1 from the right")
    assert page.locator("#tiles [style*=look]").count() and page.locator("#behind .q[style*=look]").count() == 8

    # dots, fresh questions, examples, length
    page.locator("#dots button").nth(3).click()
    assert page.input_value("#question") in page.locator("#dots button").nth(3).get_attribute("title")
    titles = [dot.get_attribute("title") for dot in page.locator("#dots button").all()]
    page.click("#fresh")
    count(page)
    assert titles != [dot.get_attribute("title") for dot in page.locator("#dots button").all()]
    page.locator("#examples button").first.click()
    assert page.input_value("#question") == page.locator("#examples button").first.inner_text()
    page.locator("#contenders").scroll_into_view_if_needed()
    page.focus("#length")
    page.keyboard.press("Home")
    rest(page)
    assert page.inner_text("#length-is") == "1 digit" and page.locator("#contenders .right").count() > 15
    assert page.locator("#chart svg path").count() > 1


def test_offline_once_loaded_and_small(show, made, address):
    sizes, context = [], show().context
    page = context.pages[0]
    page.on("response", lambda r: sizes.append(len(r.body())))
    page.reload()
    page.wait_for_function("'ready' in document.body.dataset")
    assert 8e6 < sum(sizes) < 15e6, sizes
    context.set_offline(True)
    for name in made[0]:
        page.get_by_label(name.replace("_", " "), exact=True).check(force=True)
        page.wait_for_function("!document.body.dataset.busy")
        assert "✓" in page.inner_text("#behind .verdict") or page.locator("#behind .a").count()


@pytest.mark.parametrize(
    "fault, remedy",
    [
        ({"routes": ["**/model.onnx.gz"]}, "model.onnx.gz is missing (404). Build the page again"),
        ({"routes": ["**/addition.safetensors"]}, "addition.safetensors is missing (404)"),
        ({"script": "delete window.WebAssembly"}, "needs WebAssembly"),
    ],
)
def test_what_is_missing_is_named_with_a_remedy(show, fault, remedy):
    page = show("#addition", expect=False, **fault)
    page.wait_for_selector("#status.error")
    assert remedy in page.inner_text("#status")


def test_a_prompt_that_is_not_there_is_named_with_the_command_that_adds_it(show):
    assert "python -m playground.export --run out/mine" in show("#mine").inner_text("#status")


def test_questions_that_cannot_be_asked(show):
    page = show("#addition")
    for question, remedy in ("1" * 600, "shorten it"), ("", "write one"):
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_selector("#status.error")
        assert remedy in page.inner_text("#status")
    ask(page, "1+2=")
    assert page.inner_text("#status") == "" and written(page).startswith("1+2=")


def test_the_page_fits_and_everything_has_a_name(show):
    page = show("#last_letter", has_touch=True, color_scheme="dark")
    unnamed = "e => ![e.ariaLabel, e.textContent, e.labels?.[0]?.textContent].some(t => t?.trim())"
    assert page.evaluate(f"[...document.querySelectorAll('button, input, a')].filter({unnamed}).length") == 0
    for width in 390, 1366, 1920:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
