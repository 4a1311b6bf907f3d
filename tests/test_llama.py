"""llama.py against transformers and peft on small random models, the files of its family, and its methods' commands."""

import json
from functools import partial
from types import SimpleNamespace

import peft
import pytest
import tokenizers
import torch
import transformers
from conftest import assert_close, assert_same_logits, greedy, in_transformers, randomize, some_tokens
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers

import prefix
from data import trial
from data.tokenizer import Tokenizer, fault_of, note
from files.errors import UserError
from files.weights import load_model

transformers.utils.logging.disable_progress_bar()

some_tokens = partial(some_tokens, vocab_size=101)
SHAPE = dict(vocab_size=101, hidden_size=32, intermediate_size=24, num_hidden_layers=2, max_position_embeddings=64)
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
FAMILIES = {  # what differs from SHAPE: heads that share keys, heads of any width, tied or not
    "Llama": {"num_key_value_heads": 1, "head_dim": 6, "rms_norm_eps": 1e-5},
    "Llama 3.1": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0} | LLAMA3},
    "Qwen2": {"tie_word_embeddings": True, "num_attention_heads": 8, "num_hidden_layers": 1},
    "Qwen3": {"head_dim": 12, "num_hidden_layers": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "Mistral": {"num_key_value_heads": 4, "intermediate_size": 5},
}


def reference(folder, family, changes=None, **how):
    """A model of transformers, saved."""
    torch.manual_seed(0)
    shape = SHAPE | (FAMILIES[family] if changes is None else changes)
    config = transformers.AutoConfig.for_model(family.split()[0].lower(), **shape)
    theirs = randomize(transformers.AutoModelForCausalLM.from_config(config), std=0.2).eval()
    theirs.save_pretrained(folder, **how)
    return theirs


# ---------------------------------------------------------------- transformers and peft


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_text_equal_transformers_in_shards_and_back(tmp_path, family):
    theirs = reference(tmp_path, family, max_shard_size="1KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ours, tokens = load_model(tmp_path), some_tokens(3, 7)
    assert_same_logits(ours, theirs)
    assert ours.generate(tokens, 30).tolist() == greedy(theirs, tokens, 30)
    assert_same_logits(ours, in_transformers(ours, tmp_path / "again"))
    assert load_model(tmp_path / "again").config == ours.config


def test_an_adapter_prefix_equals_peft_s_llama_adapter(tmp_path):
    """PEFT has one gate for all heads, and multiplies by the gate itself."""
    theirs, tokens = reference(tmp_path, "Llama", {}), some_tokens(2, 20)
    ours = load_model(tmp_path).freeze()
    prompt = prefix.AdapterPrefix(ours, n_random=3, trigger=[5], layers=2)
    torch.nn.init.normal_(prompt.rows)
    prompt.gate.data.copy_(torch.tensor([[0.7], [-0.4]]))
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2)
    theirs = peft.get_peft_model(theirs, config).eval()
    for layer, rows, gate in zip(theirs.get_base_model().model.layers, prompt.rows, prompt.gate):
        layer.self_attn.adaption_prompt.data.copy_(rows[None])
        layer.self_attn.adaption_gate.data.copy_(gate[:1].tanh())
    network = prompt.network(ours)
    want = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    assert_close(network.logits(network(tokens)), want)


def test_mistral_within_its_window_is_mistral_and_beyond_it_is_refused(tmp_path):
    theirs, tokens = reference(tmp_path, "Mistral", {"sliding_window": 20}), some_tokens(2, 21)
    ours = load_model(tmp_path)
    with torch.no_grad():
        want = theirs(tokens).logits
        assert_close(ours.logits(ours(tokens[:, :20])), want[:, :20])
    with pytest.raises(AssertionError, match="exceed block_size 20"):
        ours(tokens)


# ---------------------------------------------------------------- checkpoints


@pytest.fixture
def folder(tmp_path):
    reference(tmp_path / "base", "Llama", {}, max_shard_size="4KB")
    return tmp_path / "base"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "gemma2"}, "model_type = 'gemma2': only gpt2, llama, mistral, qwen2, qwen3 can be loaded"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = "),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "has no high_freq_factor"),
        ({"model_type": "qwen2"}, "lacks 6 tensors, first 'model.layers.0.self_attn.k_proj.bias'"),
    ],
)
def test_what_would_be_another_network_is_refused_by_name(folder, changes, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_configurations_of_before_transformers_5_mean_the_same(tmp_path):
    """rope_theta and rope_scaling, no head_dim and no number of key-value heads."""
    reference(tmp_path, "Llama", {"num_key_value_heads": 4})
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("rope_parameters", "head_dim", "num_key_value_heads"):
        del config[key]
    config |= {"rope_theta": 500.0, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same_logits(load_model(tmp_path), theirs)
    config |= {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}  # half of each
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert load_model(tmp_path).config.rope_theta == theirs.config.rope_parameters["rope_theta"] == 500.0


def test_a_qwen3_that_states_no_head_dim_has_128(tmp_path):
    theirs = reference(tmp_path, "Qwen3", {"num_hidden_layers": 1, "head_dim": 128})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_logits(load_model(tmp_path), theirs)


def test_a_name_of_the_hub_fetches_what_the_index_of_its_shards_names(folder, monkeypatch):
    asked = set()

    def download(repository, file, revision):
        asked.add(file)
        if (folder / file).is_file():
            return str(folder / file)
        no_answer = SimpleNamespace(headers={}, request=None)
        error = GatedRepoError if repository.startswith("meta") else RemoteEntryNotFoundError
        raise error("a paragraph", response=no_answer)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match="cannot fetch tokenizer.json of HuggingFaceTB/SmolLM2-135M"):
        load_model("HuggingFaceTB/SmolLM2-135M")
    (folder / "tokenizer.json").write_text("{}")
    model = load_model("HuggingFaceTB/SmolLM2-135M@abc123")
    assert model.name == "HuggingFaceTB/SmolLM2-135M@abc123" and model.folder == folder
    assert asked >= {path.name for path in folder.glob("*.safetensors")}
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="gated, accept its terms on .*hf auth login"):
        load_model("meta-llama/Llama-3.2-1B")


# ---------------------------------------------------------------- tokenizers


def byte_level():
    """A tokenizer as SmolLM2 and Qwen have it: byte-level BPE that takes digits one by one."""
    file, level = tokenizers.Tokenizer(tokenizers.models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    file.decoder = decoders.ByteLevel()
    how = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": level.alphabet(), "show_progress": False}
    file.train(["README.md"], trainers.BpeTrainer(vocab_size=500, **how))
    return file


def sentence_piece():
    """A tokenizer as Llama 2 has it: BPE that writes spaces as U+2581, bytes as <0x00>, and <s> before a text."""
    file = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    file.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    spaces = decoders.Replace("\u2581", " ")
    file.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    file.train_from_iterator(open("README.md").read().split("\n"), trainer)
    file.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return file


def saved(file, folder, eos=0):
    file.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": eos}))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return Tokenizer.load(folder, 1024, "bpe"), theirs


TEXTS = ["321+654=", "What is an atom ?\nAnswer:", " description\n", "\n\n two", "naïve 日本 ", "<s> <|endoftext|>", ""]


def test_a_tokenizer_json_encodes_as_transformers_does(tmp_path):
    """What stands behind other text gets no space of SentencePiece's own before it, as in the whole text."""
    level, theirs = saved(byte_level(), tmp_path)
    assert (level.bos, level.eot) == ([], 0)
    assert len(level.encode("2026")) == 4  # one digit a token
    for text in TEXTS:
        assert level.encode(text) == theirs.encode(text, split_special_tokens=True)
    piece, theirs = saved(sentence_piece(), tmp_path, eos=[2, 7])
    assert (piece.bos, piece.eot) == ([1], 2)
    for text in TEXTS:
        whole = theirs.encode("\n" + text)
        assert "<s>" in text or whole[0] == 1 and whole[3:] == piece.encode(text)
        for ours in (level, piece):
            assert ours.decode([*ours.encode(text), 1023]) == ours.decode(ours.encode_bytes(text)) == text
    for byte, token in (("x", "x"), (" ", "\u2581"), ("\n", "<0x0A>")):
        assert piece.encode_bytes(byte) == [theirs.convert_tokens_to_ids(token)]


@pytest.mark.parametrize(
    "before, config, generation, want",
    [
        ("", {"eos_token_id": [1, 2]}, {"eos_token_id": [2, 3]}, [1, 2, 3]),  # all of both
        ("<s> $A </s>", {"eos_token_id": 2}, {}, [2]),
        ("$A </s>", {}, {"eos_token_id": 2}, [2]),
        ("<unk> <s> $A", {"eos_token_id": None}, {}, []),  # none: the last token is an ordinary one
        ("<s> $A $A </s>", {"eos_token_id": [-1, 700, 4000]}, {"eos_token_id": []}, [700]),
    ],
)
def test_where_a_text_begins_and_ends(tmp_path, before, config, generation, want):
    file, numbers = sentence_piece(), {"<unk>": 0, "<s>": 1, "</s>": 2}
    pairs = list(numbers.items())
    file.post_processor = processors.TemplateProcessing(single=before, special_tokens=pairs) if before else None
    tokenizer, _ = saved(file, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = Tokenizer.load(tmp_path, 1024)
    assert (tokenizer.ends, tokenizer.eot) == (want, [*want, -1][0])
    assert tokenizer.bos == [numbers[token] for token in before.partition("$A")[0].split()]


def test_a_gpt2_reads_the_tokenizer_beside_its_weights(tmp_path):
    file = byte_level()
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # as GPT-2 cuts
    theirs = saved(file, tmp_path)[1]
    file.model.save(str(tmp_path))  # vocab.json and merges.txt
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 0}))
    ours = [Tokenizer.load(tmp_path, vocab_size, "bpe") for vocab_size in (50257, 500)]  # rows for more tokens, or not
    (tmp_path / "tokenizer.json").unlink()
    ours.append(Tokenizer.load(tmp_path, 50257, "bpe"))
    for tokenizer in ours:
        assert tokenizer.encode("What is it?\n") == theirs.encode("What is it?\n")
        assert (tokenizer.ends, tokenizer.name) == ([0], ours[0].name)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match="vocab.json cannot be read .*: fetch it again"):
        Tokenizer.load(tmp_path, 50257)


def test_special_tokens_may_have_no_row_and_others_have_to(folder):
    file = byte_level()
    file.add_special_tokens(["<pad>"])
    file.save(str(folder / "tokenizer.json"))
    assert Tokenizer.load(folder, 500, "bpe").encode("<pad>") == Tokenizer.load(folder, 501, "bpe").encode("<pad>")
    file.add_tokens(["pad"])
    file.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="has 502 tokens, the weights have 500"):
        Tokenizer.load(folder, 500)


def test_what_is_no_tokenizer_of_these_weights_is_refused(folder):
    byte_level().save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="has 500 tokens, the weights have 101: fetch both"):
        Tokenizer.load(folder, 101)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json cannot be read"):
        Tokenizer.load(folder, 101)


def test_special_tokens_are_tokens_where_that_is_asked_for_and_else_a_line_says_that_they_are_letters(tmp_path, capsys):
    note.cache_clear()
    text = "<|endoftext|>hi<|endoftext|>"
    level, theirs = saved(byte_level(), tmp_path)
    assert level.encode_task(text) == theirs.encode(text, split_special_tokens=True)
    assert "spells '<|endoftext|>': read as letters; --tokenize special" in capsys.readouterr().err
    level.tokenize = "special"
    assert level.encode_task(text) == theirs.encode(text) and level.encode_task(text).count(0) == 2
    assert level.encode_task("hi") == theirs.encode("hi") and capsys.readouterr().err == ""
    nano = Tokenizer.load("data/nano-2", 1024, "special")
    assert nano.encode_task("<|endoftext|>") == [nano.eot] == [1023]


def runs(pattern):
    """A regular expression by which the text is cut."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": split}


NO_TOKEN = [{"SpecialToken": {"id": "<none>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]


@pytest.mark.parametrize(
    "parts, message",
    [
        (runs("(z+)+$"), "fails, loops or runs out of memory"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 20_000}}, "it makes 20,... tokens of 152 characters"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}, "fails, loops"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": NO_TOKEN, "pair": [], "special_tokens": {}}},
            "fails, loops",
        ),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "cannot be read"),
    ],
)
def test_a_tokenizer_that_breaks_its_library_is_refused(tmp_path, capfd, parts, message):
    content = json.loads(byte_level().to_str()) | parts
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path, 1024)
    assert capfd.readouterr().err == ""


def test_a_trial_that_the_system_kills_says_so(tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)")
    monkeypatch.setattr(trial, "__file__", str(tmp_path / "killed.py"))
    assert "runs out of memory" in fault_of(b"{}")
