"""files/weights.py and files/safe.py: weights that transformers wrote and reads, and broken files."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import assert_same_logits, in_transformers, their_gpt2
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from safetensors.torch import save_model as save_shared

from files.errors import UserError
from files.safe import replacing, write_json, write_tensors
from files.weights import HUB, fingerprint, load_model, save_model
from model import GPT, GPTConfig


def test_we_and_transformers_read_what_we_save(tmp_path, either):
    assert_same_logits(either, in_transformers(either, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(either.parameters(), load_model(tmp_path).parameters()))


def test_old_dialect_of_the_hub_loads(tmp_path):
    """Names without `transformer.`, causal masks stored, the head stored beside the table."""
    theirs = their_gpt2(tmp_path)
    tensors = {n.removeprefix("transformer."): t.clone() for n, t in load_file(tmp_path / "model.safetensors").items()}
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_logits(load_model(tmp_path), theirs)
    tensors["lm_head.weight"][50, 3] += 1  # another head than the table, be it in one number
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="the head is not its embedding table"):
        load_model(tmp_path)


def test_a_table_that_is_stored_as_the_head_alone_loads(tmp_path):
    """By hand, and as safetensors' save_model chooses."""
    theirs, path = their_gpt2(tmp_path), tmp_path / "model.safetensors"
    good = load_file(path)
    alone = {n: t for n, t in good.items() if "wte" not in n}
    save_file(alone | {"lm_head.weight": good["transformer.wte.weight"]}, path)
    assert_same_logits(load_model(tmp_path), theirs)
    save_shared(theirs, path)
    assert load_file(path).keys() == good.keys() - {"transformer.wte.weight"} | {"lm_head.weight"}
    assert_same_logits(load_model(tmp_path), theirs)


def test_the_fingerprint_is_that_of_the_weights_in_any_dtype(tmp_path, tiny):
    save_model(tiny, tmp_path, torch.bfloat16)
    again = load_model(tmp_path)
    assert again.config == tiny.config and fingerprint(again) == fingerprint(tiny)
    with torch.no_grad():
        again.h[1].mlp.c_fc.weight[3, 2] *= 1.5
    assert fingerprint(again) != fingerprint(tiny)
    assert fingerprint(load_model("nano-2")) == "7d550bd50aa4c8f5"  # which its prompts name


def test_broken_checkpoints_are_refused_by_name(tmp_path):
    their_gpt2(tmp_path)
    good = load_file(tmp_path / "model.safetensors")
    for tensors, words in (
        ({n: t for n, t in good.items() if "h.1.ln_2.bias" not in n}, "lacks 1 tensors, first 'h.1.ln_2.bias'"),
        (good | {"h.9.odd": torch.zeros(1)}, "'h.9.odd', which GPT-2 does not have"),
    ):
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=words):
            load_model(tmp_path)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="no model.safetensors in .*: a model is a folder"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="no model.safetensors in .*: pytorch_model.bin is a pickle"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="no model .nanoo.: give nano-2, smollm2, gpt2"):
        load_model("nanoo")


def test_one_file_loads_and_one_of_several_names_its_folder(tmp_path):
    theirs = their_gpt2(tmp_path)
    whole = load_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert fingerprint(load_model(tmp_path / "weights.safetensors")) == fingerprint(whole)
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    with pytest.raises(UserError, match="lacks .* tensors, .*: name its folder if it is one of several files"):
        load_model(next(tmp_path.glob("model-*.safetensors")))


@pytest.mark.parametrize(
    "put",
    [
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("h.1.", "h.1._checkpoint_wrapped_module."),
    ],
)
def test_what_wraps_a_model_leaves_its_name_and_no_trace(tmp_path, put):
    their_gpt2(tmp_path)
    good, path = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    want = fingerprint(load_model(tmp_path))
    save_file({put(name): t for name, t in good.items()}, path)
    assert fingerprint(load_model(tmp_path)) == want
    save_file(good | {put(name): t.clone() for name, t in good.items()}, path)
    with pytest.raises(UserError, match="more than one model"):
        load_model(tmp_path)


def test_hub_names_are_fetched_at_a_pinned_revision_or_one_line_says_what_to_fetch(tmp_path, monkeypatch):
    their_gpt2(tmp_path)
    asked = []

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        if "xl" in repository:
            raise LocalEntryNotFoundError("a paragraph of advice")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_model("gpt2").name == "gpt2"
    repository, revision = HUB["gpt2"]
    assert asked == [(repository, "config.json", revision), (repository, "model.safetensors", revision)]
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for _, revision in HUB.values())
    with pytest.raises(UserError, match="cannot fetch .* of gpt2-xl.*openai-community/gpt2-xl into a folder") as error:
        load_model("gpt2-xl")
    assert "\n" not in str(error.value)


PEAK = """
import resource, sys
from files.weights import load_model
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_model(sys.argv[1], dtype=torch.bfloat16)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / sum(p.numel() * p.element_size() for p in model.parameters()))
print("torch._dynamo" in sys.modules)  # torch's compiler takes about as long to import as torch
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts other units elsewhere")
def test_loading_holds_little_more_than_the_model(tmp_path):
    """GPT-2's own proportions, a third of the weights in the table: 186 MB in float32, half of that as loaded."""
    save_model(GPT(GPTConfig(vocab_size=50257, block_size=1024, n_layer=6, n_head=8, n_embd=512)), tmp_path)
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True)
    peak, has_compiler = done.stdout.split()
    assert float(peak) < 1.3 and has_compiler == "False"


def test_a_checkpoint_that_means_another_network_is_refused(tmp_path):
    their_gpt2(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    others = {"activation_function": "relu", "n_inner": 40, "tie_word_embeddings": False}
    for key, value in (others | {"scale_attn_by_inverse_layer_idx": True}).items():
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError, match=key):
            load_model(tmp_path)


def test_weights_are_as_readable_as_any_new_file(tmp_path):
    write_tensors(tmp_path / "weights.safetensors", {"a": torch.ones(2)}, {})
    (tmp_path / "other").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"kept": True})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of")
        raise RuntimeError
    with pytest.raises(TypeError):
        write_json(path, {"not JSON": object()})
    assert json.loads(path.read_text()) == {"kept": True}
    assert os.listdir(tmp_path) == ["results.json"]
