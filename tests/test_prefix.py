"""prefix.py against peft, finite differences and attention by hand. test_methods.py has the methods of methods/, and
test_peft.py compares the logits of all that PEFT can hold with its own."""

import peft
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, in_transformers, some_tokens

import prefix
from generate import generate
from run.prompts import METHODS

LABELS = [[11, 12], [13]]
TEXTS = [[3, 1, 4, 1, 5], [9, 2, 6]]
KINDS = {name: kind for name, kind in METHODS.items() if name != "translator"}  # test_translate.py has that
CASES = {name: {"labels": LABELS} if kind.needs_labels else {} for name, kind in KINDS.items()} | {
    "hybrid, MLP": {"mlp": True},
    "prompt, labels": {"init": "labels", "labels": LABELS},
    "ptuning, inside": {"position": "inside"},
    "ptuning, after": {"position": "after"},
    "adapter-prefix, all layers": {"layers": 2},
    "hybrid, shots": {},
    "finetune, shots": {},
    "lora, rank 3": {"rank": 3, "alpha": 6.0},
}


def make(case, model):
    """The method of that case, as if it had been tuned a while."""
    own = {} if case == "scratch" else {"n_random": 3, "trigger": [40, 41]}
    prompt = METHODS[case.split(",")[0]](model, **own, seed=3, **CASES[case])
    if case.endswith("shots"):
        prompt.shots = torch.tensor([[50, 51, 52]])
    rng = torch.Generator().manual_seed(5)
    for p in prompt.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=rng).to(p) * 0.3
    return prompt


def logits_behind(prompt, model, texts):
    """Logits of each text, (1, T, vocab_size), behind the method, as training and evaluation put it."""
    network, past = prompt.network(model), prompt.past(model)
    return [network.logits(network(torch.tensor([prompt.insert_rows(text)]), past)) for text in texts]


# ---------------------------------------------------------------- every method


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("zero-shot", "text", "few-shot", "hard")])
def test_gradients_equal_finite_differences(either, case):
    """In float64, along a random direction of each parameter; the base gets none."""
    model = either.double()
    prompt = make(case, model).double()
    K = 3 if "head" in case else 257  # a head rules out all other tokens, and scratch reads bytes
    targets = [(torch.tensor(prompt.insert_rows(text)) % K) + 11 * (K == 3) for text in TEXTS]

    def loss():
        return sum(F.cross_entropy(x[0], y) for x, y in zip(logits_behind(prompt, model, TEXTS), targets))

    loss().backward()
    assert all(p.grad is None for p in model.parameters())
    learn, rng = [p for p in prompt.parameters() if p.requires_grad], torch.Generator().manual_seed(6)
    for p in learn[:: max(1, len(learn) // 6)]:
        direction, ends = torch.randn(p.shape, generator=rng).double(), []
        for step in (1e-5, -2e-5):
            p.data += step * direction
            with torch.no_grad():
                ends.append(loss().item())
        p.data += 1e-5 * direction
        slope = (p.grad * direction).sum().item()
        assert abs((ends[0] - ends[1]) / 2e-5 - slope) < 1e-5 + 1e-4 * abs(slope)


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith(("ptuning, ", "cartridge", "scratch"))])
def test_the_loss_is_that_of_the_logits_at_answer_positions(tiny, case):
    """Rows inside a question lengthen it, a cartridge reads no labels, and scratch reads bytes."""
    tokens, targets = torch.tensor([[3, 1, 4, 1], [9, 2, 6, 5]]), torch.tensor([[11, 12, 13, 12], [12, 13, 11, 13]])
    answer = torch.tensor([[False, True, True, False], [False, False, True, True]])
    prompt = make(case, tiny)
    network = prompt.network(tiny)
    logits = network.logits(network(tokens, prompt.past(network)))
    assert_close(prompt.loss(network, tokens, targets, answer), F.cross_entropy(logits[answer], targets[answer]))


@pytest.mark.parametrize("name", ["adapter", "adapter-prefix", "prefix-memory", "lora", "finetune"])
def test_what_changes_the_network_changes_nothing_at_first_and_shares_its_weights(tiny, name):
    prompt = METHODS[name](tiny, n_random=3, trigger=[40, 41])
    assert (prompt.network(tiny).wte.weight is tiny.wte.weight) == (not name.startswith("finetune"))
    for text, got in zip(TEXTS, logits_behind(prompt, tiny, TEXTS)):
        torch.testing.assert_close(got, tiny.logits(tiny(torch.tensor([text]))))


@pytest.mark.parametrize("name", KINDS)
def test_constructors_take_the_same_arguments_and_seed_no_global_generator(tiny, name):
    """A seed gives the same parameters again, and another one gives others where anything is drawn."""
    given = {"n_random": 3, "trigger": [40, 41]} | ({"labels": LABELS} if KINDS[name].needs_labels else {})
    torch.manual_seed(77)
    one, again, other = (KINDS[name](tiny, seed=seed, **given).state_dict() for seed in (1, 1, 2))
    assert torch.initial_seed() == 77
    assert all(torch.equal(again[key], t) for key, t in one.items())
    draws_nothing = "zero-shot", "text", "few-shot", "cpt", "cartridge", "finetune", "finetune-top2", "prefix-memory"
    assert all(torch.equal(other[key], t) for key, t in one.items()) == (name in draws_nothing)


@pytest.mark.parametrize("name", ["hybrid", "lora", "adapter"])
def test_checkpointed_activations_give_the_same_gradients_bit_for_bit(tiny, name):
    tokens, targets, answer = some_tokens(4, 20), some_tokens(4, 20, seed=6), some_tokens(4, 20, seed=7) % 2 == 0
    gradients, sizes = [], []
    for tiny.checkpoint_activations in (False, True):
        prompt, kept = METHODS[name](tiny, n_random=5, trigger=list(range(40, 50))), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = prompt.loss(prompt.network(tiny), tokens, targets, answer)
        loss.backward()
        gradients.append([p.grad.numpy().tobytes() for p in prompt.parameters() if p.grad is not None])
        sizes.append(sum(kept))
    assert gradients[0] and gradients[0] == gradients[1] and sizes[1] < sizes[0]


# ---------------------------------------------------------------- rows at the input


def test_a_prefix_begins_as_random_rows_and_words(tiny):
    prompt = prefix.HybridPrefix(tiny, n_random=500, trigger=[7, 9], mlp=True)
    rows = prompt.embeddings().detach()
    assert torch.equal(rows[500:], tiny.wte.weight[[7, 9]])  # the MLP starts at zero
    assert abs(rows[:500].std() / tiny.wte.weight.std() - 1) < 0.05
    with pytest.raises(AssertionError, match="no rows"):
        prefix.HybridPrefix(tiny)


@pytest.mark.parametrize("init", ["uniform", "vocabulary", "labels", "trigger"])
def test_ways_for_a_prompt_to_begin(tiny, init):
    prompt = prefix.PromptTuning(tiny, n_random=7, trigger=[1, 2, 3], init=init, labels=LABELS)
    rows, table = prompt.rows.detach(), tiny.wte.weight
    assert len(rows) == 7
    assert prompt.trigger == ([1, 2, 3] if init == "trigger" else [])  # the other starts read none
    in_table = (rows[:, None] == table[None]).all(-1).any(1)
    if init == "uniform":
        assert rows.abs().max() <= 0.5 and rows.std() > 0.2 and not in_table.any()
    elif init == "vocabulary":
        assert in_table.all()
    elif init == "labels":
        torch.testing.assert_close(rows[0], (table[11] + table[12]) / 2)
        assert torch.equal(rows[1], table[13]) and in_table[2:].all()
    else:
        assert torch.equal(rows, table[[1, 2, 3, 1, 2, 3, 1]])


def test_p_tuning_and_prefix_tuning_equal_peft_on_shared_weights(tiny, tmp_path):
    tokens, sizes = some_tokens(3, 20), {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5, "encoder_hidden_size": 16}
    lstm = {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 2, "encoder_dropout": 0.0}
    for method, config in (
        ("ptuning", peft.PromptEncoderConfig(**sizes, **lstm)),
        ("prefix", peft.PrefixTuningConfig(**sizes, prefix_projection=True)),
    ):
        prompt, theirs = make(method, tiny), in_transformers(tiny, tmp_path, config)
        encoder = theirs.prompt_encoder.default
        if method == "ptuning":
            encoder.embedding.weight.data.copy_(prompt.rows)
            encoder.lstm_head.load_state_dict(prompt.lstm.state_dict())
            encoder.mlp_head.load_state_dict(prompt.head.state_dict())
        else:  # ours is added to rows, theirs to nothing
            prompt.rows.data.zero_()
            encoder.embedding.weight.data.copy_(prompt.code)
            encoder.transform.load_state_dict(prompt.mlp.state_dict())
        want = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -20:]
        assert_close(tiny.logits(tiny(tokens, prompt.past(tiny))), want)


@pytest.mark.parametrize("position, where", [("inside", 2), ("after", 5)])
def test_rows_of_p_tuning_stand_where_they_are_placed(tiny, position, where):
    prompt, text = make(f"ptuning, {position}", tiny), TEXTS[0]
    words, rows = tiny.wte(torch.tensor(text)), prompt.embeddings()
    x = torch.cat([words[:where], rows, words[where:]])
    torch.testing.assert_close(logits_behind(prompt, tiny, [text])[0], tiny.logits(tiny(x[None])))
    for token in generate(prompt.network(tiny), [prompt.insert_rows(text)], 4)[0]:  # and it writes behind them
        assert token == tiny.logits(tiny(x[None]))[0, -1].argmax().item()
        x = torch.cat([x, tiny.wte(torch.tensor([token]))])


def test_rows_among_the_question_get_the_same_gradient_each_time(tiny):
    """Rows of a batch gather many gradients, which two threads must not add up in an order of chance."""
    prompt, gradients, threads = prefix.PTuning(tiny, n_random=24, position="after"), set(), torch.get_num_threads()
    tokens = torch.tensor(prompt.insert_rows([40] * 24)).expand(64, -1)  # (B, T)
    weights = torch.randn(64, 48, 16, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(2)
    for _ in range(5):
        prompt.zero_grad()
        (prompt.network(tiny)(tokens) * weights).sum().backward()
        gradients.add(prompt.rows.grad.numpy().tobytes())
    torch.set_num_threads(threads)
    assert len(gradients) == 1


def test_soft_words_without_shifts_are_a_prompt_and_a_shift_acts_from_its_layer_on(tiny):
    words, rows = (kind(tiny, n_random=3, trigger=[5], seed=1) for kind in (prefix.SoftWords, prefix.HybridPrefix))
    plain = rows.past(tiny)
    torch.testing.assert_close(words.past(tiny), plain)
    words.shifts.data[1, :, 3] = 0.5  # at the second layer's input
    (first, _), (second, _) = words.past(tiny)
    torch.testing.assert_close(first, plain[0][0])
    assert not torch.allclose(second, plain[1][0], atol=1e-3)


def test_output_rows_of_warp_stand_in_for_the_labels_tokens_alone(tiny):
    prompt, tokens = make("warp", tiny), torch.tensor(TEXTS[:1])
    hidden = tiny(tokens, prompt.past(tiny))
    want = tiny.logits(hidden)
    for token, row in zip((11, 12, 13), prompt.label_rows):
        want[..., token] = hidden @ row
    torch.testing.assert_close(logits_behind(prompt, tiny, TEXTS[:1])[0], want)


# ---------------------------------------------------------------- keys and values in every layer


def by_hand(model, text, cache):
    """Logits (T, vocab_size) of a text (T), each layer behind its own past."""
    T, start = len(text), cache[0][0].size(2)
    x = model.wte.weight[text] + model.wpe.weight[start : start + T]  # (T, C)
    for block, past in zip(model.h, cache):
        q, k, v = block.attn.c_attn(block.ln_1(x)).view(T, 3, 2, 8).permute(1, 2, 0, 3)  # (n_head, T, D) each
        keys, values = torch.cat([past[0][0], k], 1), torch.cat([past[1][0], v], 1)  # (n_head, P + T, D)
        later = torch.ones(T, keys.size(1)).triu(start + 1).bool()
        y = (q @ keys.mT / 8**0.5).masked_fill(later, -torch.inf).softmax(-1) @ values
        x = x + block.attn.c_proj(y.transpose(0, 1).flatten(1))
        x = x + block.mlp(block.ln_2(x))
    return model.ln_f(x) @ model.wte.weight.T


def test_keys_and_values_against_attention_by_hand(tiny):
    prompt, tokens = prefix.DeepPrefix(tiny, n_random=3, trigger=[5]), some_tokens(2, 9)
    assert prompt.rows.shape == (4, 2 * 2 * 16)
    for row, text in zip(tiny.logits(tiny(tokens, prompt.past(tiny))), tokens):
        assert_close(row, by_hand(tiny, text, prompt.past(tiny)))


def test_keys_and_values_begin_as_words_that_the_base_expects(tiny):
    """A base that expects one word only: the cache is what it computes of that, then of the trigger."""
    tiny.ln_f.weight.data.zero_()
    tiny.ln_f.bias.data.copy_(1000 * tiny.wte.weight[7])
    (expected,) = (tiny.wte.weight @ tiny.wte.weight[7]).topk(1).indices.tolist()
    want = tiny.prefill(torch.tensor([[expected] * 3 + [40, 41]]))
    for kind in (prefix.DeepPrefix, prefix.PrefixTuning):  # whose MLP starts at zero
        torch.testing.assert_close(kind(tiny, n_random=3, trigger=[40, 41]).past(tiny), want)


# ---------------------------------------------------------------- words


def test_a_hard_prompt_finds_the_best_of_all_words(tiny):
    """One word, every other a candidate: against trying all of them."""
    tiny.wte.weight = torch.nn.Parameter(tiny.wte.weight[:100], requires_grad=False)  # a vocabulary of 100
    tokens = some_tokens(4, 9) % 100
    targets, answer = tokens.roll(-1, 1), torch.ones(4, 9, dtype=torch.bool)

    def loss(word):
        past = tiny.prefill(torch.tensor([[word]]))
        return F.cross_entropy(tiny.logits(tiny(tokens, past)).flatten(0, 1), targets.flatten()).item()

    prompt = prefix.HardPrompt(tiny, trigger=[5])
    prompt.candidates = 99
    now = prompt.loss(tiny, tokens, targets, answer)
    now.backward()
    prompt.after_step(tiny, (tokens, targets, answer), now)
    assert loss(prompt.tokens.item()) == pytest.approx(min(loss(word) for word in range(100)), abs=1e-5)
