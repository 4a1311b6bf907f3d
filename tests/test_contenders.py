"""contenders.py through train_task.py, on a tiny base of random weights: what prompts begin as, and their baselines."""

import pytest
import torch
from conftest import results_of

import tasks
from data.tokenizer import Tokenizer
from files.safe import read_tensors
from files.weights import load_model
from research.peft import export_peft
from run.contenders import NO_TRIGGER, build_prompts, contexts
from run.prompts import load_prefix
from train_task import evaluate, parse_args


@pytest.fixture
def tune(run, tmp_path):
    """A prompt alone, tuned for two steps: what its run measured, and its file."""

    def tune(name, *flags):
        few = "--task", "word_reversal", "--beside", "none", "--examples", 40, "--test-examples", 4
        run(*few, *flags, "--out", tmp_path / name).ok()
        return results_of(tmp_path / name), tmp_path / name / "prefix.safetensors"

    return tune


@pytest.mark.parametrize("trigger, text", [("none", ""), ("turn round", "turn round\n")])
def test_rows_are_random_or_begin_as_the_trigger(tiny, tokenizer, trigger, text):
    args = parse_args(["--n-random", "2", "--trigger", trigger, "--device", "cpu"])
    prompts, found = build_prompts(args, tiny, tokenizer, tasks.load("word_reversal"))
    rows, words = prompts["hybrid"].rows, tokenizer.encode(text)
    assert found.text == text and len(rows) == 2 + len(words)
    assert torch.equal(rows[2:], tiny.wte.weight[words])


def test_a_trigger_is_the_longest_example_tuned_on_or_as_many_as_are_named(tiny, tokenizer):
    task = tasks.load("addition")
    args = parse_args("--n-random 0 --trigger example --beside none --examples 64 --device cpu".split())
    prompts, trigger = build_prompts(args, tiny, tokenizer, task)
    question, answer = trigger.text.split("=", 1)
    terms = question.split("+")
    assert answer == task.work(*map(int, terms)) + f"{sum(map(int, terms))}$\n" and max(map(len, terms)) == 4
    assert prompts["hybrid"].n_rows() == len(trigger.text)  # spelled
    args.trigger, args.task, task = "examples:3", ["word_reversal"], tasks.load("word_reversal")
    _, trigger = build_prompts(args, tiny, tokenizer, task)
    assert trigger.text.splitlines() == [e.question + e.answer for e in task.examples(3, split="train")]


def test_prompt_tuning_reports_and_stores_a_trigger_only_where_it_begins_as_one(tune):
    results, file = tune("vocabulary", "--method", "prompt")
    assert results["prompt"]["trigger"] == read_tensors(file)[0]["trigger"] == ""
    assert "from the" not in results["labels"]["prompt"]
    results, file = tune("trigger", "--method", "prompt", "--init", "trigger")
    assert results["prompt"]["trigger"] == read_tensors(file)[0]["trigger"] != ""
    assert results["labels"]["prompt"].endswith("from the instruction")


def test_a_prompt_begins_as_that_of_another_task(tune, base):
    """What it answers before tuning is what the other's file answers."""
    _, file = tune("one", "--task", "last_letter", "--lr", 0.1)
    results, second = tune("two", "--init-from", file)
    model, tokenizer, task = load_model(base), Tokenizer.load(base, 1024), tasks.load("word_reversal")
    tests = {name: task.examples(4, name) for name in task.ranges}
    score, *_ = evaluate(load_prefix(file, model, tokenizer)[0], model, tokenizer, task, tests, "")
    assert results["before"]["hybrid"] == score
    assert results["labels"]["hybrid"].endswith("from that of last_letter")
    (_, first), (_, second) = read_tensors(file), read_tensors(second)
    assert torch.equal(second["start"], first["rows"]) and not torch.equal(second["rows"], first["rows"])


def test_a_prompt_of_another_base_or_method_is_no_start(tune, run, tmp_path, little_base):
    (_, hybrid), other, out = tune("hybrid"), little_base(tmp_path / "other", 1, 32), tmp_path / "refused"
    run("--init-from", hybrid, "--model", other, "--out", out).refused("was tuned on the base")
    run("--init-from", hybrid, "--method", "ptuning2", "--out", out).refused("is of --method hybrid, not ptuning2")
    assert not out.exists()


def test_baselines_run_zero_shot_and_one_shot_beside_the_best_context(run, tmp_path):
    flags = "--task", "word_reversal", "--examples", 64, "--test-examples", 6, "--beside", "finetune", "adapter"
    run(*flags, "--out", tmp_path / "run").ok()
    results = results_of(tmp_path / "run")
    baselines = ["finetune", "finetune, 1 shot", "adapter", "adapter, 1 shot"]
    contenders = ["text", "one-shot", "few-shot", "hybrid", *baselines]
    assert list(results["accuracy"]) == contenders
    for name in baselines:  # as many examples and steps as the prompt
        assert results["examples"][name] == results["examples"]["hybrid"] == [52, 1]  # 12 are held out
    assert results["before"]["finetune"] == results["before"]["adapter"]  # the base alone
    assert results["before"]["finetune, 1 shot"] == results["accuracy"]["one-shot"]  # the same example
    context, task = results["context"], tasks.load("word_reversal")
    test = {e.question for r in task.ranges for e in task.examples(12, r)}
    assert context["shots"] == len(context["text"].splitlines())
    assert not test & {line.split("=")[0] + "=" for line in context["text"].splitlines()}


def test_what_has_no_rows_reads_an_explicit_trigger_as_text(tune, base):
    instruction, trigger = ("--method", "lora", "--trigger", "instruction"), tasks.load("word_reversal").trigger + "\n"
    text, _ = tune("as text", "--method", "text", "--trigger", "instruction")
    behind, file = tune("behind it", *instruction)
    assert behind["before"]["lora"] == text["accuracy"]["text"]  # LoRA's update begins at zero
    assert behind["labels"]["lora"].endswith("behind the instruction")
    header, tensors = read_tensors(file)
    model, tokenizer = load_model(base), Tokenizer.load(base, 1024)
    args = parse_args([*instruction, "--shots", "1", "--device", "cpu"])
    with_shot, _ = build_prompts(args, model, tokenizer, tasks.load("word_reversal"))
    (before,), (shots,) = tensors["shots"].tolist(), with_shot["lora"].shots.tolist()
    assert before == tokenizer.encode(trigger)
    assert shots[: len(before)] == before and len(shots) > len(before)
    assert behind["prompt"]["trigger"] == header["trigger"] == trigger
    results, file = tune("default", "--method", "lora")
    assert results["prompt"]["trigger"] == "" and "shots" not in read_tensors(file)[1]


def test_every_text_begins_with_the_start_token_of_a_base_that_has_one(tiny_llama, tokenizer, tmp_path):
    """Also a best context that a stopped run had found."""
    tokenizer, task = Tokenizer(tokenizer.encoding, "bytes"), tasks.load("word_reversal")
    tokenizer.bos = [tiny_llama.config.bos_token]

    def prompts(flags):
        args = parse_args([*flags.split(), "--n-random", "2", "--device", "cpu"])
        return args, *build_prompts(args, tiny_llama, tokenizer, task)

    args, found, trigger = prompts("")
    assert trigger.tokens[:1] == tokenizer.bos and found["hybrid"].shots is None  # its rows begin as that
    examples = task.examples(20, split="train")
    found, context = contexts(args, tiny_llama, tokenizer, task, examples, trigger, 60)
    again, _ = contexts(args, tiny_llama, tokenizer, task, examples, trigger, 60, known=context)
    assert found["few-shot"].trigger == again["few-shot"].trigger
    for name in ("few-shot", "text", "one-shot"):
        assert found[name].trigger[:1] == tokenizer.bos
    alone, _ = contexts(args, tiny_llama, tokenizer, task, examples, NO_TRIGGER, 60, known=context)
    assert alone["zero-shot"].shots.tolist() == [tokenizer.bos]
    _, found, _ = prompts("--method prompt --shots 1")
    assert found["prompt"].shots[0, :1].tolist() == tokenizer.bos and found["prompt"].shots.numel() > 1
    _, found, _ = prompts("--trigger none")
    assert found["hybrid"].shots.tolist() == [tokenizer.bos]
    export_peft(found["hybrid"], tiny_llama, tmp_path)  # PEFT's tokenizer puts it behind rows by itself
