"""llama.py against transformers and peft, on small random models of each family that hypothesis draws."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llama
import prefix
import tasks
from data.tokenizer import Tokenizer
from files import peft as peft_io
from files import prompts as prefix_file
from files.weights import fingerprint, load_model, save_model
from llama import Llama, LlamaConfig

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
transformers.utils.logging.disable_progress_bar()

import test_generate  # noqa: E402
import test_prefix  # noqa: E402
from test_checkpoint import PEAK  # noqa: E402
from test_peft_io import PEFT, greedy  # noqa: E402

FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@st.composite
def shapes(draw):
    """(family, arguments of transformers' configuration): heads that share keys, heads of any width, tied or not."""
    family = draw(st.sampled_from(["Llama", "Qwen2", "Qwen3", "Mistral"]))
    n_kv_head, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width = draw(st.sampled_from([4, 8, 12]))
    heads = n_kv_head * group
    shape = {
        "vocab_size": 101,
        "hidden_size": heads * width,
        "intermediate_size": draw(st.integers(5, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": n_kv_head,
        "max_position_embeddings": 64,
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-5, 1e-6])),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": draw(st.sampled_from([100.0, 10000.0, 500000.0]))},
    }
    if family in ("Llama", "Qwen3"):
        shape["head_dim"] = draw(st.sampled_from([width, 6]))
    if family == "Llama" and draw(st.booleans()):  # as in Llama 3.1
        scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        shape["rope_parameters"] |= {"rope_type": "llama3", "original_max_position_embeddings": 32} | scaling
    return family, shape


def theirs_of(family, shape, seed=0):
    """A model of transformers with weights so large that no two tokens are nearly tied, norms and biases as well."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**shape)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name), std=0.2)
    return model


def some_tokens(*shape, seed=2):
    return torch.randint(101, shape, generator=torch.Generator().manual_seed(seed))


def base_of(shape):
    """One model, theirs and ours, for tests that draw none."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = theirs_of(*shape)
        theirs.save_pretrained(folder)
        return theirs, load_model(folder).freeze()


SHAPE = (
    "Llama",
    {
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
)


@FEW
@given(shapes())
def test_logits_and_greedy_text_equal_transformers_in_shards_and_back(tmp_path_factory, shape):
    theirs, folder = theirs_of(*shape), tmp_path_factory.mktemp("base")
    theirs.save_pretrained(folder, max_shard_size="1KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    ours = load_model(folder)
    tokens = some_tokens(3, 40)
    with torch.no_grad():
        want = theirs(tokens).logits
        torch.testing.assert_close(ours.logits(ours(tokens)), want, atol=1e-4, rtol=1e-4)
    assert ours.generate(tokens[:, :7], 30).tolist() == greedy(theirs, tokens[:, :7], 30)
    save_model(ours, folder / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / "again").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, want, atol=1e-5, rtol=1e-5)
    assert load_model(folder / "again").config == ours.config
    assert fingerprint(load_model(folder / "again")) == fingerprint(ours)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "CARTRIDGE"])
@settings(FEW, max_examples=3)
@given(shapes())
def test_an_adapter_that_peft_trained_gives_its_logits_and_text_here(kind, tmp_path_factory, shape):
    folder = tmp_path_factory.mktemp("base")
    base = theirs_of(*shape)
    base.save_pretrained(folder)
    ours = load_model(folder).freeze()
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(base, PEFT[kind]())
    tokens = some_tokens(3, 20)
    ones = torch.ones_like(tokens)
    optimizer = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], 0.1)
    theirs(input_ids=tokens, attention_mask=ones, labels=tokens).loss.backward()
    optimizer.step()
    theirs.eval().save_pretrained(folder / "adapter")
    prompt = peft_io.import_peft(folder / "adapter", ours)
    with torch.no_grad():
        want = theirs(input_ids=tokens, attention_mask=ones).logits[:, -20:]
        past = prompt.past(ours)
        torch.testing.assert_close(ours.logits(ours(tokens, past)), want, atol=1e-4, rtol=1e-4)
    assert ours.generate(tokens, 30, past).tolist() == greedy(theirs, tokens, 30)


@pytest.mark.parametrize("name", ["hybrid", "prompt", "ptuning", "prefix", "ptuning2", "lora"])
@settings(FEW, max_examples=2)
@given(shapes())
def test_our_export_gives_our_logits_in_peft(name, tmp_path_factory, shape):
    folder = tmp_path_factory.mktemp("base")
    base = theirs_of(*shape)
    base.save_pretrained(folder)
    ours = load_model(folder).freeze()
    options = {"rank": 2} if name == "lora" else {}  # no more than the narrowest of these bases is wide
    method = prefix.METHODS[name](ours, n_random=4, trigger=[7, 8], seed=3, **options)
    for p in method.parameters():  # as if tuned
        torch.nn.init.normal_(p, std=0.3)
    peft_io.export_peft(method, ours, folder / "adapter")
    theirs = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    tokens = some_tokens(3, 20)
    with torch.no_grad():
        network = method.network(ours)
        got = network.logits(network(tokens, method.past(network)))
        want = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -20:]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    if name in ("ptuning2", "lora"):  # and its file comes back
        again = peft_io.import_peft(folder / "adapter", ours)
        network = again.network(ours)
        torch.testing.assert_close(network.logits(network(tokens, again.past(network))), got)


def test_gradients_of_rows_and_of_deep_rows_equal_peft():
    theirs, ours = base_of(SHAPE)
    tokens = some_tokens(3, 20)
    for name, config in (("hybrid", peft.PromptTuningConfig), ("ptuning2", peft.PrefixTuningConfig)):
        prompt = prefix.METHODS[name](ours, 3, [7, 8], seed=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = peft.get_peft_model(theirs, config(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
        weight = tuned.prompt_encoder.default.embedding.weight
        weight.data.copy_(prompt.rows.data)
        logits = tuned(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -20:-1]
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        answer = torch.ones(3, 19, dtype=torch.bool)
        prompt.loss(ours, tokens[:, :-1], tokens[:, 1:], answer).backward()
        torch.testing.assert_close(prompt.rows.grad, weight.grad, atol=1e-5, rtol=1e-4)
        theirs = tuned.get_base_model()


def test_an_adapter_prefix_equals_peft_s_llama_adapter():
    """PEFT has one gate for all heads, and multiplies by the gate itself."""
    theirs, ours = base_of(SHAPE)
    prompt = prefix.AdapterPrefix(ours, 3, [5], layers=2)
    torch.nn.init.normal_(prompt.rows)
    prompt.gate.data.copy_(torch.tensor([[0.7], [-0.4]]))
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2)
    theirs = peft.get_peft_model(theirs, config).eval()
    adapted = [layer.self_attn for layer in theirs.get_base_model().model.layers]
    for attention, rows, gate in zip(adapted, prompt.rows, prompt.gate):
        attention.adaption_prompt.data.copy_(rows[None])
        attention.adaption_gate.data.copy_(gate[:1].tanh())
    tokens = some_tokens(2, 20)
    network = prompt.network(ours)
    want = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    torch.testing.assert_close(network.logits(network(tokens)), want, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- the tests of GPT-2, on a Llama


@pytest.fixture
def tiny_llama():
    """As conftest's `tiny`, with heads that share keys and values, of a width of their own, and an untied head."""
    torch.manual_seed(1)
    shape = {"vocab_size": 1024, "block_size": 96, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16}
    model = Llama(LlamaConfig(**shape, head_dim=6, n_inner=20, tied=False))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.freeze()


@pytest.mark.parametrize("case", test_prefix.CASES)
def test_the_file_and_the_gradients_of_every_method(tiny_llama, tokenizer, tmp_path, case):
    test_prefix.test_saved_and_loaded_it_is_the_same(tiny_llama, tokenizer, tmp_path, case)
    if case not in ("zero-shot", "text", "few-shot", "hard"):
        test_prefix.test_gradients_equal_finite_differences(tiny_llama, case)


def test_losses_starts_and_shared_weights(tiny_llama):
    test_prefix.test_the_loss_of_every_method_is_that_of_its_logits(tiny_llama)
    for method in ("adapter", "adapter-prefix", "lora", "finetune"):
        test_prefix.test_what_changes_the_network_changes_nothing_at_first(tiny_llama, method)
    test_prefix.test_the_weights_are_shared_and_stay_as_they_are(tiny_llama)
    test_prefix.test_output_rows_of_warp_stand_in_for_the_labels_tokens_alone(tiny_llama)
    test_prefix.test_deep_rows_that_have_not_moved_are_the_words(tiny_llama)
    prompt = prefix.Warp(tiny_llama, 1, labels=[[3]])
    assert torch.equal(prompt.label_rows[0], tiny_llama.lm_head.weight[3])  # not those of the embedding table


def test_one_decoder_for_questions_and_prompts_of_any_length(tiny_llama):
    for P in (0, 7):
        test_generate.test_questions_of_any_length_equal_one_at_a_time(tiny_llama, P)
    test_generate.test_every_kind_of_prompt_in_one_batch_equals_one_at_a_time(tiny_llama)
    test_generate.test_rows_end_at_their_stop_token_and_change_nothing_for_the_rest(tiny_llama, True)
    test_generate.test_sampling_repeats_with_its_seed_and_is_that_of_the_specification(tiny_llama)
    test_generate.test_bfloat16_takes_questions_of_any_length(tiny_llama)


# ---------------------------------------------------------------- positions


def test_it_makes_no_difference_where_a_prefix_stands(monkeypatch):
    """Positions count on behind a prefix, and rotary attention sees distances alone: whether prefix and text begin at
    position 0 or at 9, every hidden state is the same. A gap between the two would be seen."""
    _, ours = base_of(SHAPE)
    rows, text = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)), some_tokens(2, 8)
    at_0 = ours(text, ours.prefill(rows))
    whole = ours.run(torch.cat([rows.expand(2, -1, -1), ours.wte(text)], 1))[0][:, 5:]  # in one pass
    torch.testing.assert_close(at_0, whole, atol=1e-5, rtol=1e-5)
    rotation, at_0_cache = llama.rotation, ours.prefill(rows)
    monkeypatch.setattr(llama, "rotation", lambda config, position: rotation(config, position + 9))
    at_9_cache = ours.prefill(rows)
    assert not torch.allclose(at_9_cache[0][0], at_0_cache[0][0], atol=1e-2)  # the keys are others
    torch.testing.assert_close(ours(text, at_9_cache), at_0, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(text, at_0_cache), at_0, atol=1e-2)  # the text 9 positions further away


def test_mistral_within_its_window_is_mistral_and_beyond_it_is_refused():
    theirs, ours = base_of(("Mistral", SHAPE[1] | {"sliding_window": 20}))
    tokens = some_tokens(2, 21)
    with torch.no_grad():
        want = theirs(tokens).logits
        torch.testing.assert_close(ours.logits(ours(tokens[:, :20])), want[:, :20], atol=1e-4, rtol=1e-4)
        past = ours.prefill(tokens[:1, :12])
        assert ours(tokens[:1, 12:20], past).shape == (1, 8, 32)
    for before, T in ((None, 21), (past, 9)):
        with pytest.raises(ValueError, match="exceed block_size 20"):
            ours(tokens[:1, :T], before)
    ours.config.block_size = 64  # without the window the last position would see one more than Mistral does
    with torch.no_grad():
        assert not torch.allclose(ours.logits(ours(tokens))[:, 20], want[:, 20], atol=1e-3)


def test_bfloat16_is_float32_but_for_rounding():
    _, ours = base_of(("Qwen3", SHAPE[1] | {"head_dim": 12}))
    tokens = some_tokens(3, 20)
    tokens[:, :8] = tokens[0, :8]
    want = ours(tokens)[:, 8:]
    half = ours.to(torch.bfloat16)
    for past in (None, half.prefill(tokens[:1, :8]), half.prefill(tokens[:, :8])):
        got = half(tokens)[:, 8:] if past is None else half(tokens[:, 8:], past)
        assert (got.float() - want).norm() < 0.03 * want.norm()


def test_heads_that_cannot_share_keys_are_refused():
    with pytest.raises(ValueError, match="n_head 3 is not a multiple of n_kv_head 2"):
        Llama(LlamaConfig(n_head=3, n_kv_head=2))


# ---------------------------------------------------------------- checkpoints


@pytest.fixture
def folder(tmp_path):
    theirs_of(*SHAPE).save_pretrained(tmp_path / "base", max_shard_size="4KB")
    return tmp_path / "base"


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "gemma2"}, "model_type = 'gemma2': only gpt2, llama, mistral, qwen2, qwen3 can be loaded"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = "),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type = 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "has no high_freq_factor"),
        ({"model_type": "qwen2"}, "lacks 6 tensors, first 'model.layers.0.self_attn.k_proj.bias'"),
    ],
)
def test_what_would_be_another_network_is_refused_by_name(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_configurations_of_before_transformers_5_mean_the_same(tmp_path):
    """rope_theta and rope_scaling, no head_dim and no number of key-value heads."""
    theirs = theirs_of("Llama", SHAPE[1] | {"num_key_value_heads": 4})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("rope_parameters", "head_dim", "num_key_value_heads"):
        del config[key]
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"rope_theta": 500.0, "rope_scaling": scaling | {"rope_type": "llama3"}})
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert theirs.config.rope_parameters["rope_type"] == "llama3"
    ours, tokens = load_model(tmp_path), some_tokens(2, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """SmolLM2's proportions, a fifth of the weights in the table, in four shards or more of bfloat16."""
    folder = tmp_path_factory.mktemp("sharded")
    shape = {"vocab_size": 49152, "hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 30}
    shape |= {"num_attention_heads": 5, "num_key_value_heads": 1, "tie_word_embeddings": True}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).to(torch.bfloat16)
    theirs.save_pretrained(folder, max_shard_size="30MB")
    assert len(list(folder.glob("model-*.safetensors"))) >= 4
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts other units elsewhere")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_shards_of_bfloat16_holds_little_more_than_the_model(sharded, dtype):
    done = subprocess.run([sys.executable, "-c", PEAK, sharded, dtype], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3


def hub(folder, monkeypatch, missing=(), error=None):
    """A stand-in for the hub's download that has a folder's files; what it was asked for."""
    asked = []

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        if error:
            raise error
        if file in missing or not (folder / file).is_file():
            raise RemoteEntryNotFoundError(
                f"a paragraph about {file}", response=SimpleNamespace(headers={}, request=None)
            )
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_a_name_of_the_hub_fetches_what_the_index_of_its_shards_names(folder, monkeypatch):
    (folder / "tokenizer.json").write_text("{}")
    asked = hub(folder, monkeypatch)
    model = load_model("HuggingFaceTB/SmolLM2-135M@abc123")
    assert model.name == "HuggingFaceTB/SmolLM2-135M@abc123" and model.folder == folder
    assert {(repository, revision) for repository, _, revision in asked} == {("HuggingFaceTB/SmolLM2-135M", "abc123")}
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    files = {"config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"}
    assert {file for _, file, _ in asked} == files | shards
    asked.clear()
    load_model("HuggingFaceTB/SmolLM2-135M")
    assert {revision for _, _, revision in asked} == {None}
    for missing in ("tokenizer.json", "model.safetensors.index.json"):
        hub(folder, monkeypatch, missing)
        with pytest.raises(ValueError, match=f"cannot fetch {missing} of HuggingFaceTB/SmolLM2-135M"):
            load_model("HuggingFaceTB/SmolLM2-135M")


def test_what_the_hub_does_not_give_is_said_in_one_line(folder, monkeypatch):
    response = SimpleNamespace(headers={}, request=None)
    for error, message in (
        (LocalEntryNotFoundError("a paragraph\nof advice"), "cannot fetch config.json of meta-llama.*go online once"),
        (GatedRepoError("a paragraph\nof advice", response=response), "gated, accept its terms on .*hf auth login"),
    ):
        hub(folder, monkeypatch, error=error)
        with pytest.raises(ValueError, match=message) as refused:
            load_model("meta-llama/Llama-3.2-1B")
        assert "\n" not in str(refused.value)


def test_the_hub_s_cache_alone_will_do_and_offline_one_line_says_what_is_missing(folder, tmp_path):
    """The cache as huggingface_hub lays it out, shards and all, and no network."""
    cache = tmp_path / "hub" / "models--someone--little-llama"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots").mkdir()
    shutil.move(folder, cache / "snapshots" / ("0" * 40))
    (cache / "snapshots" / ("0" * 40) / "tokenizer.json").write_text("{}")
    code = "from checkpoint import load_model; m = load_model({!r}); print(m.name, m.config.n_kv_head)"
    offline = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code.format("someone/little-llama")]
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert done.stdout.split() == ["someone/little-llama", "2"], done.stderr
    done = subprocess.run(
        [sys.executable, "sample.py", "--model", "meta-llama/Llama-3.2-1B", "--prompt", "a"],
        capture_output=True,
        text=True,
        env=offline,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cannot fetch config.json of meta-llama/Llama-3.2-1B" in done.stderr and "tokenizer.json" in done.stderr


# ---------------------------------------------------------------- tokenizers


def byte_level():
    """A tokenizer as SmolLM2 and Qwen have it: byte-level BPE that takes digits one by one."""
    from tokenizers import Tokenizer as File
    from tokenizers import decoders, models, pre_tokenizers, trainers

    file = File(models.BPE())
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.pre_tokenizer, file.decoder = pre_tokenizers.Sequence([digits, level]), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    file.train(["README.md"], trainer)
    return file


def sentence_piece():
    """A tokenizer as Llama 2 has it: BPE that writes spaces as U+2581, bytes as <0x00>, and <s> before a text."""
    from tokenizers import Tokenizer as File
    from tokenizers import decoders, models, normalizers, processors, trainers

    file = File(models.BPE(byte_fallback=True, unk_token="<unk>"))
    file.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    spaces = decoders.Replace("\u2581", " ")
    file.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    lines = open("README.md").read().split("\n")
    file.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    file.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return file


def saved(file, folder, eos=0):
    folder.mkdir(exist_ok=True)
    file.save(str(folder / "tokenizer.json"))
    if not (folder / "config.json").is_file():
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": eos}))
    return Tokenizer.load(folder, 1024, "bpe")


TEXTS = ["321+654=", "What is an atom ?\nAnswer:", " description\n", "\n\n two", "naïve 日本 ", "<s> <|endoftext|>", ""]


def test_a_tokenizer_json_encodes_as_transformers_does(tmp_path):
    ours = saved(byte_level(), tmp_path / "t")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "t" / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, split_special_tokens=True)
    assert len(ours.encode("2026")) == 4  # one digit a token
    assert (ours.bos, ours.eot) == ([], 0)


def test_sentencepiece_goes_on_behind_a_text_and_puts_its_token_before_one(tmp_path):
    """What stands behind other text gets no space of its own before it, as in the whole text."""
    ours = saved(sentence_piece(), tmp_path / "t", eos=[2, 7])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "t" / "tokenizer.json"))
    assert (ours.bos, ours.eot) == ([1], 2)
    for text in TEXTS[:5]:
        whole = theirs.encode("\n" + text)
        assert whole[0] == 1 and whole[3:] == ours.encode(text)
    for byte, token in (("x", "x"), (" ", "\u2581"), ("\n", "<0x0A>")):
        assert ours.encode_bytes(byte) == [theirs.convert_tokens_to_ids(token)]


@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
def test_text_comes_back_and_unknown_numbers_are_nothing(tmp_path, kind):
    ours = saved(kind(), tmp_path / "t")
    for text in TEXTS:
        for tokens in (ours.encode(text), ours.encode_bytes(text)):
            assert ours.decode([*tokens, 1023]) == text


def test_what_is_no_tokenizer_of_these_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no file .*tokenizer.json"):
        theirs_of(*SHAPE).save_pretrained(tmp_path / "base")
        Tokenizer.load(tmp_path / "base", 101)
    byte_level().save(str(tmp_path / "base" / "tokenizer.json"))
    with pytest.raises(ValueError, match="has 500 tokens, the weights have 101: fetch both again"):
        Tokenizer.load(tmp_path / "base", 101)
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json cannot be read"):
        Tokenizer.load(tmp_path / "base", 101)


# ---------------------------------------------------------------- every method, from the command line


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Checkpoint folders as --model takes them: one whose texts begin with a token, and one whose texts do not."""
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    shape = {
        "vocab_size": 1024,
        "block_size": 400,
        "n_layer": 2,
        "n_head": 4,
        "n_kv_head": 2,
        "n_embd": 24,
        "n_inner": 40,
    }
    for name, file in (("smol", byte_level()), ("llama2", sentence_piece())):
        config = LlamaConfig(**shape, head_dim=8, tied=name == "smol", bos_token=int(name == "llama2"), eos_token=2)
        save_model(Llama(config), folder / name)
        file.save(str(folder / name / "tokenizer.json"))
    return folder


NOT_TUNED = "zero-shot", "text", "few-shot", "scratch", "translator"
ON_THE_COMMAND_LINE = [name for name in prefix.METHODS if name not in NOT_TUNED]


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_every_method_tunes_and_is_read_by_sample_py(bases, tmp_path, command, name):
    model = "--model", bases / ("llama2" if len(name) % 2 else "smol")
    small = "--n-random", 4, "--examples", 32, "--epochs", 1, "--test-examples", 2, "--beside", "none"
    task = "--task", "next_letter" if name in ("ptuning", "warp") else "last_letter"
    done = command("train_task.py", *model, *task, *small, "--method", name, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["loss"][name]["loss"] and results["accuracy"][name]
    saved = tmp_path / "run" / "prefix.safetensors"
    done = command("sample.py", *model, "--prefix", saved, "--compare", "--prompt", "abc", "--max-new-tokens", 3)
    assert done.code == 0 and "base alone: " in done.out, done.err


def test_the_token_before_a_text_stands_once_before_everything(bases, tmp_path, command):
    """In front of the trigger's words, else before the question: of prompts, of the base alone, and of the best
    context. PEFT's tokenizer puts it behind rows by itself, so that the adapter need not hold it."""
    argv = ["--model", bases / "llama2", "--task", "last_letter", "--examples", 16, "--test-examples", 2]
    argv += ["--n-random", 4, "--epochs", 1]
    assert command("train_task.py", *argv, "--out", tmp_path / "a", "--beside", "lora").code == 0
    model = load_model(bases / "llama2").freeze()
    tokenizer = Tokenizer.load(bases / "llama2", 1024)
    words, _ = prefix_file.load_prefix(tmp_path / "a" / "prefix.safetensors", model, tokenizer)
    assert words.init_kwargs["trigger"][0] == 1 and words.init_kwargs["trigger"].count(1) == 1 and words.shots is None
    argv += ["--beside", "none", "--trigger", "none", "--out", tmp_path / "b"]
    assert command("train_task.py", *argv).code == 0
    random, _ = prefix_file.load_prefix(tmp_path / "b" / "prefix.safetensors", model, tokenizer)
    assert random.shots.tolist() == [[1]] and random.n_positions() == 5
    peft_io.export_peft(random, model, tmp_path / "adapter")
    argv[-1] = tmp_path / "c"
    assert command("train_task.py", *argv, "--shots", 1).code == 0
    shot, _ = prefix_file.load_prefix(tmp_path / "c" / "prefix.safetensors", model, tokenizer)
    assert shot.shots[0, 0] == 1 and shot.shots.size(1) > 5
    with pytest.raises(ValueError, match="would lose it"):
        peft_io.export_peft(shot, model, tmp_path / "other")


def test_a_run_goes_to_peft_and_its_lora_into_a_checkpoint_with_its_tokenizer(bases, tmp_path, command):
    argv = [
        "--model",
        bases / "smol",
        "--task",
        "last_letter",
        "--examples",
        16,
        "--test-examples",
        2,
        "--beside",
        "none",
    ]
    for name in ("hybrid", "lora"):
        assert command("train_task.py", *argv, "--method", name, "--out", tmp_path / name).code == 0
        done = command("peft_io.py", "export", tmp_path / name, tmp_path / f"{name}-adapter")
        assert done.code == 0, done.err
        theirs = transformers.AutoModelForCausalLM.from_pretrained(bases / "smol")
        peft.PeftModel.from_pretrained(theirs, tmp_path / f"{name}-adapter")
    assert command("peft_io.py", "merge", tmp_path / "lora", tmp_path / "merged").code == 0
    done = command("sample.py", "--model", tmp_path / "merged", "--prompt", "abc", "--max-new-tokens", 3)
    assert done.code == 0, done.err


def test_the_recipe_for_metamath_runs_to_its_end_on_rows_of_that_format(bases, tmp_path, command, monkeypatch):
    """The listing and the command of docs/bases.md, on made-up rows and a tiny base of random weights."""
    docs = open("docs/bases.md").read()
    (listing,) = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)
    (line,) = [line for line in docs.splitlines() if "gsm8k.jsonl --answer-after" in line]
    rows = [
        {"query": f"What is {i} + 1?", "response": f"{i} + 1 = {i + 1}.\nThe answer is: {i + 1}"} for i in range(24)
    ]
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(rows))
    test = [{"question": f"What is {i} * 250?", "answer": f"<<250>>\n#### {i * 250:,}"} for i in range(3, 7)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    monkeypatch.chdir(tmp_path)
    exec(listing, {})
    argv = shlex.split(line)[2:]
    argv[argv.index("--model") + 1] = bases / "llama2"
    done = command("train_task.py", *argv, "--out", "run")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    names = ["zero-shot", "text", "few-shot", "hybrid", "lora", "lora, 1 shot"]
    assert list(results["accuracy"]) == names and list(results["before"]) == names[3:]
    assert results["examples"]["hybrid"] == [20, 1]  # a fifth is held back
    assert results["answers"] is None
    assert "tuning adds to its start" in done.out
    data = tasks.load("train.jsonl", test="gsm8k.jsonl", answer_after="The answer is:")
    assert {data.final_answer(e.answer) for e in data.examples(None)} == {"750", "1000", "1250", "1500"}
    assert data.final_answer(" 750") == data.final_answer(" 750\n") == ""  # cut off, and no answer in it
