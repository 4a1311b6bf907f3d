"""contenders.py through train_task.py, on a tiny base of random weights: what prompts begin as, and their rivals."""

import torch
from conftest import results_of

import tasks
from data.tokenizer import Tokenizer
from files.safe import read_tensors


def test_random_only_and_trigger_only(run, tmp_path):
    for name, args, rows, random_rows in (
        ("random", ["--n-random", 5, "--trigger", "none"], 5, 5),
        ("text", ["--n-random", 0, "--trigger", "add"], None, 0),
        ("words", ["--n-random", 0, "--trigger", "instruction"], None, 0),
        ("example", ["--n-random", 0], None, 0),
    ):
        assert run("--out", tmp_path / name, "--beside", "none", *args).code == 0
        p = results_of(tmp_path / name)["prompt"]
        task = tasks.load("addition")
        if name == "example":  # the longest of those tuned on, spelled
            question, answer = p["trigger"].split("=", 1)
            assert answer == task.work(*map(int, question.split("+"))) + f"{eval(question)}$\n"
            assert max(map(len, question.split("+"))) == 4
            assert p["rows"] == len(p["trigger"])
        elif name == "words":
            assert p["trigger"] == task.trigger + "\n"
        assert p["random"] == random_rows
        assert p["rows"] == rows or p["rows"] >= 1
        assert results_of(tmp_path / name)["trainable"]["hybrid"] == 32 * p["rows"]


def test_a_prompt_begins_as_that_of_another_task(run, tmp_path):
    """What it answers before tuning is what the other's file answers, and L2-SP pulls it there."""
    one, two, asked = tmp_path / "one", tmp_path / "two", ["--task", "word_reversal", "--beside", "none"]
    assert run("--task", "last_letter", "--beside", "none", "--lr", 0.1, "--out", one).code == 0
    file = one / "prefix.safetensors"
    assert run(*asked, "--load", file, "--out", tmp_path / "loaded").code == 0
    done = run(*asked, "--init-from", file, "--out", two)
    assert done.code == 0, done.err
    loaded, tuned = (results_of(tmp_path / name) for name in ("loaded", "two"))
    assert tuned["before"]["hybrid"] == loaded["accuracy"]["hybrid"]
    assert tuned["labels"]["hybrid"].endswith("from that of last_letter")
    (_, first), (_, second) = read_tensors(file), read_tensors(two / "prefix.safetensors")
    assert torch.equal(second["start"], first["rows"]) and not torch.equal(second["rows"], first["rows"])
    done = run(*asked, "--load", two / "prefix.safetensors", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    again = results_of(tmp_path / "again")
    assert again["accuracy"]["hybrid"] == tuned["accuracy"]["hybrid"] and again["before"] == {}


def test_rows_begin_on_another_base_of_their_width_and_nothing_else_does(run, tmp_path, base, little_base):
    other, wide = tmp_path / "other", tmp_path / "wide"
    for folder, n_embd in ((other, 32), (wide, 48)):
        little_base(folder, n_layer=1, n_embd=n_embd)
    flags, files = ["--task", "last_letter", "--beside", "none"], {}
    for method in ("hybrid", "ptuning2"):
        assert run(*flags, "--method", method, "--out", tmp_path / method).code == 0
        files[method] = tmp_path / method / "prefix.safetensors"
    hybrid = [*flags, "--init-from", files["hybrid"]]
    assert run(*hybrid, "--model", other, "--out", tmp_path / "moved").code == 0
    assert torch.equal(
        read_tensors(tmp_path / "moved" / "prefix.safetensors")[1]["start"], read_tensors(files["hybrid"])[1]["rows"]
    )
    for args, why in (
        ([*hybrid, "--model", wide], "has rows of width 32, wide of 48"),
        ([*flags, "--method", "ptuning2", "--init-from", files["ptuning2"], "--model", other], "was tuned on the base"),
        ([*flags, "--method", "ptuning2", "--init-from", files["hybrid"]], "is of --method hybrid, not ptuning2"),
        ([*hybrid, "--method", "scratch"], "--init-from"),
    ):
        done = run(*args, "--out", tmp_path / "refused")
        assert (done.code, done.err.count("\n")) == (2, 1) and why in done.err
        assert not (tmp_path / "refused").exists()


def test_several_prompts_vote(run, tmp_path):
    for seed, method in enumerate(("hybrid", "ptuning2", "prompt", "adapter")):
        assert run("--method", method, "--seed", seed, "--beside", "none", "--out", tmp_path / method).code == 0
    files = [tmp_path / m / "prefix.safetensors" for m in ("hybrid", "ptuning2", "prompt", "adapter")]
    done = run("--beside", "none", "--load", *files[:3], "--out", tmp_path / "vote")
    assert done.code == 0, done.err
    results = results_of(tmp_path / "vote")
    assert list(results["accuracy"]) == ["hybrid", "ptuning2 2", "prompt 3", "vote"]
    assert list(results["labels"].values())[-1] == "vote of 3"
    assert results["labels"]["ptuning2 2"] == "P-tuning v2, file 2"
    for some in (files, files[::-1]):
        done = run("--load", *some, "--out", tmp_path / "no")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "adapter/prefix.safetensors cannot vote" in done.err


def test_a_finetuned_rival_comes_without_and_with_the_example(run, tmp_path):
    done = run("--beside", "finetune", "adapter", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    results = results_of(tmp_path / "run")
    rivals = ["finetune", "finetune, 1 shot", "adapter", "adapter, 1 shot"]
    assert list(results["accuracy"])[-4:] == rivals
    for name in rivals:  # as many examples and steps as the prompt
        assert results["examples"][name] == results["examples"]["hybrid"] == [52, 1]  # 12 are held back
    assert results["before"]["finetune"] == results["accuracy"]["zero-shot"] == results["before"]["adapter"]
    assert results["before"]["finetune, 1 shot"] == results["accuracy"]["text"]  # the same example


def test_the_best_context_is_chosen_from_training_questions(run, tmp_path):
    assert run("--out", tmp_path / "run").code == 0
    context = results_of(tmp_path / "run")["context"]
    task = tasks.load("addition")
    test = {e.question for r in task.ranges for e in task.examples(12, r)}
    assert len(context["candidates"]) > 8 and context["shots"] == len(context["text"].splitlines())
    assert not test & {line.split("=")[0] + "=" for line in context["text"].splitlines()}


def test_what_has_no_rows_reads_an_explicit_trigger_as_text(run, tmp_path, base):
    task, answers = tasks.load("addition"), {}
    for name, flags in (
        ("as text", ["--method", "text", "--trigger", "instruction"]),
        ("behind it", ["--method", "lora", "--trigger", "instruction"]),
        ("and a shot", ["--method", "lora", "--trigger", "instruction", "--shots", 1]),
        ("none", ["--method", "lora", "--trigger", "none"]),
        ("default", ["--method", "lora"]),
    ):
        done = run(*flags, "--beside", "none", "--out", tmp_path / name)
        assert done.code == 0, done.err
        answers[name] = results_of(tmp_path / name)
    (text,), behind = answers["as text"]["accuracy"].values(), answers["behind it"]
    assert behind["before"]["lora"] == text  # LoRA's update begins at zero; the kinds of errors are compared as well
    assert behind["labels"]["lora"].endswith("behind the instruction")
    files = {name: read_tensors(tmp_path / name / "prefix.safetensors") for name in list(answers)[1:]}
    shots = {name: tensors.get("shots") for name, (_, tensors) in files.items()}
    tokenizer = Tokenizer.load(base, 1024)
    assert shots["behind it"].tolist() == [tokenizer.encode(task.trigger + "\n")]
    assert shots["and a shot"][0, : shots["behind it"].size(1)].equal(shots["behind it"][0])
    assert shots["and a shot"].size(1) > shots["behind it"].size(1)
    assert shots["none"] is None and shots["default"] is None
    named = {name: results["prompt"]["trigger"] for name, results in answers.items()}
    assert named["behind it"] == task.trigger + "\n" and named["none"] == named["default"] == ""
    assert all(header["trigger"] == named[name] for name, (header, _) in files.items())
    file = tmp_path / "behind it" / "prefix.safetensors"
    assert run("--load", file, "--beside", "none", "--out", tmp_path / "again").code == 0
    assert results_of(tmp_path / "again")["accuracy"] == behind["accuracy"]
