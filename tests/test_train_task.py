"""train_task.py from the command line, on a tiny base of random weights."""

import json
import runpy
import shutil

import pytest
import torch

import muon
import prefix
import tasks
from data.batches import encode
from eval.accuracy import answers, score
from eval.baselines import scratch
from model import GPT, GPTConfig
from prefix import HybridPrefix


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint folder as --model takes it."""
    folder = tmp_path_factory.mktemp("models") / "little"
    torch.manual_seed(0)
    GPT(GPTConfig(vocab_size=1024, block_size=256, n_layer=2, n_head=2, n_embd=32)).save(folder)
    shutil.copy("data/nano/encoding.json", folder)
    return folder


@pytest.fixture
def run(command, base):
    """Call train_task.py as a command: exit code, stdout, stderr."""

    def run(*args, small=True):
        few = (
            ["--examples", "64", "--test-examples", "12", "--scratch-epochs", "1", "--few-shots", "2"] if small else []
        )
        return command("train_task.py", "--model", base, *few, *args)

    return run


@pytest.mark.parametrize("task", tasks.names())
def test_every_task_runs_to_the_end(run, tmp_path, task):
    out = tmp_path / "run"
    done = run("--task", task, "--out", out, "--mlp")
    assert done.code == 0, done.err
    results = json.loads((out / "results.json").read_text())
    ranges = list(tasks.load(task).ranges)
    assert ranges[0] == "in-distribution"
    for method in ("zero-shot", "few-shot", "hybrid", "scratch"):
        assert list(results["accuracy"][method]) == ranges
        for a in results["accuracy"][method].values():
            assert a["n"] == 12
            assert 0 <= a["exact_match"] <= a["correct"] <= a["n"]
            assert a["low"] <= a["correct"] / a["n"] <= a["high"]
    assert sorted(p.name for p in out.iterdir()) == [
        "accuracy_by_length.png",
        "loss.png",
        "prefix.safetensors",
        "results.json",
    ]
    assert "hybrid prefix" in done.out and "nearest tokens now" in done.out


def test_raw_bpe_runs_too(run, tmp_path):
    assert run("--task", "word_reversal", "--tokenize", "bpe", "--out", tmp_path / "bpe").code == 0
    done = run("--task", "word_reversal", "--load", tmp_path / "bpe" / "prefix.safetensors", "--out", tmp_path / "two")
    assert done.code == 0, done.err
    one, two = without_timings(tmp_path / "bpe"), without_timings(tmp_path / "two")
    assert two["args"]["tokenize"] == "bpe"  # as the prefix was tuned
    assert one["accuracy"]["hybrid"] == two["accuracy"]["hybrid"]


@pytest.mark.parametrize(
    "args",
    [
        *([method] for method in prefix.METHODS),
        ["prompt", "--init", "uniform"],
        ["prompt", "--init", "labels"],
        ["prompt", "--init", "trigger", "--n-random", 9],
        ["ptuning", "--place", "inside"],
        ["ptuning", "--place", "after"],
        ["ptuning2", "--layers", 1],
        ["ptuning2", "--head"],
        ["hybrid", "--dtype", "bfloat16", "--shots", 1],
        ["adapter", "--bottleneck", 3, "--shots", 1],
        ["finetune", "--dtype", "bfloat16"],
    ],
    ids=lambda args: " ".join(map(str, args)),
)
def test_every_method_is_tuned_saved_and_loaded(run, tmp_path, args):
    method, *more = args
    done = run("--method", *args, "--no-baselines", "--out", tmp_path / "one")
    assert done.code == 0, done.err
    one = without_timings(tmp_path / "one")
    assert list(one["accuracy"]) == [method]
    assert prefix.METHODS[method].title in done.out
    if method == "instruct":
        assert one["loss"] == {} and one["trainable"][method] == 0
    else:
        first, second = one["loss"][method]["loss"]
        assert first != second
        assert (one["trainable"][method] == 0) == (method == "hard")
    same = (
        more[more.index("--dtype") :]
        if "--dtype" in more
        else more[more.index("--shots") :]
        if "--shots" in more
        else []
    )
    done = run("--no-baselines", "--load", tmp_path / "one" / "prefix.safetensors", "--out", tmp_path / "two", *same)
    assert done.code == 0, done.err
    assert without_timings(tmp_path / "two")["accuracy"] == one["accuracy"]


def test_a_pull_keeps_rows_near_their_start(run, tmp_path):
    moved = []
    for pull in (0, 1e6):
        out = tmp_path / str(pull)
        done = run("--pull", pull, "--lr", 0.1, "--epochs", 10, "--no-baselines", "--out", out)
        assert done.code == 0, done.err
        _, tensors = prefix.read(out / "prefix.safetensors")
        moved.append((tensors["rows"] - tensors["start"]).norm().item())
    assert 0 < moved[1] < 0.7 * moved[0]
    done = run("--method", "adapter", "--pull", 1, "--out", tmp_path / "no")
    assert (done.code, done.err.count("\n")) == (2, 1) and "--pull is not for --method adapter" in done.err


def test_several_prompts_vote(run, tmp_path):
    for seed, method in enumerate(("hybrid", "ptuning2", "prompt", "adapter")):
        assert run("--method", method, "--seed", seed, "--no-baselines", "--out", tmp_path / method).code == 0
    files = [tmp_path / m / "prefix.safetensors" for m in ("hybrid", "ptuning2", "prompt", "adapter")]
    done = run("--no-baselines", "--load", *files[:3], "--out", tmp_path / "vote")
    assert done.code == 0, done.err
    results = without_timings(tmp_path / "vote")
    assert list(results["accuracy"]) == ["hybrid", "prompt 2", "prompt 3", "ensemble"]
    assert "vote of 3" in done.out and "P-tuning v2, file 2" in done.out
    for some in (files, files[::-1]):
        done = run("--load", *some, "--out", tmp_path / "no")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "adapter/prefix.safetensors cannot vote" in done.err


@pytest.mark.parametrize("method", ["zero-shot", "few-shot", "scratch"])
def test_a_baseline_alone(run, tmp_path, method):
    done = run("--method", method, "--no-baselines", "--out", tmp_path / "one")
    assert done.code == 0, done.err
    assert list(without_timings(tmp_path / "one")["accuracy"]) == [method]


def test_options_of_another_method_are_refused(run, tmp_path):
    for args, why in (
        (("--layers", 1), "--layers is not for --method hybrid: prefix, ptuning2, adapter-prefix take it"),
        (("--method", "prompt", "--mlp"), "--mlp is not for --method prompt: hybrid take it"),
        (("--method", "adapter", "--bottleneck", 0), "--bottleneck 0: give at least 1"),
        (("--shots", 50), "--shots 50: only"),
    ):
        done = run(*args, "--out", tmp_path / "out")
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert why in done.err
    assert not (tmp_path / "out").exists()


def test_methods_are_listed(run):
    done = run("--methods")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == list(prefix.METHODS)


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
    done = run(
        "--task", train, "--test", test, "--out", tmp_path / "run", "--finetune-epochs", 1, "--test-examples", 20
    )
    assert done.code == 0, done.err
    assert "1 broken rows left out, line 91" in done.err
    assert "20 prompts occur in" in done.err
    assert "1 rows to train on are too long for the base: left out, line 92" in done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["accuracy"]["majority"]["in-distribution"]["correct"] in (6, 7)
    for method in ("zero-shot", "few-shot", "hybrid", "finetune", "scratch"):
        c = results["classes"][method]
        assert c["n"] == 20 == sum(map(sum, c["confusion"]))
        assert c["correct"] == sum(c["confusion"][i][i] for i in range(3))
        assert results["labels"][method] in done.out
    assert "macro-F1" in done.out and "always" in done.out
    assert (tmp_path / "run" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert results["prefix"]["trigger"] == "Answer with one of: blue, green, red."


def test_a_classification_head_learns_what_the_questions_say(run, tmp_path):
    path = tmp_path / "own.jsonl"
    rows = ((f"{colour} {i}", colour) for i in range(120) for colour in ("red", "green"))
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    args = ("--task", path, "--method", "ptuning2", "--head", "--epochs", 20, "--no-baselines", "--model", "nano")
    assert run(*args, "--out", tmp_path / "run", small=False).code == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["classes"]["ptuning2"]["correct"] == results["classes"]["ptuning2"]["n"] > 20


def test_your_own_text_is_generated(run, tmp_path):
    path = some_questions(tmp_path / "own.jsonl", 90, [f"the answer {i}" for i in range(90)])
    done = run("--task", path, "--out", tmp_path / "run", "--scratch-epochs", 0, "--finetune-epochs", 0)
    assert done.code == 0, done.err
    assert "every step right" in done.out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["classes"] == {}
    assert set(results["accuracy"]) == {"zero-shot", "few-shot", "hybrid"}


def test_fine_tuning_learns_and_leaves_the_base_alone(run, tmp_path, base):
    before = (base / "model.safetensors").read_bytes()
    args = (
        "--task",
        "word_reversal",
        "--examples",
        8,
        "--batch-size",
        4,
        "--finetune-epochs",
        100,
        "--finetune-lr",
        1e-2,
    )
    done = run(*args, "--scratch-epochs", 0, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    loss = without_timings(tmp_path / "run")["loss"]
    assert loss["finetune"]["loss"][-1] < 0.05 < 1 < loss["hybrid"]["loss"][-1]
    assert (base / "model.safetensors").read_bytes() == before


def without_timings(path):
    return {k: v for k, v in json.loads((path / "results.json").read_text()).items() if k != "seconds"}


def test_the_same_seed_gives_the_same_results(run, tmp_path):
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        assert run("--task", "last_letter", "--seed", seed, "--out", tmp_path / name).code == 0
    one, again, other = (without_timings(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one["loss"] != other["loss"]


def test_a_saved_prefix_reproduces_its_accuracy(run, tmp_path):
    run("--task", "word_reversal", "--out", tmp_path / "one", "--mlp")
    done = run("--task", "word_reversal", "--load", tmp_path / "one" / "prefix.safetensors", "--out", tmp_path / "two")
    assert done.code == 0, done.err
    one, two = without_timings(tmp_path / "one"), without_timings(tmp_path / "two")
    assert one["accuracy"]["hybrid"] == two["accuracy"]["hybrid"]
    assert one["neighbours"] == two["neighbours"]
    assert two["loss"] == {}


def test_tuning_leaves_the_base_bit_identical(base):
    train = runpy.run_path("train_task.py")["train"]
    model = GPT.load(base).freeze()
    before = [p.clone() for p in model.parameters()]
    prompt = HybridPrefix(model, 4, [40], mlp=True)
    start = prompt.rows.detach().clone()
    _, letters = scratch(0, 256)
    encoded = encode(letters, tasks.load("addition").examples(64, split="train"))
    train(model, prompt, encoded, 1, 16, [torch.optim.AdamW(prompt.parameters(), 1e-2)], 0, "test")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert not torch.equal(start, prompt.rows)


def test_training_learns_what_it_is_shown():
    """Twelve reversals by heart: loss near zero, and greedy decoding gives every one back."""
    train = runpy.run_path("train_task.py")["train"]
    task = tasks.load("word_reversal")
    examples = task.examples(12, split="train")
    model, letters = scratch(0, 64)
    curve = train(model, None, encode(letters, examples), 60, 4, muon.optimizers(model, 2e-2, 2e-3), 0, "test")
    assert curve["loss"][0] > 4 > 0.05 > curve["loss"][-1]
    assert curve["examples"][-1] == 60 * 12
    assert score(task, examples, generate_answers(model, None, letters, task, encode(letters, examples)))["exact_match"] == 12


def test_a_prefix_steers_nano(tokenizer):
    """The loss of the frozen base on 64 examples falls by a third within half a minute of tuning."""
    train = runpy.run_path("train_task.py")["train"]
    nano = GPT.load("data/nano").freeze()
    encoded = encode(tokenizer, tasks.load("addition").examples(64, split="train"))
    prompt = HybridPrefix(nano, 8)
    curve = train(nano, prompt, encoded, 15, 16, [torch.optim.AdamW(prompt.parameters(), 1e-2)], 0, "test")
    assert sum(curve["loss"][-8:]) < 2 / 3 * sum(curve["loss"][:8])


def test_random_only_and_trigger_only(run, tmp_path):
    for name, args, rows, random_rows in (
        ("random", ["--n-random", 5, "--no-trigger"], 5, 5),
        ("text", ["--n-random", 0, "--trigger", "add"], None, 0),
        ("words", ["--n-random", 0, "--trigger-words"], None, 0),
        ("example", ["--n-random", 0], None, 0),
    ):
        assert run("--out", tmp_path / name, *args).code == 0
        p = without_timings(tmp_path / name)["prefix"]
        task = tasks.load("addition")
        if name == "example":  # the longest of those tuned on, spelled
            question, answer = p["trigger"].split("=", 1)
            assert answer == task.work(*map(int, question.split("+"))) + f"{eval(question)}$\n"
            assert max(map(len, question.split("+"))) == 4
            assert p["rows"] == len(p["trigger"])
        elif name == "words":
            assert p["trigger"] == task.trigger
        assert p["random"] == random_rows
        assert p["rows"] == rows or p["rows"] >= 1
        assert without_timings(tmp_path / name)["trainable"]["hybrid"] == 32 * p["rows"]


BAD = [
    (["--task", "sums"], "no task 'sums': choose from addition"),
    (["--model", "gpt5"], "no model 'gpt5'"),
    (["--model", "tests"], "no model.safetensors in tests"),
    (["--task", "none.jsonl"], "no file none.jsonl"),
    (["--test", "none.jsonl"], "--test and the columns are for your own data"),
    (["--finetune-lr", "0"], "--finetune-lr 0.0: give"),
    (["--trigger", " "], "--trigger is empty"),
    (["--no-trigger", "--trigger", "add"], "--no-trigger contradicts"),
    (["--n-random", "0", "--no-trigger"], "no rows"),
    (["--n-random", "250"], "block_size 256"),
    (["--load", "README.md"], "cannot be read"),
    (["--load", "nowhere"], "no prefix file nowhere"),
    (["--trigers", "add"], "unrecognized arguments: --trigers"),
    (["--examples", "many"], "invalid int value: 'many'"),
    (["--lr", "0"], "--lr 0.0: give"),
    (["--lr", "nan"], "--lr nan: give"),
    (["--batch-size", "0"], "--batch-size 0: give at least 1"),
    (["--n-random", "-1"], "--n-random -1: give at least 0"),
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
    assert "already in use: give another --out, or --overwrite" in done.err
    assert (tmp_path / "results.json").read_text() == "precious"
    assert run("--out", tmp_path, "--overwrite").code == 0
    assert json.loads((tmp_path / "results.json").read_text())["task"] == "addition"


def test_a_loss_that_is_not_a_number_ends_the_run_and_loses_nothing(run, tmp_path, base):
    folder = tmp_path / "broken"
    model = GPT.load(base)
    with torch.no_grad():
        model.ln_f.weight[0] = torch.nan
    model.save(folder)
    shutil.copy(base / "encoding.json", folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("precious")
    done = run("--model", folder, "--out", tmp_path / "out", "--overwrite")
    assert done.code == 2
    assert "the loss of hybrid prefix became nan after 0 examples: lower --lr (0.01)" in done.err
    assert (tmp_path / "out" / "results.json").read_text() == "precious"


def test_help_reads_well(run):
    done = run("--help", small=False)
    assert done.code == 0
    for word in ("--task", "--trigger-words", "--quick", "default 20000"):
        assert word in done.out
