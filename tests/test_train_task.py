"""train_task.py from the command line, on a tiny base of random weights."""

import json
from functools import partial

import pytest
import torch
from conftest import results_of
from tqdm import tqdm

import prefix
import tasks
import train_task
from data.batches import encode
from data.tokenizer import Tokenizer
from eval.accuracy import generate_answers, score
from files.prompts import load_prefix
from files.safe import read_tensors
from files.weights import load_model
from prefix import METHODS, HybridPrefix, Scratch
from run import resume
from train_task import train


@pytest.mark.parametrize("task", tasks.names())
def test_every_task_runs_to_the_end(run, little_base, tmp_path, task):
    out = tmp_path / "run"
    done = run("--task", task, "--out", out, "--mlp", "--model", little_base(tmp_path / "base", n_layer=1, n_embd=32))
    assert done.code == 0, done.err
    results = json.loads((out / "results.json").read_text())
    ranges = list(tasks.load(task).ranges)
    assert ranges[0] == "in-distribution"
    contenders = ["zero-shot", "text", "few-shot", "hybrid-instruction", "hybrid", "scratch"]
    assert list(results["accuracy"]) == contenders and list(results["before"]) == contenders[3:]
    for by_range in (*results["accuracy"].values(), *results["before"].values()):
        assert list(by_range) == ranges
        for a in by_range.values():
            assert a["n"] == 12
            assert 0 <= a["exact_match"] <= a["correct"] <= a["n"]
            assert a["low"] <= a["correct"] / a["n"] <= a["high"]
    assert sorted(p.name for p in out.iterdir() if p.name != resume.LOCK) == [
        "accuracy_by_length.png",
        "details.json",
        "loss.png",
        "prefix.safetensors",
        "report.html",
        "results.json",
    ]
    assert "hybrid prefix" in done.out and "nearest tokens now" in done.out


def test_raw_bpe_runs_too(run, tmp_path):
    assert run("--task", "word_reversal", "--tokenize", "bpe", "--out", tmp_path / "bpe").code == 0
    done = run("--task", "word_reversal", "--load", tmp_path / "bpe" / "prefix.safetensors", "--out", tmp_path / "two")
    assert done.code == 0, done.err
    one, two = results_of(tmp_path / "bpe"), results_of(tmp_path / "two")
    assert one["accuracy"]["hybrid"] == two["accuracy"]["hybrid"]


@pytest.mark.parametrize(
    "args",
    [
        *([method] for method in prefix.METHODS if method not in ("zero-shot", "few-shot", "scratch", "translator")),
        ["prompt", "--init", "uniform"],
        ["prompt", "--init", "labels"],
        ["prompt", "--init", "trigger", "--n-random", 9],
        ["ptuning", "--position", "inside"],
        ["ptuning", "--position", "after"],
        ["ptuning2", "--layers", 1],
        ["ptuning2", "--head"],
        ["hybrid", "--dtype", "bfloat16", "--shots", 1],
        ["adapter", "--bottleneck", 3, "--shots", 1],
        ["lora", "--rank", 2, "--rslora"],
        ["cpt", "--epsilon", 0.5, "--trigger-examples", 2],
        ["cartridge", "--trigger-examples", 3, "--n-random", 7, "--window", 50],
        ["finetune", "--dtype", "bfloat16"],
    ],
    ids=lambda args: " ".join(map(str, args)),
)
def test_every_method_is_tuned_saved_and_loaded(run, tmp_path, args):
    method = args[0]
    few = "--task", "word_reversal", "--beside", "none"
    done = run(*few, "--method", *args, "--out", tmp_path / "one")
    assert done.code == 0, done.err
    one = results_of(tmp_path / "one")
    assert list(one["accuracy"]) == [method]
    assert prefix.METHODS[method].label in done.out
    if method == "text":
        assert one["loss"] == {} == one["before"] and one["trainable"][method] == 0
    else:
        first, second = one["loss"][method]["loss"]
        assert first != second
        assert (one["trainable"][method] == 0) == (method == "hard")
    same = args[args.index("--dtype") :][:2] if "--dtype" in args else []
    done = run(*few, "--load", tmp_path / "one" / "prefix.safetensors", "--out", tmp_path / "two", *same)
    assert done.code == 0, done.err
    two = results_of(tmp_path / "two")
    assert two["accuracy"] == one["accuracy"]  # the worked examples of --shots are in the file as well
    assert two["before"] == one["before"]  # what does not learn has none


def test_a_text_becomes_a_cache_that_sample_reads(base, command, tmp_path):
    """The divergence after tuning is that of the saved prompt's own next tokens from those behind the text."""
    text = "It was late in the autumn of the year when he came down to the old house by the river. "
    (tmp_path / "letter.txt").write_text(text)
    flags = ["--model", base, "--text", tmp_path / "letter.txt", "--examples", 256, "--n-random", 4, "--lr", 0.03]
    flags += ["--dtype", "float32"]
    done = command("train_task.py", "--method", "cartridge", *flags, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["divergence"]["tuned"] < results["divergence"]["before tuning"]
    model = load_model(base)
    tokenizer = Tokenizer.load(base, 1024, "bpe")
    tokens = tokenizer.encode(text)
    assert (results["tokens"], results["rows"]) == (len(tokens), 4)
    cartridge, header = load_prefix(tmp_path / "out" / "prefix.safetensors", model, tokenizer)
    assert (header["tokenize"], header["stop"], header["trigger"]) == ("bpe", "", text)
    assert cartridge.text.tolist() == tokens
    assert torch.equal(cartridge.start, prefix.DeepPrefix(model, 0, tokens[:4]).rows)
    asked = ["--model", base, "--prefix", tmp_path / "out" / "prefix.safetensors", "--prompt", "It was", "--compare"]
    assert command("sample.py", *asked, "--max-new-tokens", 5).code == 0


def test_l2_sp_keeps_rows_near_their_start(run, tmp_path):
    distances = []
    for weight in (0, 1e6):
        out = tmp_path / str(weight)
        done = run("--l2-sp", weight, "--lr", 0.1, "--epochs", 10, "--beside", "none", "--out", out)
        assert done.code == 0, done.err
        _, tensors = read_tensors(out / "prefix.safetensors")
        distances.append((tensors["rows"] - tensors["start"]).norm().item())
    assert 0 < distances[1] < 0.7 * distances[0]
    done = run("--method", "adapter", "--l2-sp", 1, "--out", tmp_path / "no")
    assert (done.code, done.err.count("\n")) == (2, 1) and "--l2-sp is not for --method adapter" in done.err


@pytest.mark.parametrize("method", ["zero-shot", "few-shot", "scratch"])
def test_a_baseline_alone(run, tmp_path, method):
    done = run("--method", method, "--beside", "none", "--out", tmp_path / "one")
    assert done.code == 0, done.err
    assert list(results_of(tmp_path / "one")["accuracy"]) == [method]


def test_options_of_another_method_are_refused(run, tmp_path):
    for args, why in (
        (("--layers", 1), "--layers is not for --method hybrid: ptuning2, prefix, adapter-prefix take it"),
        (("--method", "prompt", "--mlp"), "--mlp is not for --method prompt: hybrid take it"),
        (("--method", "adapter", "--bottleneck", 0), "--bottleneck 0: give at least 1"),
        (("--shots", 50), "exceed block_size 256: use fewer rows or shots"),
    ):
        done = run(*args, "--out", tmp_path / "out")
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert why in done.err
    assert not (tmp_path / "out").exists()


def test_without_baselines_the_table_has_no_best_context(run, tmp_path):
    done = run("--beside", "none", "--out", tmp_path / "run")
    assert done.code == 0 and "tuning adds to its start" in done.out and "best context" not in done.out
    assert not (tmp_path / "run" / "report.html").exists() and "report.html" not in done.out
    results = results_of(tmp_path / "run")
    assert list(results["before"]) == list(results["accuracy"]) == ["hybrid"]


def test_main_returns_what_results_json_holds(base, tmp_path):
    argv = f"--model {base} --examples 32 --test-examples 5 --beside none --out {tmp_path / 'run'}".split()
    results = train_task.main(argv)
    assert json.loads(json.dumps(results)) == json.loads((tmp_path / "run" / "results.json").read_text())


def test_the_progress_bar_holds_no_state(run, tmp_path, monkeypatch):
    """A disabled bar counts nothing. tqdm reads TQDM_DISABLE when it is imported: here the bar itself is disabled."""
    curves = []
    for disable in (False, True):
        monkeypatch.setattr(train_task, "tqdm", partial(tqdm, disable=disable))
        assert run("--beside", "none", "--out", tmp_path / f"run {disable}").code == 0
        curves.append(results_of(tmp_path / f"run {disable}")["loss"])
    assert curves[0] == curves[1] and curves[0]["hybrid"]["examples"][-1] == 52  # of 64 a fifth is held back


def some_questions(path, n, answers=("red", "green", "blue")):
    path.write_text(
        "".join(
            json.dumps({"prompt": f"What colour is {i}?", "answer": answers[i % len(answers)]}) + "\n" for i in range(n)
        )
    )
    return path


def test_your_own_classes_are_compared_by_likelihood(run, tmp_path):
    train = some_questions(tmp_path / "train.jsonl", 90)
    with open(train, "a") as file:
        file.write("not JSON\n" + json.dumps({"prompt": "long " * 300, "answer": "red"}))
    test = some_questions(tmp_path / "test.jsonl", 20)
    done = run("--task", train, test, "--out", tmp_path / "run", "--test-examples", 20)
    assert done.code == 0, done.err
    assert "1 broken rows left out, line 91" in done.err
    assert "20 prompts occur in" in done.err
    assert "1 rows to train on are too long for the base: left out, line 92" in done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["accuracy"]["majority"]["in-distribution"]["correct"] in (6, 7)
    methods = ("zero-shot", "text", "few-shot", "hybrid", "finetune", "finetune, 1 shot", "scratch")
    assert set(results["classes"]) - {"majority", "tfidf"} == set(methods)
    assert set(results["classes_before"]) == {"hybrid", "finetune", "finetune, 1 shot", "scratch"}
    for method in methods:
        c = results["classes"][method]
        assert c["n"] == 20 == sum(map(sum, c["confusion"]))
        assert c["correct"] == sum(c["confusion"][i][i] for i in range(3))
        assert results["labels"][method] in done.out
    assert "macro-F1" in done.out and "always" in done.out
    assert done.out.count("tuning adds to its start") == 4
    assert (tmp_path / "run" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert results["prompt"]["trigger"] == "Answer with one of: blue, green, red.\n"


def test_a_classification_head_learns_what_the_questions_say(run, tmp_path):
    path = tmp_path / "own.jsonl"
    rows = ((f"{colour} {i}", colour) for i in range(120) for colour in ("red", "green"))
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    args = ("--task", path, "--method", "ptuning2", "--head", "--epochs", 20, "--beside", "none", "--model", "nano-2")
    assert run(*args, "--out", tmp_path / "run", small=False).code == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["classes"]["ptuning2"]["correct"] == results["classes"]["ptuning2"]["n"] > 20


def test_your_own_text_is_generated(run, tmp_path):
    path = some_questions(tmp_path / "own.jsonl", 90, [f"the answer {i}" for i in range(90)])
    done = run("--task", path, "--out", tmp_path / "run", "--beside", "scratch")
    assert done.code == 0, done.err
    assert "every step right" in done.out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["classes"] == {}
    assert set(results["accuracy"]) == {"zero-shot", "text", "few-shot", "hybrid", "scratch"}


def test_fine_tuning_learns_and_leaves_the_base_alone(run, tmp_path, base):
    before = (base / "model.safetensors").read_bytes()
    few = ("--task", "word_reversal", "--examples", 8, "--batch-size", 4, "--epochs", 100, "--test-examples", 5)
    done = run("--method", "finetune", "--lr", 1e-2, *few, "--beside", "none", "--out", tmp_path / "run", small=False)
    assert done.code == 0, done.err
    loss = results_of(tmp_path / "run")["loss"]["finetune"]["loss"]
    assert loss[-1] < 0.05 < 1 < loss[0]
    assert (base / "model.safetensors").read_bytes() == before


def test_the_same_seed_gives_the_same_results(run, tmp_path):
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        assert run("--task", "last_letter", "--seed", seed, "--out", tmp_path / name).code == 0
    one, again, other = (results_of(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one["loss"] != other["loss"]


def test_a_saved_prefix_reproduces_its_accuracy(run, tmp_path):
    run("--task", "word_reversal", "--out", tmp_path / "one", "--mlp")
    done = run("--task", "word_reversal", "--load", tmp_path / "one" / "prefix.safetensors", "--out", tmp_path / "two")
    assert done.code == 0, done.err
    one, two = results_of(tmp_path / "one"), results_of(tmp_path / "two")
    assert one["accuracy"]["hybrid"] == two["accuracy"]["hybrid"]
    assert one["nearest_tokens"] == two["nearest_tokens"]
    assert one["before"]["hybrid"] == two["before"]["hybrid"]  # the start is made again from the file
    assert "scratch" not in two["accuracy"]  # nothing is trained
    assert two["loss"] == {}


def tune(method, model, encoded, epochs, batch_size):
    return train(method, model, encoded, epochs, batch_size, method.lr, torch.float32, seed=0)


def test_tuning_leaves_the_base_bit_identical(base, tokenizer):
    model = load_model(base).freeze()
    before = [p.clone() for p in model.parameters()]
    prompt = HybridPrefix(model, 4, [40], mlp=True)
    start = prompt.rows.detach().clone()
    tune(prompt, model, encode(tokenizer, tasks.load("addition").examples(64, split="train")), 1, 16)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert not torch.equal(start, prompt.rows)


def test_training_learns_what_it_is_shown(tokenizer):
    """Twelve reversals by heart: loss near zero, and greedy decoding gives every one back."""
    task = tasks.load("word_reversal")
    examples = task.examples(12, split="train")
    method = Scratch(block_size=64)
    letters = method.tokenizer(tokenizer)
    encoded = encode(letters, examples)
    curve = tune(method, method.net, encoded, 60, 4)
    assert curve["loss"][0] > 4 > 0.05 > curve["loss"][-1]
    assert curve["examples"][-1] == 60 * 12
    texts = generate_answers(method.net, None, letters, task, encoded)
    assert score(task, examples, texts)["exact_match"] == 12


def test_a_prefix_steers_nano(tokenizer):
    """The loss of the frozen base on 64 examples falls by a third within half a minute of tuning."""
    nano = load_model("data/nano-2").freeze()
    encoded = encode(tokenizer, tasks.load("addition").examples(64, split="train"))
    loss = tune(HybridPrefix(nano, 8), nano, encoded, 15, 16)["loss"]
    assert sum(loss[-8:]) < 2 / 3 * sum(loss[:8])


BAD = [
    (["--task", "sums"], "no task 'sums': choose from addition"),
    (["--text", "README.md"], "--text README.md is for --method cartridge"),
    (["--method", "cartridge", "--text", "README.md"], "README.md has "),
    (["--method", "cartridge", "--text", "missing.txt"], "missing.txt"),
    (["--method", "cartridge", "--trigger", "none"], "a cartridge of no text"),
    (["--method", "lora", "--rank", "0"], "--rank 0: give at least 1"),
    (["--model", "gpt5"], "no model 'gpt5'"),
    (["--model", "tests"], "no model.safetensors in tests"),
    (["--task", "none.jsonl"], "no file none.jsonl"),
    (["--task", "addition", "none.jsonl"], "--columns and --answer-after are for your own data"),
    (["--trigger", " "], "--trigger: the text is empty"),
    (["--n-random", "0", "--trigger", "none"], "no rows"),
    (["--n-random", "250"], "block_size 256"),
    (["--load", "README.md"], "cannot be read"),
    (["--load", "nowhere"], "no prefix file nowhere"),
    (["--trigers", "add"], "unrecognized arguments: --trigers"),
    (["--examples", "many"], "'many' is not a whole number"),
    (["--lr", "0"], "--lr: 0: give a number above 0"),
    (["--lr", "nan"], "--lr: nan: give"),
    (["--batch-size", "0"], "--batch-size: 0: give at least 1"),
    (["--n-random", "-1"], "--n-random: -1: give at least 0"),
    (["--quick", "--examples", "0"], "--examples: 0: give at least 1"),
    (["--out", "/dev/null"], "/dev/null"),
    (["--out", "/proc/nothing"], "cannot write to /proc/nothing"),
]


@pytest.mark.parametrize("args, message", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_gets_one_line_and_code_2(run, tmp_path, args, message):
    done = run("--out", tmp_path / "run", *args)
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("train_task.py: ")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused_and_kept(run, tmp_path):
    (tmp_path / "results.json").write_text("precious")
    done = run("--out", tmp_path)
    assert done.code == 2
    assert "already in use: give another --out, --resume to go on, or --overwrite" in done.err
    assert (tmp_path / "results.json").read_text() == "precious"
    assert run("--out", tmp_path, "--overwrite").code == 0
    assert json.loads((tmp_path / "results.json").read_text())["task"] == "addition"


def test_a_loss_that_is_not_a_number_ends_the_run_and_loses_nothing(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("precious")
    done = run("--lr", 1e30, "--beside", "none", "--out", tmp_path / "out", "--overwrite")
    assert done.code == 2
    assert "hybrid prefix from the example: the loss became nan after 52 examples: lower --lr (1e+30)" in done.err
    assert (tmp_path / "out" / "results.json").read_text() == "precious"


def test_help_reads_well(run):
    done = run("--help", small=False)
    assert done.code == 0
    for word in ("--task", "--trigger", "--quick", "default 4000", *METHODS):
        assert word in done.out
