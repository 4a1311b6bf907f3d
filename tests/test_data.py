"""data/: the tokenizer and batches; research/documents.py: what the base learned from has no task of ours in it."""

import json
import os
import random
import re
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tasks
from data.batches import by_length, training_batches
from data.tokenizer import Tokenizer
from files.errors import UserError
from research import documents

CACHE = Path(os.environ.get("TIKTOKEN_CACHE_DIR", Path(__file__).parent.parent.parent / "shared" / "tiktoken_cache"))


def test_digits_and_letters_are_single_tokens(tokenizer):
    assert len(tokenizer.encode("0123456789")) == 10
    assert len(tokenizer.encode("the house")) < len(tokenizer.encode_task("the house")) == 9


@given(text=st.text())
def test_nothing_is_lost(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode_task(text)) == text
    assert max(tokenizer.encode(text) + tokenizer.encode_task(text), default=0) < tokenizer.eot


ODD = [
    "   three   spaces\t\ttabs\r\n\r\n lines\n\n\n",
    "it's we'll I'd THEY'RE 31415926535897932384626433832795028841971693993751",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "\u65e5\u672c\u8a9e \u0627\u0644\u0639\u0631\u0628\u064a\u0629 na\u00efve e\u0301 \ufb01",
    "\x00\x01\x7f\u0085\u00a0\u2028\u3000\ufeff",
]


@pytest.fixture(scope="module")
def both():
    """GPT-2's encoding by tiktoken, as we use it, and by transformers, from the same two files."""
    transformers = pytest.importorskip("transformers")
    if not CACHE.is_dir():
        pytest.skip("GPT-2's vocabulary is not at hand as files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
        ours = Tokenizer.load("nowhere", 50257, tokenize="bpe")
    merges, vocabulary = sorted(CACHE.iterdir(), key=lambda file: file.stat().st_size)
    lines = [tuple(line.split(" ")) for line in merges.read_text(encoding="utf-8").split("\n")[1:] if line]
    return ours, transformers.GPT2Tokenizer(json.loads(vocabulary.read_text(encoding="utf-8")), lines)


def test_odd_strings_encode_as_in_transformers(both):
    ours, theirs = both
    for text in ODD:
        assert ours.encode_task(text) == theirs.encode(text)
        assert ours.decode(ours.encode_task(text)) == text
    assert ours.encode("Hello, world") == [15496, 11, 995] and ours.eot == 50256  # as OpenAI's encoder.py gives them
    assert ours.eot not in ours.encode_task("<|endoftext|>")  # in a text it is text
    assert Tokenizer(ours.encoding).encode_task("321+654=") != ours.encode_task("321+654=")
    whole = ours.encode("\U0001f469")
    for tokens in (whole[:-1], whole[1:], [whole[0], 65, whole[0]]):  # no UTF-8
        assert ours.decode(tokens) == theirs.decode(tokens, clean_up_tokenization_spaces=False)


@given(text=st.text())
def test_any_string_encodes_as_in_transformers(both, text):
    ours, theirs = both
    assert ours.encode_task(text) == theirs.encode(text)


def test_an_answer_ends_at_its_stop_text_wherever_tokens_end():
    nano = Tokenizer.load("data/nano-2", 1024, "bpe")
    for stop in ("\n", "$", "##", "\u4e2d"):  # inside of tokens, and over several
        holding = {t for t in range(1024) if stop in nano.decode([t])}
        assert nano.stops(stop) == [nano.eot, *sorted(holding)] and bool(holding) == (stop in "\n$")
        text = f" Hi.{stop}More{stop}"
        assert nano.cut(nano.encode(text), stop) == nano.cut(nano.encode_bytes(text), stop) == f" Hi.{stop}"
        assert nano.cut([*nano.encode("Hi."), nano.eot, *nano.encode(text)], stop) == "Hi."
    assert nano.stops("") == [nano.eot] and nano.cut(nano.encode("a$b\n"), "") == "a$b\n"


def test_a_run_of_spaces_that_overflows_tiktoken_is_refused(tokenizer):
    for text in (" " * 100_000, "\n " * 100_000):
        with pytest.raises(UserError, match="100,000 spaces or line breaks in a row"):
            tokenizer.encode("a" + text)
    assert len(tokenizer.encode("a " * 100_000)) >= 100_000


def test_without_its_vocabulary_one_line_says_where_to_put_it(monkeypatch):
    def fetch(_):
        raise ConnectionError("a paragraph")

    monkeypatch.setattr("tiktoken.get_encoding", fetch)
    with pytest.raises(UserError, match="cannot fetch GPT-2's vocabulary .* TIKTOKEN_CACHE_DIR"):
        Tokenizer.load("nowhere", 50257)


def test_a_vocabulary_nobody_knows_is_refused(tmp_path):
    with pytest.raises(UserError, match="777 tokens and no tokenizer.json"):
        Tokenizer.load(tmp_path, 777)
    with pytest.raises(UserError, match="has 1024 tokens, the weights have 777"):
        Tokenizer.load("data/nano-2", 777)
    (tmp_path / "encoding.json").write_text('{"name": ')
    with pytest.raises(UserError, match="encoding.json: Input data was truncated"):
        Tokenizer.load(tmp_path, 777)


def bytes_of(task, n, **split):
    """n examples of a task, a token for each byte."""
    examples = tasks.load(task).examples(n, **split)
    return [(list(e.question.encode()), list(e.answer.encode())) for e in examples]


def test_training_batches_hold_every_example_once_and_mark_its_answer():
    encoded, seen, places = bytes_of("addition", 4000, split="train"), [], 0
    for tokens, targets, answer in training_batches(encoded, 32, random.Random(0)):
        assert tokens.shape == targets.shape == answer.shape
        places += tokens.numel()
        for row, row_targets, row_answer in zip(tokens, targets, answer):
            first, last = row_answer.nonzero()[[0, -1], 0].tolist()
            assert row_answer[first : last + 1].all() and row_answer.sum() == last + 1 - first
            assert torch.equal(row[1 : last + 1], row_targets[:last])  # position t predicts the token at t + 1
            seen.append((row[: first + 1].tolist(), row_targets[row_answer].tolist()))
    assert sorted(seen) == sorted(encoded)
    assert sum(len(q) + len(a) - 1 for q, a in encoded) / places > 0.9  # little is padding


def test_training_batches_differ_by_epoch_repeat_by_seed_and_go_on_in_the_middle():
    encoded = bytes_of("addition", 200, split="train")
    rng, again, later = random.Random(1), random.Random(1), random.Random(1)
    one, two, one_again = (list(training_batches(encoded, 32, r)) for r in (rng, rng, again))
    assert all(torch.equal(a, b) for batch, other in zip(one, one_again) for a, b in zip(batch, other))
    assert any(a[0].shape != b[0].shape or not torch.equal(a[0], b[0]) for a, b in zip(one, two))
    assert torch.equal(next(training_batches(encoded, 32, later, skip=3))[0], one[3][0])


def test_batches_hold_every_text_once_and_no_more_than_they_may():
    lengths = [len(question) for question, _ in bytes_of("addition", 300)] + [500, 90]
    batches = list(by_length(lengths, 100))
    assert sorted(sum(batches, [])) == list(range(302)) and batches[-1] == [300]  # it alone is too long
    for rows, more in zip(batches, batches[1:]):
        assert len(rows) * max(lengths[i] for i in rows) <= 100 < (len(rows) + 1) * lengths[more[0]]


# the tasks' formats, written down a second time: what a reader of the documents would search for
HELD_OUT = {
    "addition": r"[0-9]+\+[0-9]+=([0-9]{4};)+00[01]=[0-9]",
    "addition:plain": r"[0-9]+\+[0-9]+=[0-9]+\$",
    "addition:symbolic": r"[0-9]+\+[0-9]+;([0-9]{4};)+00[01]=[0-9]",
    "last_letter": r"last\([a-z]+(,[a-z]+)+\)=[a-z]",
    "multiplication": r"[0-9]+\*[0-9]=([0-9]{4};)+00[0-9]=[0-9]",
    "next_letter": r"next\([a-z]+\)=[a-z]",
    "symbolic_sum": r"x1=[0-9]+, x2=[0-9]+[^?\n]* sum\?[0-9]",
    "symbolic_sum:sequence": r"x2=[0-9]+, \.\.\., ",
    "word_reversal": r"reverse\([a-z]+\)=[a-z]",
}


@pytest.fixture(scope="module")
def drawn():
    """[(kind, heading, examples)] of documents."""
    rng = random.Random("a test")
    return [documents.document(rng) for _ in range(4000)]


def test_no_document_contains_a_format_of_the_tasks(drawn):
    assert set(HELD_OUT) <= set(tasks.names())
    for name, pattern in HELD_OUT.items():  # the patterns do find what they are for
        questions = tasks.load(name).examples(50)
        assert sum(bool(re.search(pattern, e.question + e.answer)) for e in questions) >= 45

    def own_steps(kind, question, answer):
        """Each task's steps, made from the numbers or words of a question, in the task's order and separators."""
        numbers, words = [int(n) for n in re.findall("[0-9]+", question)], re.findall("[a-z]+", question)
        if kind == "addition" and len(numbers) == 2:
            yield tasks.load("addition").work(*numbers).removesuffix("=")
        if kind == "multiplication" and len(numbers) == 2 and numbers[1] < 10:
            a, b = numbers
            yield ";".join(f"{int(d)}{b}" for d in str(a)[::-1])  # with carry and product behind each
            carries = [a % 10**i * b // 10**i for i in range(len(str(a)))]
            columns = zip(str(a)[::-1], carries, str(a * b).zfill(len(str(a)))[::-1])
            yield ";".join(f"{d}{b}{carry}{product}" for d, carry, product in columns)
        if kind == "running sum" and len(numbers) > 1:
            yield ";".join(map(str, accumulate(numbers)))
            yield ";".join(map(str, accumulate(numbers[1::2])))  # the odd ones are the names' numbers
        if kind == "list letters" and len(words) > 1:
            yield ";".join(w[-1] for w in words)

    for kind, heading, examples in drawn:
        text = heading + documents.text(examples)
        for name, pattern in HELD_OUT.items():
            assert not re.search(pattern, text), (name, kind, text)
        assert not re.search(r"[0-9]\+[0-9]+.{0,8}\b[0-9]{4};[0-9]", text), (kind, text)
        for question, answer, _ in examples:
            for steps in own_steps(kind, question, answer):
                assert ";" not in steps or steps not in answer, (kind, question, answer)


def test_documents_never_use_the_new_words(drawn):
    # a few of them stand around questions, as in "last letter[whereof]"; letters without sense are short
    around = "letter letters values number column mirror repeat reverse capitals product compare bigger initials"
    new = {w for group in tasks.words(True).values() for w in group if len(w) >= 6} - {*around.split(), "backwards"}
    for kind, _, examples in drawn:
        assert not new & set(re.findall(r"[a-z]+", " ".join(question for question, _, _ in examples))), kind


def test_a_document_has_one_format_and_every_skill_and_mark_occurs(drawn):
    assert all(len({end for *_, end in examples}) == 1 for *_, examples in drawn)
    texts = [documents.text(examples) for *_, examples in drawn]
    assert max(map(len, texts)) <= 600 and set(documents.MARKS) <= set("".join(texts))
    assert {kind for kind, *_ in drawn} == set(documents.SKILLS)


def test_sums_in_documents_are_right(drawn):
    checked = 0
    for question, answer, _ in [e for kind, _, examples in drawn if kind == "addition" for e in examples]:
        numbers = [int(n) for n in re.findall(r"\d+", question)]
        if len(numbers) == 2:
            assert re.findall(r"\d+", answer)[-1].endswith(str(sum(numbers))), (question, answer)
            checked += 1
    assert checked > 500
