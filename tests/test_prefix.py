"""prefix.py against peft, forwards, backwards and through its files."""

import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import prefix
from files.prompts import load_prefix, save_prefix
from files.weights import fingerprint, save_model
from generate import generate
from model import GPT

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def in_peft(tiny, folder, rows):
    """The same frozen GPT-2 in transformers, behind the same rows as peft's prompt tuning."""
    save_model(tiny, folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(theirs, config)
    theirs.prompt_encoder.default.embedding.weight.data.copy_(rows)
    return theirs.eval()


@pytest.mark.parametrize("mlp", [False, True])
def test_logits_and_gradients_equal_peft(tiny, tmp_path, mlp):
    prompt = prefix.HybridPrefix(tiny, 5, [40, 41, 42], mlp, seed=3)
    if mlp:  # as if it had been tuned a while
        torch.nn.init.normal_(prompt.mlp[2].weight, std=0.3)
    theirs = in_peft(tiny, tmp_path, prompt.embeddings().detach())
    tokens = torch.randint(1024, (4, 20), generator=torch.Generator().manual_seed(1))
    got = tiny.logits(tiny(tokens, prompt.past(tiny)))
    want = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, 8:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    if not mlp:
        F.cross_entropy(got[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        F.cross_entropy(want[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.testing.assert_close(
            prompt.rows.grad, theirs.prompt_encoder.default.embedding.weight.grad, atol=1e-5, rtol=1e-4
        )


def test_a_prefix_begins_as_random_rows_and_words(tiny):
    prompt = prefix.HybridPrefix(tiny, 500, [7, 9], mlp=True)
    rows = prompt.embeddings().detach()
    assert torch.equal(rows[500:], tiny.wte.weight[[7, 9]])  # the MLP starts at zero
    assert abs(rows[:500].std() / tiny.wte.weight.std() - 1) < 0.05


def test_both_ends_of_the_dial(tiny):
    assert len(prefix.HybridPrefix(tiny, 6).rows) == 6
    words = prefix.HybridPrefix(tiny, 0, [1, 2, 3])
    text = prefix.TextPrompt(tiny, [1, 2, 3])
    for pair, want in zip(words.past(tiny), text.past(tiny)):  # words that have not moved are the words
        for got, w in zip(pair, want):
            torch.testing.assert_close(got, w)
    with pytest.raises(ValueError, match="no rows"):
        prefix.HybridPrefix(tiny, 0)


def test_seeds_repeat(tiny):
    one, again, other = (prefix.HybridPrefix(tiny, 4, [1], True, seed=s) for s in (1, 1, 2))
    for a, b in zip(one.parameters(), again.parameters()):
        assert torch.equal(a, b)
    assert not torch.equal(one.rows, other.rows)


def test_only_the_prefix_gets_gradients(tiny):
    prompt = prefix.HybridPrefix(tiny, 4, [1], True)
    tiny(torch.zeros(2, 3, dtype=torch.long), prompt.past(tiny)).sum().backward()
    assert all(p.grad is None for p in tiny.parameters())
    assert prompt.rows.grad is not None


LABELS = [[11, 12], [13]]
KINDS = {name: kind for name, kind in prefix.METHODS.items() if name != "translator"}  # test_translator.py has that
CASES = {method: {"labels": LABELS} if kind.needs_labels else {} for method, kind in KINDS.items()} | {
    "hybrid, MLP": {"mlp": True},
    "prompt, labels": {"init": "labels", "labels": LABELS},
    "ptuning, inside": {"position": "inside"},
    "ptuning, after": {"position": "after"},
    "ptuning2, top layer": {"layers": 1},
    "ptuning2, head": {"head": True, "labels": LABELS},
    "prefix, top layer": {"layers": 1},
    "adapter-prefix, all layers": {"layers": 2},
    "hybrid, shots": {},
    "finetune, shots": {},
    "cartridge, with a window longer than any context": {"window": 100000},
    "lora, rslora": {"rank": 3, "alpha": 6.0, "rslora": True},
}


def make(case, model):
    """The method of that case, as if it had been tuned a while."""
    prompt = prefix.METHODS[case.split(",")[0]](model, n_random=3, trigger=[40, 41], seed=3, **CASES[case])
    if case.endswith("shots"):
        prompt.shots = torch.tensor([[50, 51, 52]])
    rng = torch.Generator().manual_seed(5)
    for p in prompt.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=rng).to(p) * 0.3
    return prompt


def logits_behind(prompt, model, tokens):
    """Of each text in a list, behind the method, as training and evaluation put it."""
    network, past = prompt.network(model), prompt.past(model)
    return [network.logits(network(torch.tensor([prompt.insert_rows(text)]), past)) for text in tokens]


TEXTS = [[3, 1, 4, 1, 5], [9, 2, 6]]


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_it_is_the_same(tiny, tokenizer, tmp_path, case):
    prompt = make(case, tiny)
    save_prefix(prompt, tmp_path / "p.safetensors", tiny, tokenizer, "addition", "two words")
    again, header = load_prefix(tmp_path / "p.safetensors", tiny, tokenizer)
    for got, want in zip(logits_behind(again, tiny, TEXTS), logits_behind(prompt, tiny, TEXTS)):
        assert torch.equal(got, want)
    for name, tensor in prompt.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert (header["base"], header["task"], header["trigger"]) == ("untrained", "addition", "two words")
    assert header["base_fingerprint"] == fingerprint(tiny)
    assert header["tokenizer"] == tokenizer.name
    with safe_open(tmp_path / "p.safetensors", framework="pt") as file:  # readable by anyone
        assert file.metadata()["method"] == prompt.name
    assert os.listdir(tmp_path) == ["p.safetensors"]


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("zero-shot", "text", "few-shot", "hard")])
def test_gradients_equal_finite_differences(tiny, case):
    """In float64, along a random direction of each parameter; the base gets none."""
    model = tiny.double()
    prompt = make(case, model).double()
    targets = [torch.tensor(prompt.insert_rows(text)) % 1024 for text in TEXTS]
    if "head" in case:  # all other tokens are ruled out
        targets = [11 + t % 3 for t in targets]

    def loss():
        return sum(F.cross_entropy(x[0], y) for x, y in zip(logits_behind(prompt, model, TEXTS), targets))

    loss().backward()
    assert all(p.grad is None for p in model.parameters())
    rng = torch.Generator().manual_seed(6)
    learn = {name: p for name, p in prompt.named_parameters() if p.requires_grad}
    for name in list(learn)[:: max(1, len(learn) // 12)]:
        p = learn[name]
        direction, before = torch.randn(p.shape, generator=rng).double(), p.data.clone()
        ends = []
        for step in (1e-5, -1e-5):
            p.data = before + step * direction
            with torch.no_grad():
                ends.append(loss().item())
        p.data = before
        slope = (p.grad * direction).sum().item()
        assert abs((ends[0] - ends[1]) / 2e-5 - slope) < 1e-5 + 1e-4 * abs(slope), name


@pytest.mark.parametrize("method", ["adapter", "adapter-prefix", "prefix-memory", "lora", "finetune", "finetune-top2"])
def test_what_changes_the_network_changes_nothing_at_first(tiny, method):
    prompt = prefix.METHODS[method](tiny, n_random=3, trigger=[40, 41])
    for text, got in zip(TEXTS, logits_behind(prompt, tiny, TEXTS)):
        torch.testing.assert_close(got, tiny.logits(tiny(torch.tensor([text]))))


def test_the_weights_are_shared_and_stay_as_they_are(tiny):
    before = {n: p.clone() for n, p in tiny.named_parameters()}
    for method in ("adapter", "adapter-prefix", "prefix-memory", "dept", "lora", "warp"):
        prompt = make(method, tiny)
        twin = prompt.network(tiny)
        assert twin.wte.weight.data_ptr() == tiny.wte.weight.data_ptr()
        optimizer = torch.optim.SGD(prompt.parameters(), 1.0)
        twin.logits(twin(torch.tensor(TEXTS[:1]), prompt.past(tiny))).logsumexp(-1).sum().backward()
        optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in tiny.named_parameters())
    assert before.keys() == {n for n, _ in tiny.named_parameters()}


def in_peft_lora(tiny, folder, lora):
    """The same frozen GPT-2 in transformers with the same updates in peft."""
    save_model(tiny, folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    kwargs = lora.init_kwargs
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=kwargs["rank"],
        lora_alpha=kwargs["alpha"],
        use_rslora=kwargs["rslora"],
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
    )
    theirs = peft.get_peft_model(theirs, config)
    updated = [m for m in theirs.modules() if hasattr(m, "lora_A")]
    assert len(updated) == len(lora.A) == 8  # four matrices in each of two blocks
    for m, A, B in zip(updated, lora.A, lora.B):
        m.lora_A.default.weight.data.copy_(A)
        m.lora_B.default.weight.data.copy_(B)
    return theirs.eval(), updated


@pytest.mark.parametrize("case", ["lora", "lora, rslora"])
def test_lora_s_logits_and_gradients_equal_peft(tiny, tmp_path, case):
    lora = make(case, tiny)
    theirs, updated = in_peft_lora(tiny, tmp_path, lora)
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(4))
    network = lora.network(tiny)
    got, want = network.logits(network(tokens)), theirs(input_ids=tokens).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    for logits in (got, want):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for m, A, B in zip(updated, lora.A, lora.B):
        torch.testing.assert_close(A.grad, m.lora_A.default.weight.grad, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(B.grad, m.lora_B.default.weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", ["lora", "lora, rslora"])
def test_merged_weights_are_a_checkpoint_that_needs_no_lora(tiny, tmp_path, case):
    lora, before = make(case, tiny), fingerprint(tiny)
    save_model(lora.merged(tiny), tmp_path)
    assert fingerprint(tiny) == before
    tokens = torch.tensor(TEXTS[:1])
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    (got,) = logits_behind(lora, tiny, TEXTS[:1])
    torch.testing.assert_close(got, theirs(input_ids=tokens).logits, atol=1e-4, rtol=1e-4)


def test_lora_multiplies_by_a_frozen_matrix_once_forwards_and_at_most_once_backwards(tiny):
    """Multiplications of one layer, by hand: x W and its two thin products, and backwards the gradients of x and of
    the thin matrices. None of them is that of W, and the lowest layer's input needs none of x either."""
    from torch.utils.flop_counter import FlopCounterMode

    lora = make("lora, rslora", tiny)
    layer = prefix.LoRALinear(tiny.h[0].mlp.c_fc, lora, 2)
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
    prompt = prefix.FinetuneTop2(model)
    learn = {name.split(".")[2] for name, p in prompt.named_parameters() if p.requires_grad}
    assert learn == {"1", "2"} and not prompt.copy.wte.weight.requires_grad


def test_soft_words_without_shifts_are_a_prompt_and_a_shift_acts_from_its_layer_on(tiny):
    words, rows = prefix.SoftWords(tiny, 3, [5], seed=1), prefix.HybridPrefix(tiny, 3, [5], seed=1)
    for pair, want in zip(words.past(tiny), rows.past(tiny)):
        torch.testing.assert_close(pair, want)
    words.shifts.data[1, :, 3] = 0.5  # at the second layer's input
    keys = [k for k, _ in words.past(tiny)]
    plain = [k for k, _ in rows.past(tiny)]
    torch.testing.assert_close(keys[0], plain[0])
    assert not torch.allclose(keys[1], plain[1], atol=1e-3)


def test_rows_of_p_tuning_stand_where_they_are_placed(tiny):
    for position, where in (("inside", 2), ("after", 5)):
        prompt = make("ptuning, after", tiny)
        prompt.position = position
        text = TEXTS[0]
        words, rows = tiny.wte(torch.tensor(text)), prompt.embeddings()
        want = tiny(torch.cat([words[:where], rows, words[where:]])[None])
        assert len(prompt.insert_rows(text)) == 10
        torch.testing.assert_close(logits_behind(prompt, tiny, [text])[0], tiny.logits(want))
        network = prompt.network(tiny)  # and it writes behind them
        got = network.generate(torch.tensor([prompt.insert_rows(text)]), 4)[0].tolist()
        x = torch.cat([words[:where], rows, words[where:]])
        for token in got:
            assert token == tiny.logits(tiny(x[None]))[0, -1].argmax().item()
            x = torch.cat([x, tiny.wte(torch.tensor([token]))])


def test_output_rows_of_warp_stand_in_for_the_labels_tokens_alone(tiny):
    prompt = make("warp", tiny)
    network, past, tokens = prompt.network(tiny), prompt.past(tiny), torch.tensor(TEXTS[:1])
    hidden = tiny(tokens, past)
    want = tiny.logits(hidden)
    for token, row in zip((11, 12, 13), prompt.label_rows):
        want[..., token] = hidden @ row
    torch.testing.assert_close(network.logits(network(tokens, past)), want)
    loss = network.loss(hidden[0], torch.tensor(TEXTS[0]))
    torch.testing.assert_close(loss, F.cross_entropy(want[0], torch.tensor(TEXTS[0])))


def test_keys_and_values_begin_as_words_that_the_base_expects(tiny):
    """A base that expects one word only: the cache is what it computes of that, then of the trigger."""
    tiny.ln_f.weight.data.zero_()
    tiny.ln_f.bias.data.copy_(1000 * tiny.wte.weight[7])
    (expected,) = (tiny.wte.weight @ tiny.wte.weight[7]).topk(1).indices.tolist()
    for got, want in zip(
        prefix.DeepPrefix(tiny, 3, [40, 41]).past(tiny), tiny.prefill(torch.tensor([[expected] * 3 + [40, 41]]))
    ):
        torch.testing.assert_close(got, want)


def test_a_head_scores_the_labels_tokens_and_rules_out_all_others(tiny):
    prompt = prefix.DeepPrefix(tiny, 3, [40], head=True, labels=LABELS)
    torch.nn.init.normal_(prompt.head.weight)
    torch.nn.init.normal_(prompt.head.bias)
    network, past, tokens = prompt.network(tiny), prompt.past(tiny), torch.tensor(TEXTS[:1])
    hidden = tiny(tokens, past)
    got = network.logits(network(tokens, past))
    for i, token in enumerate((11, 12, 13)):
        torch.testing.assert_close(got[..., token], hidden @ prompt.head.weight[i] + prompt.head.bias[i])
    assert got.isfinite().sum(-1).eq(3).all()
    targets = torch.tensor([11, 13, 12, 11, 13, 12])[: len(TEXTS[0])]
    loss = network.loss(hidden[0], targets)
    want = -(got[0][..., [11, 12, 13]].log_softmax(-1)).gather(1, targets[:, None] - 11).mean()
    torch.testing.assert_close(loss, want)
    assert set(network.generate(tokens, 5, past=past)[0].tolist()) <= {11, 12, 13}


@pytest.mark.parametrize("init", ["uniform", "vocabulary", "labels", "trigger"])
def test_ways_for_a_prompt_to_begin(tiny, init):
    rows = prefix.PromptTuning(tiny, 7, [1, 2, 3], init=init, labels=LABELS).rows.detach()
    table = tiny.wte.weight
    assert len(rows) == 7
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


def test_a_hard_prompt_finds_the_best_of_all_words(tiny):
    """One word, every other a candidate: against trying all of them."""
    tokens = torch.randint(1024, (4, 9), generator=torch.Generator().manual_seed(1))
    targets, answer = tokens.roll(-1, 1), torch.ones(4, 9, dtype=torch.bool)

    def loss(word):
        past = tiny.prefill(torch.tensor([[word]]))
        return F.cross_entropy(tiny.logits(tiny(tokens, past)).flatten(0, 1), targets.flatten()).item()

    prompt = prefix.HardPrompt(tiny, [5])
    prompt.candidates = 1023
    now = prompt.loss(tiny, tokens, targets, answer)
    now.backward()
    prompt.after_backward(tiny, (tokens, targets, answer), now)
    assert loss(prompt.tokens.item()) == pytest.approx(min(loss(word) for word in range(1024)), abs=1e-5)


def test_p_tuning_and_prefix_tuning_equal_peft_on_shared_weights(tiny, tmp_path):
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(4))
    configs = {
        "ptuning": peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=5,
            encoder_hidden_size=16,
            encoder_reparameterization_type="LSTM",
            encoder_num_layers=2,
            encoder_dropout=0.0,
        ),
        "prefix": peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=16
        ),
    }
    save_model(tiny, tmp_path)
    for method, config in configs.items():
        prompt = make(method, tiny)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(tmp_path), config).eval()
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
        torch.testing.assert_close(tiny.logits(tiny(tokens, prompt.past(tiny))), want, atol=1e-4, rtol=1e-4)


def by_hand(model, tokens, cache, start, gated=None):
    """Logits of one text (T) that begins at position `start`, each layer behind its own past: a head at a time.

    gated: in each layer rows (P, C), which have a softmax of their own, and a gate (n_head).
    """
    x = model.wte.weight[tokens] + model.wpe.weight[start : start + len(tokens)]  # (T, C)
    norm = lambda x, ln: F.layer_norm(x, x.shape[-1:], ln.weight, ln.bias)  # noqa: E731
    for block, (past_k, past_v), (rows, gate) in zip(model.h, cache, gated or [(None, None)] * 2):
        q, k, v = (norm(x, block.ln_1) @ block.attn.c_attn.weight.T + block.attn.c_attn.bias).chunk(3, -1)
        heads, D = past_k.size(1), past_k.size(3)
        y = torch.zeros_like(x)
        for h in range(heads):
            own = slice(h * D, (h + 1) * D)
            for t in range(len(tokens)):
                keys = torch.cat([past_k[0, h], k[: t + 1, own]])
                values = torch.cat([past_v[0, h], v[: t + 1, own]])
                y[t, own] = (keys @ q[t, own] / D**0.5).softmax(0) @ values
                if rows is not None:
                    _, k2, v2 = (rows @ block.attn.c_attn.weight.T + block.attn.c_attn.bias).chunk(3, -1)
                    more = (k2[:, own] @ q[t, own] / D**0.5).softmax(0) @ v2[:, own]
                    y[t, own] = y[t, own] + torch.tanh(gate[h]) * more
        x = x + y @ block.attn.c_proj.weight.T + block.attn.c_proj.bias
        hidden = F.gelu(norm(x, block.ln_2) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias, approximate="tanh")
        x = x + hidden @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
    return norm(x, model.ln_f) @ model.wte.weight.T


@pytest.mark.parametrize("layers", [1, 2])
def test_keys_and_values_in_the_top_layers(tiny, tokenizer, tmp_path, layers):
    """Against attention by hand, text written included; the layers below stay out of the backward pass."""
    prompt = prefix.DeepPrefix(tiny, 3, [5], layers=layers)
    save_prefix(prompt, tmp_path / "p.safetensors", tiny, tokenizer)
    prompt, _ = load_prefix(tmp_path / "p.safetensors", tiny, tokenizer)
    assert prompt.rows.shape == (4, layers * 2 * 16)
    cache = prompt.past(tiny)
    tokens = torch.randint(1024, (2, 9), generator=torch.Generator().manual_seed(1))
    got = tiny.logits(tiny(tokens, cache))
    for row, text in zip(got, tokens):
        torch.testing.assert_close(row, by_hand(tiny, text, cache, 4), atol=1e-4, rtol=1e-4)
    text = tokens[0]
    for _ in range(8):
        text = torch.cat([text, by_hand(tiny, text, cache, 4)[-1:].argmax(-1)])
    assert tiny.generate(tokens[:1], 8, cache)[0].tolist() == text[9:].tolist()
    hidden = []
    tiny.h[2 - layers].register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    tiny(tokens, cache)
    assert not hidden[0].requires_grad and prompt.rows.requires_grad


def test_a_gated_prefix_has_a_softmax_of_its_own(tiny):
    prompt = make("adapter-prefix, all layers", tiny)
    empty = [(torch.zeros(1, 2, 0, 8), torch.zeros(1, 2, 0, 8))] * 2
    want = by_hand(tiny, torch.tensor(TEXTS[0]), empty, 0, list(zip(prompt.rows, prompt.gate)))
    torch.testing.assert_close(logits_behind(prompt, tiny, TEXTS[:1])[0][0], want, atol=1e-4, rtol=1e-4)


def test_deep_rows_that_have_not_moved_are_the_words(tiny):
    for kind in (prefix.DeepPrefix, prefix.PrefixTuning):
        deep = kind(tiny, 0, [1, 2, 3])
        for pair, want in zip(deep.past(tiny), prefix.TextPrompt(tiny, [1, 2, 3]).past(tiny)):
            for got, w in zip(pair, want):
                torch.testing.assert_close(got, w)


def test_gradients_of_deep_rows_equal_peft(tiny, tmp_path):
    prompt = prefix.DeepPrefix(tiny, 3, [7, 8], seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
        save_model(tiny, tmp_path)
        theirs = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(tmp_path), config).eval()
    weight = theirs.prompt_encoder.default.embedding.weight
    weight.data.copy_(prompt.rows.data)
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(4))
    logits = tiny.logits(tiny(tokens, prompt.past(tiny)))[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
    torch.testing.assert_close(prompt.rows.grad, weight.grad, atol=1e-5, rtol=1e-4)


BATCH = (  # tokens, targets and answer, as training_batches makes them
    torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]]),
    torch.tensor([[1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 0, 0]]),
    torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]).bool(),
)


def test_a_cartridge_learns_what_the_base_says_with_the_text_in_its_context(tiny):
    """Against probabilities of the text and its continuation read whole, without any cache, and KL by hand."""
    text = [7, 8, 9, 10, 11]
    cartridge = prefix.Cartridge(tiny, 2, text, seed=1)
    begin = prefix.DeepPrefix(tiny, 0, text[:2])
    assert torch.equal(cartridge.rows, begin.rows) and cartridge.n_positions() == 2
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
    torch.testing.assert_close(want, torch.cat(by_hand), atol=1e-4, rtol=1e-4)
    got = prefix.divergence(tiny, cartridge.past(tiny), tokens, answer, want)
    torch.testing.assert_close(got, kl / answer.sum(), atol=1e-4, rtol=1e-4)
    got.backward()
    assert cartridge.rows.grad.abs().sum() > 0 and all(p.grad is None for p in tiny.parameters())


def test_a_cartridge_reads_no_label_and_one_of_the_whole_text_has_nothing_to_learn(tiny):
    tokens, targets, answer = BATCH
    losses = []
    for change in (0, 100):  # answers of other tokens, but for the last
        other = [tokens.clone(), targets.clone(), answer]
        other[0][0, 3:], other[1][0, 2:5] = other[0][0, 3:] + change, other[1][0, 2:5] + change
        losses.append(prefix.Cartridge(tiny, 2, [7, 8, 9, 10, 11], seed=1).loss(tiny, *other).item())
    assert losses[0] == losses[1] > 1e-3
    assert prefix.Cartridge(tiny, 0, [7, 8, 9, 10, 11]).loss(tiny, *BATCH).abs() < 1e-5
    with pytest.raises(ValueError, match="a cartridge of no text"):
        prefix.Cartridge(tiny, 4)


def test_the_teacher_reads_a_part_of_a_text_that_is_too_long_another_each_time(tiny):
    """Of 200 tokens, behind which the base of 96 positions could write nothing: against every part there is."""
    text = torch.randint(1024, (200,), generator=torch.Generator().manual_seed(3)).tolist()
    for window, room in ((None, 96 - 3 - 4), (10, 10)):  # block_size less the longest question and answer
        cartridge, found = prefix.Cartridge(tiny, 4, text, window=window), set()
        for _ in range(4):
            tokens, answer, want = cartridge.teach(tiny, *BATCH)
            parts = torch.tensor([text[i : i + room] for i in range(200 - room + 1)])  # (parts, room)
            said = tiny.logits(tiny(torch.cat([parts, tokens[:1].expand(len(parts), -1)], 1)))[:, room:][:, answer[0]]
            apart = (said.log_softmax(-1) - want[: answer[0].sum()]).abs().amax((1, 2))
            assert apart.min() < 1e-4
            found.add(apart.argmin().item())
        assert len(found) > 1


def test_the_teacher_reads_whole_examples(tiny):
    """Of 20 examples of 10 tokens, each with a 5 at its end, 8 fit: they begin at a tenth token."""
    text = torch.randint(6, 1024, (200,), generator=torch.Generator().manual_seed(3))
    text[9::10] = 5
    cartridge = prefix.Cartridge(tiny, 4, text.tolist())
    for _ in range(4):
        tokens, answer, want = cartridge.teach(tiny, *BATCH)
        parts = text.unfold(0, 80, 10)  # (13, 80)
        said = tiny.logits(tiny(torch.cat([parts, tokens[:1].expand(len(parts), -1)], 1)))[:, 80:][:, answer[0]]
        assert (said.log_softmax(-1) - want[: answer[0].sum()]).abs().amax((1, 2)).min() < 1e-4


def test_cpt_takes_the_steps_of_peft(tiny, tmp_path):
    """Three steps of Adam, of which the first already leaves the ball: rows and logits stay the same."""
    ours = prefix.CPT(tiny, trigger=[40, 41, 42, 43], epsilon=0.5)
    save_model(tiny, tmp_path)
    config = peft.CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[40, 41, 42, 43],
        opt_projection_epsilon=0.5,
        opt_projection_format_epsilon=0.5,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(tmp_path), config).eval()
    tokens = torch.randint(1024, (3, 12), generator=torch.Generator().manual_seed(4))
    learned = theirs.prompt_encoder.default.delta_embedding.weight
    optimizers = torch.optim.Adam([ours.rows], 0.1), torch.optim.Adam([learned], 0.1)
    for _ in range(3):
        got = tiny.logits(tiny(tokens, ours.past(tiny)))
        want = theirs.base_model(inputs_embeds=torch.cat([theirs.get_prompt(3), theirs.word_embeddings(tokens)], 1))
        torch.testing.assert_close(got, want.logits[:, 4:], atol=1e-4, rtol=1e-4)
        for logits in (got, want.logits[:, 4:]):
            F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ours.after_backward(tiny, None, None)
        shift = theirs.get_prompt(1)[0] - ours.start  # PEFT puts it into the ball where it is read
        torch.testing.assert_close(ours.rows - ours.start, shift, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(shift.norm(dim=1), torch.full((4,), 0.5 * (16 / 2048) ** 0.5))


def test_lopt_begins_as_the_closest_product_and_of_full_rank_as_the_rows(tiny):
    rows = prefix.HybridPrefix(tiny, 6, [1, 2, 3], seed=2).rows.detach()
    torch.testing.assert_close(prefix.LoPT(tiny, 6, [1, 2, 3], seed=2, rank=9).embeddings(), rows, atol=1e-5, rtol=1e-4)
    lopt = prefix.LoPT(tiny, 6, [1, 2, 3], seed=2, rank=4)
    assert torch.linalg.matrix_rank(lopt.embeddings()) == 4 and lopt.n_rows() == 9
    left_out = torch.linalg.svdvals(rows)[4:]  # Eckart & Young (1936): no product of rank 4 is closer
    torch.testing.assert_close((rows - lopt.embeddings()).norm(), left_out.norm())


def test_dept_shifts_each_position_of_a_text_and_takes_two_rates(tiny):
    """Against rows of words and shifts put together by hand, text written included, in a batch of two lengths."""
    dept = make("dept", tiny)
    network, past = dept.network(tiny), dept.past(tiny)
    shift = dept.A @ dept.B  # (block_size, C)
    written = generate(network, TEXTS, 6, network.prefill(dept.rows[None]))
    for text, new in zip(TEXTS, written):
        x = torch.cat([dept.rows, tiny.wte(torch.tensor(text + new)) + shift[: len(text) + 6]])
        logits = tiny.logits(tiny(x[None]))[0, len(dept.rows) :]
        assert logits[len(text) - 1 : -1].argmax(-1).tolist() == new
        torch.testing.assert_close(logits[: len(text)], logits_behind(dept, tiny, [text])[0][0], atol=1e-4, rtol=1e-4)
    assert past[0][0].size(2) == 5
    rates = [(len(o.param_groups[0]["params"]), o.param_groups[0]["lr"]) for o in dept.optimizers(1e-2, torch.float32)]
    assert rates == [(1, 1e-2), (2, 1e-3)]
    untouched = prefix.DePT(tiny, 3, [5], seed=1)
    want = logits_behind(prefix.HybridPrefix(tiny, 3, [5], seed=1), tiny, TEXTS)
    assert all(torch.equal(got, w) for got, w in zip(logits_behind(untouched, tiny, TEXTS), want))


def test_a_memory_stands_outside_the_softmax(tiny):
    """y + elu(q) M, a head and a position at a time, also where the text is written."""
    prompt = make("prefix-memory", tiny)
    network = prompt.network(tiny)
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(2))
    mask = torch.full((5, 5), -torch.inf).triu(1)
    q, k, v = (tiny.h[1].attn.c_attn(x)[0]).chunk(3, -1)  # (T, C) each
    want = torch.zeros(5, 16)
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        for t in range(5):
            y = (k[: t + 1, own] @ q[t, own] / 8**0.5).softmax(0) @ v[: t + 1, own]
            phi = torch.where(q[t, own] > 0, q[t, own], q[t, own].exp() - 1)
            want[t, own] = y + phi @ prompt.memory[1, head]
    got, _ = network.h[1].attn(x, mask)
    torch.testing.assert_close(got[0], tiny.h[1].attn.c_proj(want), atol=1e-5, rtol=1e-4)
    (text,) = generate(network, TEXTS[:1], 6)
    assert text == network.generate(torch.tensor(TEXTS[:1]), 6)[0].tolist()


def test_worked_examples_stand_between_the_prompt_and_the_question(tiny):
    prompt = prefix.HybridPrefix(tiny, 3, [5], seed=1)
    alone, shots = prompt.past(tiny), torch.tensor([[50, 51]])
    assert (prompt.n_rows(), prompt.n_positions()) == (4, 4)
    prompt.shots = shots
    assert (prompt.n_rows(), prompt.n_positions()) == (4, 6)
    for got, want in zip(prompt.past(tiny), tiny.prefill(shots, alone)):
        torch.testing.assert_close(got, want)


def test_rows_of_an_adapter_prefix_are_counted_and_take_no_position(tiny):
    prompt = prefix.AdapterPrefix(tiny, 3, [5])
    assert (prompt.n_rows(), prompt.n_positions()) == (4, 0)


def test_the_loss_of_every_method_is_that_of_its_logits(tiny):
    """Method.loss against cross-entropy of all logits, at answer positions."""
    tokens, targets = torch.tensor([[3, 1, 4, 1], [9, 2, 6, 5]]), torch.tensor([[11, 12, 13, 12], [12, 13, 11, 13]])
    answer = torch.tensor([[False, True, True, False], [False, False, True, True]])
    for case in CASES:
        if case.startswith("ptuning, ") or case.startswith("cartridge"):
            continue  # rows inside a question lengthen it; a cartridge reads no labels
        prompt = make(case, tiny)
        network = prompt.network(tiny)
        logits = network.logits(network(tokens, prompt.past(network)))
        want = F.cross_entropy(logits[answer], targets[answer])
        torch.testing.assert_close(prompt.loss(network, tokens, targets, answer), want, atol=1e-5, rtol=1e-4)


def test_rows_among_the_question_get_the_same_gradient_each_time(tiny):
    """Rows of a batch gather many gradients, which two threads must not add up in an order of chance."""
    prompt = prefix.PTuning(tiny, 24, position="after")
    network, threads = prompt.network(tiny), torch.get_num_threads()
    question = torch.tensor(prompt.insert_rows([40] * 24))  # (48)
    tokens = question.expand(64, -1)  # (B, T)
    weights = torch.randn(64, 48, 16, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(2)
    try:
        gradients = set()
        for _ in range(20):
            prompt.zero_grad()
            (network(tokens) * weights).sum().backward()
            gradients.add(prompt.rows.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(gradients) == 1


@pytest.mark.parametrize("name", ["hybrid", "prefix", "ptuning2", "lora", "finetune", "adapter", "prefix-memory"])
def test_checkpointed_activations_give_the_same_gradients_bit_for_bit(tiny, name):
    rng = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(1024, (2, 4, 20), generator=rng)  # (B, T) each
    answer, found = torch.rand(4, 20, generator=rng) < 0.5, []
    for tiny.checkpoint_activations in (False, True):
        prompt, kept = prefix.METHODS[name](tiny, 5, list(range(40, 50))), []
        network = prompt.network(tiny)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = prompt.loss(network, tokens, targets, answer)
        loss.backward()
        found.append(([p.grad.numpy().tobytes() for p in prompt.parameters() if p.grad is not None], sum(kept)))
    (gradients, size), (gradients_again, size_again) = found
    assert gradients and gradients == gradients_again
    assert size_again < size
