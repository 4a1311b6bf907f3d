"""research/peft.py: adapters that peft reads, and adapters that peft wrote."""

import json
import shutil

import peft
import pytest
import torch
from conftest import assert_close, greedy, in_transformers, randomize, some_tokens
from safetensors.torch import load_file, save_file

import prefix
from files.errors import UserError
from files.weights import load_model, save_model
from model import GPT
from research import peft as peft_io
from run.prompts import load_prefix, save_prefix

SIX = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 6}
LORA = {"task_type": "CAUSAL_LM", "fan_in_fan_out": True}
PEFT = {
    "PROMPT_TUNING": peft.PromptTuningConfig(**SIX),
    "P_TUNING": peft.PromptEncoderConfig(**SIX, encoder_hidden_size=12, encoder_reparameterization_type="LSTM"),
    "PREFIX_TUNING": peft.PrefixTuningConfig(**SIX),
    "PREFIX_TUNING with its MLP": peft.PrefixTuningConfig(**SIX, prefix_projection=True, encoder_hidden_size=12),
    "CPT": peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[40, 41, 42, 43, 44, 45]),
    "CARTRIDGE": peft.CartridgeConfig(**SIX, num_frozen_tokens=2),
    "LORA": peft.LoraConfig(**LORA, r=3, lora_alpha=7),  # of attention's c_attn alone
    "LORA in one block": peft.LoraConfig(**LORA, target_modules=["c_fc"], use_rslora=True, layers_to_transform=[1]),
}


def assert_same(method, model, theirs):
    """Logits and greedy text are those of PEFT's model."""
    tokens, network, past = some_tokens(3, 20), method.network(model), method.past(model)
    with torch.no_grad():
        want = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -20:]
        assert_close(network.logits(network(tokens, past)), want)
    assert network.generate(tokens, 30, past).tolist() == greedy(theirs, tokens, 30)


@pytest.mark.parametrize("kind", PEFT)
def test_an_adapter_that_peft_trained_gives_its_logits_here(tiny, tmp_path, kind):
    torch.manual_seed(2)
    theirs, tokens = in_transformers(tiny, tmp_path / "base", PEFT[kind]), some_tokens(3, 20)
    optimizer = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], 0.1)
    for _ in range(4):
        theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.save_pretrained(tmp_path / "adapter")
    assert_same(peft_io.import_peft(tmp_path / "adapter", tiny), tiny, theirs)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"target_modules": ["c_attn"], "rank_pattern": {"h.0.attn.c_attn": 2}}, "rank_pattern = .*: only None"),
        ({"target_modules": ["wte"]}, "wte.* no such update of its blocks"),
        ({"target_modules": ["c_attn"], "alora_invocation_tokens": [70, 71]}, r"alora.* = \[70, 71\]: only None"),
    ],
)
def test_lora_that_is_more_than_lora_is_not_imported(tiny, tmp_path, options, why):
    theirs = in_transformers(tiny, tmp_path / "base", peft.LoraConfig(**LORA, **options))
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(UserError, match=why):
        peft_io.import_peft(tmp_path / "adapter", tiny)


def test_an_adapter_that_says_or_holds_what_nobody_knows_is_not_imported(tiny, tmp_path):
    """Whatever a later PEFT adds is off while it is empty; the half of an update is none."""
    for method in (prefix.METHODS["lora"](tiny), prefix.HybridPrefix(tiny, n_random=4)):
        peft_io.export_peft(method, tiny, tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        for value, fine in ((None, True), ({}, True), ("some", False), (0.5, False)):
            (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"gates": value}))
            if fine:
                peft_io.import_peft(tmp_path, tiny)
                continue
            with pytest.raises(UserError, match="adapter_config.json says gates = .*: only None, False"):
                peft_io.import_peft(tmp_path, tiny)
    peft_io.export_peft(prefix.METHODS["lora"](tiny), tiny, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    del tensors["base_model.model.transformer.h.1.mlp.c_fc.lora_A.weight"]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="has one of .*h.1.mlp.c_fc.lora_A.weight and .* alone"):
        peft_io.import_peft(tmp_path, tiny)


EXPORTED = {"hybrid": {"mlp": True}, "lopt": {"rank": 3}, "ptuning": {}, "prefix": {}, "cartridge": {}, "cpt": {}}
EXPORTED |= {"lora": {"rank": 3, "alpha": 5.0}}
FOR_LLAMA = "hybrid", "prefix", "lora"  # whose heads share keys and values


@pytest.mark.parametrize("family, name", [("tiny", n) for n in EXPORTED] + [("tiny_llama", n) for n in FOR_LLAMA])
def test_our_export_gives_our_logits_in_peft_and_comes_back(request, tmp_path, family, name):
    model = request.getfixturevalue(family)
    method = randomize(prefix.METHODS[name](model, n_random=4, trigger=[7, 8], **EXPORTED[name]))
    peft_io.export_peft(method, model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(in_transformers(model, tmp_path / "base"), tmp_path / "adapter").eval()
    for ours in (method, peft_io.import_peft(tmp_path / "adapter", model)):
        assert_same(ours, model, theirs)


@pytest.mark.parametrize(
    "method, own, why",
    [
        ("adapter", {}, "no adapter for adapter"),
        ("ptuning", {"position": "after"}, "rows after the question"),
        ("hybrid", {}, "would lose it"),  # with worked examples behind it
    ],
)
def test_what_peft_cannot_hold_is_not_exported(tiny, tmp_path, method, own, why):
    prompt = prefix.METHODS[method](tiny, n_random=3, trigger=[5], **own)
    prompt.shots = torch.tensor([[1, 2]]) if method == "hybrid" else None
    with pytest.raises(UserError, match=why):
        peft_io.export_peft(prompt, tiny, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_adapters_that_are_no_soft_prompt_for_this_base_are_refused(tiny, tmp_path):
    peft_io.export_peft(prefix.HybridPrefix(tiny, n_random=4), tiny, tmp_path)
    other = GPT(type(tiny.config)(1024, 96, 2, 2, 20))
    with pytest.raises(UserError, match=r"prompt_embeddings is \(4, 16\).*, a PROMPT_TUNING prompt .* is 20 wide"):
        peft_io.import_peft(tmp_path, other)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(UserError, match="peft_type = 'IA3': only PROMPT_TUNING"):
        peft_io.import_peft(tmp_path, tiny)
    peft_io.export_peft(prefix.METHODS["lora"](tiny), tiny, tmp_path)
    with pytest.raises(UserError, match=r"h.0.attn.c_attn.lora_A.weight is \(8, 16\), .* asks for \(8, 20\)"):
        peft_io.import_peft(tmp_path, other)


def test_an_adapter_of_before_safetensors_is_named(tiny, tmp_path):
    peft_io.export_peft(prefix.HybridPrefix(tiny, n_random=4), tiny, tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match="adapter_model.bin is a pickle, .* save_pretrained of a newer version"):
        peft_io.import_peft(tmp_path, tiny)


@pytest.fixture
def base(tiny, tmp_path):
    save_model(tiny, tmp_path / "base")
    shutil.copy("data/nano-2/encoding.json", tmp_path / "base")
    return load_model(tmp_path / "base")


def test_export_and_import_from_the_command_line(base, tokenizer, tmp_path, command):
    prompt = prefix.DeepPrefix(base, n_random=4, trigger=[7])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(json.dumps({"args": {"model": str(tmp_path / "base")}}))
    save_prefix(prompt, tmp_path / "run" / "prefix.safetensors", base, tokenizer, "addition")
    done = command("research.peft", "export", tmp_path / "run", tmp_path / "adapter")  # results.json names the base
    assert (done.code, done.out) == (0, f"wrote 5 rows to {tmp_path / 'adapter'}\n")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()  # it finds the base
    assert_same(prompt, base, theirs)
    new = tmp_path / "again.safetensors"
    assert command("research.peft", "import", tmp_path / "adapter", new, "--model", tmp_path / "base").code == 0
    again, header = load_prefix(new, base, tokenizer)
    assert torch.equal(again.rows, prompt.rows)
    assert (header["tokenize"], header["stop"]) == ("bpe", "")
    (tmp_path / "run" / "results.json").unlink()
    command("research.peft", "export", tmp_path / "run", tmp_path / "adapter").refused("already in use")
    done = command("research.peft", "export", tmp_path / "run", tmp_path / "other")
    done.refused("was tuned on the base 'base': name its folder")


def test_merged_from_the_command_line(base, tokenizer, tmp_path, command):
    """The checkpoint answers as LoRA does, in the base's own tokenizer; what is not in the weights is refused."""
    lora = randomize(prefix.METHODS["lora"](base))
    save_prefix(lora, tmp_path / "lora.safetensors", base, tokenizer)
    save_prefix(prefix.HybridPrefix(base, n_random=3), tmp_path / "rows.safetensors", base, tokenizer)
    flags = "--model", tmp_path / "base"
    assert command("research.peft", "merge", tmp_path / "lora.safetensors", tmp_path / "merged", *flags).code == 0
    network, merged = lora.network(base), load_model(tmp_path / "merged")
    assert_close(merged(some_tokens(2, 5)), network(some_tokens(2, 5)))
    done = command("research.peft", "merge", tmp_path / "rows.safetensors", tmp_path / "other", *flags)
    done.refused("only --method lora")
    assert not (tmp_path / "other").exists()


def test_a_merged_checkpoint_has_the_base_s_types_and_all_that_lies_beside_its_weights(tiny_llama, tmp_path):
    save_model(tiny_llama, tmp_path / "base", torch.float16)
    stated = json.loads((tmp_path / "base" / "config.json").read_text()) | {"eos_token_id": [7, 9], "mine": {"a": 1}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(stated))
    for name in ("tokenizer_config.json", "chat_template.jinja", "LICENSE", "pytorch_model.bin", "model.gguf"):
        (tmp_path / "base" / name).write_text(name)
    (tmp_path / "base" / "onnx").mkdir()
    model = load_model(tmp_path / "base")
    lora = prefix.METHODS["lora"](model)
    peft_io.save_merged(lora, model, tmp_path / "merged")  # its updates are zero
    left = {"pytorch_model.bin", "model.gguf", "onnx"}
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {p.name for p in (tmp_path / "base").iterdir()} - left
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == stated
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert all(after[name].dtype == torch.float16 and torch.equal(after[name], t) for name, t in before.items())
