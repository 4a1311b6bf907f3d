"""run/prompts.py: whose file a prompt's is, and what it holds."""

import json
import os

import pytest
import torch

import prefix
from files.errors import UserError
from files.safe import read_tensors, write_tensors
from files.weights import save_model
from model import GPT
from run.prompts import base_of, load_prefix, save_prefix


def test_another_base_tokenizer_or_file_is_refused(tiny, tokenizer, tmp_path):
    path = tmp_path / "p.safetensors"
    save_prefix(prefix.HybridPrefix(tiny, n_random=2), path, tiny, tokenizer, "addition", "")
    with pytest.raises(UserError, match="was tuned on the base 'untrained' .* not on 'untrained'"):
        load_prefix(path, GPT(tiny.config), tokenizer)
    with pytest.raises(UserError, match="with the tokenizer nano-1024, not on .* with bytes"):
        load_prefix(path, tiny, prefix.METHODS["scratch"](tiny, block_size=8).tokenizer(tokenizer))
    with pytest.raises(UserError, match="none.safetensors is no regular file"):
        load_prefix(tmp_path / "none.safetensors", tiny, tokenizer)
    save_model(tiny, tmp_path)
    with pytest.raises(UserError, match="model.safetensors: .*name the prefix.safetensors of a run"):
        load_prefix(tmp_path / "model.safetensors", tiny, tokenizer)
    with pytest.raises(UserError, match="model.safetensors is no prompt"):
        base_of(tmp_path / "model.safetensors")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="cannot be read"):
        load_prefix(path, tiny, tokenizer)


def test_a_file_whose_header_names_fewer_arguments_takes_the_defaults(tiny, tokenizer, tmp_path):
    """As the files of before say neither seed nor every option."""
    prompt = prefix.PTuning(tiny, n_random=3, trigger=[5], position="after")
    prompt.shots = torch.tensor([[1, 2]])
    save_prefix(prompt, tmp_path / "new.safetensors", tiny, tokenizer)
    header, tensors = read_tensors(tmp_path / "new.safetensors")
    header["init_kwargs"] = json.dumps({"n_random": 3, "trigger": [5], "position": "after"})
    write_tensors(tmp_path / "old.safetensors", tensors, header)
    again, _ = load_prefix(tmp_path / "old.safetensors", tiny, tokenizer)
    assert again.position == "after" and torch.equal(again.embeddings(), prompt.embeddings())
    assert again.shots.tolist() == [[1, 2]]
