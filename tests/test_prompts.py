"""prefix_file.py: whose file a prompt's is, and what it holds."""

import os

import pytest
import torch

import prefix
from files.prompts import load_prefix, save_prefix
from files.safe import read_tensors, write_tensors
from files.weights import save_model
from model import GPT


def test_another_base_tokenizer_or_file_is_refused(tiny, tokenizer, tmp_path):
    path = tmp_path / "p.safetensors"
    save_prefix(prefix.HybridPrefix(tiny, 2), path, tiny, tokenizer, "addition", "")
    other = GPT(tiny.config)
    with pytest.raises(ValueError, match="was tuned on the base 'untrained'"):
        load_prefix(path, other, tokenizer)
    with pytest.raises(ValueError, match="with the tokenizer nano-1024, not with bytes"):
        load_prefix(path, tiny, prefix.Scratch(block_size=8).tokenizer(tokenizer))
    with pytest.raises(ValueError, match="no prefix file"):
        load_prefix(tmp_path / "none.safetensors", tiny, tokenizer)
    save_model(tiny, tmp_path)
    with pytest.raises(ValueError, match="is no prefix: name"):
        load_prefix(tmp_path / "model.safetensors", tiny, tokenizer)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="cannot be read"):
        load_prefix(path, tiny, tokenizer)


def test_a_prompt_s_file_of_the_first_version_still_loads(tiny, tokenizer, tmp_path):
    """It said made_with, tokenise, letters, form and place."""
    prompt = prefix.PTuning(tiny, 3, [5], position="after")
    path = tmp_path / "new.safetensors"
    save_prefix(prompt, path, tiny, tokenizer, "addition", question_format="{}?")
    header, tensors = read_tensors(path)
    old = {k: v for k, v in header.items() if k not in ("init_kwargs", "tokenize", "question_format")}
    kwargs = '{"n_random": 3, "trigger": [5], "place": "after"}'
    old |= {"made_with": kwargs, "tokenise": "letters", "form": "{}?"}
    write_tensors(tmp_path / "old.safetensors", tensors, old)
    again, read = load_prefix(tmp_path / "old.safetensors", tiny, tokenizer)
    assert (again.position, read["tokenize"], read["question_format"]) == ("after", "bytes", "{}?")
    assert torch.equal(again.embeddings(), prompt.embeddings())


def test_worked_examples_are_in_the_file(tiny, tokenizer, tmp_path):
    prompt = prefix.HybridPrefix(tiny, 3)
    prompt.shots = torch.tensor([[1, 2]])
    save_prefix(prompt, tmp_path / "p.safetensors", tiny, tokenizer)
    again, _ = load_prefix(tmp_path / "p.safetensors", tiny, tokenizer)
    assert again.shots.tolist() == [[1, 2]]
