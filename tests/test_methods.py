"""The methods of methods/ against peft and arithmetic by hand, and every method from the command line to its file."""

import peft
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, in_transformers, results_of, some_tokens
from test_prefix import TEXTS, logits_behind, make
from torch.utils.flop_counter import FlopCounterMode

import tasks
import train_task
from data.tokenizer import Tokenizer
from files.weights import load_model
from generate import generate
from methods.cartridge import Cartridge, divergence
from methods.recent import CPT, DePT, LoPT
from methods.weights import FinetuneTop2
from model import GPT
from prefix import DeepPrefix, HybridPrefix
from run.prompts import METHODS, load_prefix


@pytest.fixture(scope="module")
def base(tmp_path_factory, little_base):
    return little_base(tmp_path_factory.mktemp("models") / "large", n_layer=2, n_embd=32, std=0.3)


RUNS = [[name] for name in METHODS if name not in ("zero-shot", "few-shot", "scratch", "translator", "text")] + [
    ["text", "--trigger", "instruction"],
    ["prompt", "--init", "labels"],
    ["prompt", "--init", "trigger", "--n-random", 9],
    ["ptuning", "--position", "inside"],
    ["adapter-prefix", "--layers", 1],
    ["hybrid", "--mlp", "--dtype", "bfloat16", "--shots", 1],
    ["lora", "--rank", 2, "--trigger", "instruction"],
    ["cartridge", "--trigger", "examples:3", "--n-random", 7],
]


@pytest.mark.parametrize("args", RUNS, ids=lambda args: " ".join(map(str, args)))
def test_every_method_is_tuned_saved_and_loaded(base, no_drawing, tmp_path, args):
    """What the file's prompt answers is what the run measured after tuning, to the letter."""
    name, out = args[0], tmp_path / "run"
    few = "--task word_reversal --beside none --examples 40 --batch-size 16 --test-examples 6".split()
    argv = ["--model", base, *few, "--lr", 0.005, "--method", *args, "--out", out]
    results = train_task.main(list(map(str, argv)))
    assert list(results.accuracy) == [name]
    assert (results.loss == {} == results.before) if name == "text" else len(set(results.loss[name]["loss"])) > 1
    assert (results.trainable[name] == 0) == (name in ("text", "hard"))
    task, model = tasks.load("word_reversal"), load_model(base, dtype=getattr(torch, results.args["dtype"]))
    tokenizer = Tokenizer.load(base, 1024)
    method, header = load_prefix(out / "prefix.safetensors", model, tokenizer)
    assert (header["task"], header["stop"]) == ("word_reversal", "$")
    tests = {name: task.examples(6, name) for name in task.ranges}
    score, answers = train_task.evaluate(method, model, tokenizer, task, tests, "")
    assert (score, answers) == (results.accuracy[name], results.written["accuracy"][name])
    assert len({text for texts in answers.values() for text in texts}) > 2


@pytest.mark.parametrize("method", ["zero-shot", "few-shot", "scratch"])
def test_a_baseline_alone(run, tmp_path, method):
    few = "--examples", 40, "--test-examples", 3, "--beside", "none"
    run(*few, "--method", method, "--out", tmp_path).ok()
    assert list(results_of(tmp_path)["accuracy"]) == [method]


def test_lora_multiplies_by_a_frozen_matrix_once_forwards_and_at_most_once_backwards(tiny):
    """Multiplications of one layer, by hand: x W and its two thin products, and backwards the gradients of x and of
    the thin matrices. None of them is that of W, and the lowest layer's input needs none of x either."""
    layer = make("lora, rank 3", tiny).network(tiny).h[0].mlp.c_fc
    n, n_in, n_out, rank = 10, 16, 64, 3
    for needs_gradient in (True, False):
        x = torch.randn(n, n_in, requires_grad=needs_gradient)
        with FlopCounterMode(display=False) as flops:
            layer(x).sum().backward()
        frozen, thin = 2 * n * n_in * n_out, 2 * n * rank * (n_in + n_out)
        # forwards W, A and B; backwards W (of x) and A and B (each of its input and of itself)
        want = 2 * frozen + 3 * thin if needs_gradient else frozen + 3 * thin - 2 * n * n_in * rank
        assert flops.get_total_flops() == want


def test_top_2_blocks_alone_learn(tiny):
    model = GPT(type(tiny.config)(1024, 96, 3, 2, 16)).freeze()
    learn = {name.split(".")[2] for name, p in FinetuneTop2(model).named_parameters() if p.requires_grad}
    assert learn == {"1", "2"}


BATCH = (  # tokens, targets and answer, as training_batches makes them
    torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]]),
    torch.tensor([[1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 0, 0]]),
    torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]).bool(),
)


def test_a_cartridge_learns_what_the_base_says_with_the_text_in_its_context(tiny):
    """Against probabilities of the text and its continuation read whole, without any cache, and KL by hand."""
    text = [7, 8, 9, 10, 11]
    cartridge = Cartridge(tiny, n_random=2, trigger=text, seed=1)
    assert torch.equal(cartridge.rows, DeepPrefix(tiny, trigger=text[:2]).rows) and cartridge.n_positions() == 2
    tokens, answer, want = cartridge.teach(tiny, *BATCH)
    questions = {(3, 1, 4): 4, (2, 6): 4}  # and at most how many tokens the teacher writes
    by_hand, kl = [], 0.0
    for row, at in zip(tokens, answer):
        first, last = at.nonzero().flatten()[[0, -1]].tolist()
        n = questions.pop(tuple(row[: first + 1].tolist()))
        assert 1 <= last - first + 1 <= n
        said = tiny.logits(tiny(torch.cat([torch.tensor(text), row])[None]))[0, len(text) :]
        by_hand.append(said[at].log_softmax(-1))
        behind = tiny.logits(tiny(row[None], cartridge.past(tiny)))[0, at].log_softmax(-1)
        kl += (by_hand[-1].exp() * (by_hand[-1] - behind)).sum()
    assert not questions
    assert_close(want, torch.cat(by_hand))
    got = divergence(tiny, cartridge.past(tiny), tokens, answer, want)
    assert_close(got, kl / answer.sum())
    got.backward()
    assert cartridge.rows.grad.abs().sum() > 0 and all(p.grad is None for p in tiny.parameters())


def test_a_cartridge_reads_no_label_and_one_of_the_whole_text_has_nothing_to_learn(tiny):
    tokens, targets, answer = BATCH
    losses = []
    for change in (0, 100):  # answers of other tokens, but for the last
        other = [tokens.clone(), targets.clone(), answer]
        other[0][0, 3:], other[1][0, 2:5] = other[0][0, 3:] + change, other[1][0, 2:5] + change
        cartridge = Cartridge(tiny, n_random=2, trigger=[7, 8, 9, 10, 11], seed=1)
        losses.append(cartridge.loss(tiny, *other).item())
    assert losses[0] == losses[1] > 1e-3
    assert Cartridge(tiny, trigger=[7, 8, 9, 10, 11]).loss(tiny, *BATCH).abs() < 1e-5


@pytest.mark.parametrize(
    "room, step",
    [
        (96 - 3 - 4, 1),  # block_size less the longest question and answer
        (80, 10),  # 20 examples of 10 tokens, each with a 5 at its end, of which 8 fit
    ],
)
def test_the_teacher_reads_another_part_of_a_text_that_is_too_long_each_time(tiny, room, step):
    """Of 200 tokens, behind which the base of 96 positions could write nothing: against every part there is."""
    text = torch.randint(6, 1024, (200,), generator=torch.Generator().manual_seed(3))
    if step > 1:
        text[9::10] = 5
    parts = text.unfold(0, room, step)  # (parts, room)
    cartridge, found = Cartridge(tiny, n_random=4, trigger=text.tolist()), set()
    for _ in range(4):
        tokens, answer, want = cartridge.teach(tiny, *BATCH)
        said = tiny.logits(tiny(torch.cat([parts, tokens[:1].expand(len(parts), -1)], 1)))[:, room:][:, answer[0]]
        apart = (said.log_softmax(-1) - want[: answer[0].sum()]).abs().amax((1, 2))
        assert apart.min() < 1e-4
        found.add(apart.argmin().item())
    assert len(found) > 1


def test_cpt_takes_the_steps_of_peft(tiny, tmp_path):
    """Three steps of Adam, of which the first already leaves the ball: rows and logits stay the same."""
    ours, tokens = CPT(tiny, trigger=[40, 41, 42, 43], epsilon=0.5), some_tokens(3, 12)
    ball = {"opt_projection_epsilon": 0.5, "opt_projection_format_epsilon": 0.5}
    config = peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[40, 41, 42, 43], **ball)
    theirs = in_transformers(tiny, tmp_path, config)
    learned = theirs.prompt_encoder.default.delta_embedding.weight
    optimizers = torch.optim.Adam([ours.rows], 0.1), torch.optim.Adam([learned], 0.1)
    for _ in range(3):
        got = tiny.logits(tiny(tokens, ours.past(tiny)))
        want = theirs.base_model(inputs_embeds=torch.cat([theirs.get_prompt(3), theirs.word_embeddings(tokens)], 1))
        assert_close(got, want.logits[:, 4:])
        for logits in (got, want.logits[:, 4:]):
            F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ours.after_step(tiny, None, None)
        shift = theirs.get_prompt(1)[0] - ours.start  # PEFT puts it into the ball where it is read
        assert_close(ours.rows - ours.start, shift)
        torch.testing.assert_close(shift.norm(dim=1), torch.full((4,), 0.5 * (16 / 2048) ** 0.5))


def test_lopt_begins_as_the_closest_product_and_of_full_rank_as_the_rows(tiny):
    given = {"n_random": 6, "trigger": [1, 2, 3], "seed": 2}
    rows, lopt = HybridPrefix(tiny, **given).rows.detach(), LoPT(tiny, **given, rank=4)
    assert_close(LoPT(tiny, **given, rank=9).embeddings(), rows)
    assert torch.linalg.matrix_rank(lopt.embeddings()) == 4 and lopt.n_rows() == 9
    left_out = torch.linalg.svdvals(rows)[4:]  # Eckart & Young (1936): no product of rank 4 is closer
    torch.testing.assert_close((rows - lopt.embeddings()).norm(), left_out.norm())


def test_dept_shifts_each_position_of_a_text_and_takes_two_rates(tiny):
    """Against rows of words and shifts put together by hand, text written included, in a batch of two lengths."""
    dept = make("dept", tiny)
    shift = dept.A @ dept.B  # (block_size, C)
    for text, new in zip(TEXTS, generate(dept.network(tiny), TEXTS, 6, dept.past(tiny))):
        x = torch.cat([dept.rows, tiny.wte(torch.tensor(text + new)) + shift[: len(text) + 6]])
        logits = tiny.logits(tiny(x[None]))[0, len(dept.rows) :]
        assert logits[len(text) - 1 : -1].argmax(-1).tolist() == new
        assert_close(logits[: len(text)], logits_behind(dept, tiny, [text])[0][0])
    (optimizer,) = dept.optimizers(1e-2, torch.float32)
    assert [(len(g["params"]), g["lr"]) for g in optimizer.param_groups] == [(1, 1e-2), (2, 1e-3)]
    untouched, plain = (kind(tiny, n_random=3, trigger=[5], seed=1) for kind in (DePT, HybridPrefix))
    for got, want in zip(logits_behind(untouched, tiny, TEXTS), logits_behind(plain, tiny, TEXTS)):
        assert torch.equal(got, want)


def test_a_memory_stands_outside_the_softmax(tiny):
    """y + elu(q) M, a head and a position at a time, also where the text is written."""
    prompt = make("prefix-memory", tiny)
    network = prompt.network(tiny)
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(2))
    q, k, v = (tiny.h[1].attn.c_attn(x)[0]).chunk(3, -1)  # (T, C) each
    want = torch.zeros(5, 16)
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        for t in range(5):
            y = (k[: t + 1, own] @ q[t, own] / 8**0.5).softmax(0) @ v[: t + 1, own]
            phi = torch.where(q[t, own] > 0, q[t, own], q[t, own].exp() - 1)
            want[t, own] = y + phi @ prompt.memory[1, head]
    got, _ = network.h[1].attn(x, torch.full((5, 5), -torch.inf).triu(1))
    assert_close(got[0], tiny.h[1].attn.c_proj(want))
    (text,) = generate(network, TEXTS[:1], 6)
    assert text == network.generate(torch.tensor(TEXTS[:1]), 6)[0].tolist()
