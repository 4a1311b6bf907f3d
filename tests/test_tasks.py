"""tasks/: every answer checked by doing the sum, or the reversal, another way."""

import csv
import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from files.errors import UserError

ALL = [name for name in tasks.names() if name != "memory"]  # which asks what it was tuned on


def added(question):
    a, b = map(int, re.findall(r"\d+", question))
    n = max(len(str(a)), len(str(b)))
    carry = [(a % 10**i + b % 10**i) // 10**i for i in range(n)]  # into column i, from the right
    columns = [f"{a // 10**i % 10}{b // 10**i % 10}{carry[i]}{(a + b) // 10**i % 10};" for i in range(n)]
    return n, f"{''.join(columns)}00{(a + b) // 10**n}={a + b}$" if a or b else "000=0$"


def multiplied(question):
    a, b = map(int, re.findall(r"\d+", question))
    n = len(str(a))
    columns = [f"{a // 10**i % 10}{b}{a % 10**i * b // 10**i}{a * b // 10**i % 10};" for i in range(n)]
    return n, f"{''.join(columns)}00{a * b // 10**n}={a * b}$" if a else "000=0$"


def summed(question):
    values = [int(v) for v in re.findall(r"=(\d+)", question)]
    assert question == ", ".join(f"x{i + 1}={v}" for i, v in enumerate(values)) + " sum?"
    totals = ";".join(str(sum(values[: i + 1])) for i in range(len(values)))
    return len(values), f"{totals}={sum(values)}$"


def summed_sequence(question):
    pattern = r"x1=(\d+), x2=(\d+), \.\.\., x(\d+)=(\d+) sum\?"
    first, second, n, last = map(int, re.fullmatch(pattern, question).groups())
    assert last == first + (n - 1) * (second - first)
    totals = [(i + 1) * (2 * first + i * (second - first)) // 2 for i in range(n)]  # Gauss
    return n, f"{';'.join(map(str, totals))}={n * (first + last) // 2}$"


def backwards(question):
    word = question.removeprefix("reverse(").removesuffix(")=")
    return len(word), "".join(word[len(word) - 1 - i] for i in range(len(word))) + "$"


def following(question):
    word, alphabet = question.removeprefix("next(").removesuffix(")="), "abcdefghijklmnopqrstuvwxyza"
    return len(word), "".join(alphabet[alphabet.index(c) + 1] for c in word) + "$"


def last_letters(question):
    words = question.removeprefix("last(").removesuffix(")=").split(",")
    letters = [re.search(r"(\w)\b", word)[1] for word in words]
    return len(words), f"{';'.join(letters)}={''.join(letters)}$"


SOLUTIONS = {  # question -> (length, answer), each found in another way than the task's
    "addition": added,
    "addition:symbolic": added,
    "addition:plain": lambda question: (added(question)[0], added(question)[1].partition("=")[2]),
    "multiplication": multiplied,
    "symbolic_sum": summed,
    "symbolic_sum:sequence": summed_sequence,
    "word_reversal": backwards,
    "next_letter": following,
    "last_letter": last_letters,
}


def test_the_study_s_own_example():
    task = tasks.load("addition")
    assert "321+654=" + task.work(321, 654) + "975$" == "321+654=1405;2507;3609;000=975$"
    assert task.work(5, 7) == "5702;001="  # the carry that is left
    assert task.work(99, 1) == "9100;9010;001="
    assert task.work(0, 0) == "000="


@pytest.mark.parametrize("name", ALL)
def test_answers_are_right(name):
    task = tasks.load(name)
    for r, (low, high) in task.ranges.items():
        for e in task.examples(300, r):
            assert (e.length, e.answer) == SOLUTIONS[name](e.question) and low <= e.length <= high


def test_memory_asks_what_it_was_tuned_on():
    task = tasks.load("memory")
    tuned = task.examples(300, split="train", seed=1)
    assert tuned == task.examples(300, split="train", seed=2) == task.examples(676)[:300]
    letters = Counter(re.fullmatch(r"([a-z])\$", e.answer)[1] for e in task.examples(676))
    names = {re.fullmatch(r"#([a-z]{2})=", e.question)[1] for e in task.examples(676)}
    # every name once; 26 letters of 26 expected each, five standard deviations around it
    assert len(names) == 676 == len(task.examples(1000)) and len(letters) == 26
    assert all(0 < n < 52 for n in letters.values())


@pytest.mark.parametrize("name", ALL)
def test_ranges_seeds_patterns_and_that_train_and_test_never_meet(name):
    task = tasks.load(name)
    (first, (_, high)), (_, one), (_, two), *_ = task.ranges.items()
    assert (first, one, two) == ("in-distribution", (high + 1, high + 1), (high + 2, high + 2)) and task.trigger
    train = task.examples(3000, split="train", seed=1)
    assert train[:50] == task.examples(50, split="train", seed=1) != task.examples(50, split="train", seed=2)
    for r in task.ranges:
        test = task.examples(1000, r)
        asked = {e.question for e in test}
        assert len(asked) == len(test) and not asked & {e.question for e in train}
        for e in test[:100]:
            assert re.search(task.pattern, e.question + e.answer) or e.answer.startswith("000=")  # 0+0 has no steps


@pytest.mark.parametrize("name", ["word_reversal", "last_letter", "next_letter"])
def test_new_words_are_new(name):
    tuned_on, new = (
        {word for e in examples for word in re.findall(r"[a-z]{3,}", e.question.split("(")[1])}
        for examples in (tasks.load(name).examples(2000, split="train"), tasks.load(name).examples(2000, "new words"))
    )
    assert not tuned_on & new


def test_the_word_list():
    everything = [w for new in (False, True) for group in tasks.words(new).values() for w in group]
    assert len(set(everything)) == len(everything) >= 5000
    assert all(re.fullmatch(r"[a-z]{3,12}", w) for w in everything)


def test_final_answers():
    task = tasks.load("addition")
    assert task.final_answer("1405;2507;3609;000=975$") == "975"
    assert task.final_answer("1405;2507;3609;000=975") == ""  # did not end
    assert task.final_answer("975$ and more=3$") == "975"
    assert task.final_answer("") == ""


MINE = """
from tasks import Task
class Mine(Task):
    ranges = {"in-distribution": (1, 2)}
variants = {'': Mine(), 'hard': Mine()}
"""


class Returns(tasks.Task):
    name, ranges = "mine", {tasks.IN_DISTRIBUTION: (1, 3)}

    def __init__(self, example):
        self.example = example


@pytest.mark.parametrize(
    "made, fault",
    [
        ("ab", "no question and answer"),
        (("", "1$"), "no question and answer"),
        ((b"q", b"1$"), "no question and answer"),
        (("q", "975"), "does not end with the first"),
        (("q", "9$75$"), "does not end with the first"),
        (("q", "9=$"), "no final answer"),
        (("q\ud800", "9$"), "no question and answer"),
    ],
)
def test_what_is_no_example_is_refused_by_name(made, fault):
    with pytest.raises(UserError, match="task mine made .*") as error:
        Returns(lambda rng, length, new_words: made).examples(3)
    assert fault in str(error.value) and str(made) in str(error.value)


def test_an_example_is_question_and_answer_whatever_stands_behind_them():
    made = Returns(lambda rng, length, new_words: tasks.Example("2", "3$", 9)).examples(3, split="train")
    assert [e[:2] for e in made] == [("2", "3$")] * 3


def test_a_task_s_own_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        Returns(lambda rng, length, new_words: 1 / 0).examples(3)


def test_a_broken_task_is_left_out_with_one_line_and_shows_its_traceback_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "FOLDER", tmp_path)
    monkeypatch.setattr(tasks, "__path__", [str(tmp_path)])
    (tmp_path / "notes.txt").write_text("no task")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "half.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "empty.py").touch()
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "in_a_list.py").write_text("from tasks import Task\nvariants = [Task]\n")
    for name in ("list", "random"):  # which tasks/__init__.py uses
        (tmp_path / f"{name}.py").write_text(MINE)
    (tmp_path / "no_range.py").write_text("from tasks import Task\nvariants = {'': Task()}\n")
    (tmp_path / "odd_range.py").write_text(MINE.replace("(1, 2)", "(1, 'x')"))
    (tmp_path / "mine.py").write_text(MINE)
    assert tasks.names() == ["mine", "mine:hard"]
    lines = capsys.readouterr().err.splitlines()
    left_out = [line.split(" is left out: ")[0] for line in lines]
    names = "empty half in_a_list leaves list no_range odd_range random"
    assert left_out == [f"tasks/{name}.py" for name in names.split()]
    assert "ModuleNotFoundError: No module named 'nothing_of_that_name'" in lines[1]
    assert "tasks/list.py hides 'list'" in lines[4] and list is type([])
    assert tasks.load("mine:hard").name == "mine:hard" and not capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        tasks.load("half")


def test_looking_at_examples_from_the_command_line(command):
    lines = command("tasks.__main__", "addition", "--n", 3).out.splitlines()
    assert len(lines) == 3
    for line in lines:
        question, worked, final = line.split("\t")
        assert eval(question[:-1]) == int(final) and worked.endswith(f"={final}$")
    assert "word_reversal\tin-distribution (3-8 letters), 9 letters" in command("tasks.__main__", "--list").out
    command("tasks.__main__", "addition:sums").refused("no task 'addition:sums': choose from addition, addition:plain")


# ---------------------------------------------------------------- your own data


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def rows_of(task):
    return {(e.question, e.answer) for split in ("train", "test") for e in task.examples(None, split=split)}


def test_the_same_rows_from_jsonl_csv_and_tsv(tmp_path):
    rows = [(f'what, "is" {i} \u00e9?', f"answer {i}") for i in range(40)]
    jsonl = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"prompt": p, "answer": a}) for p, a in rows))
    loaded = []
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with open(tmp_path / name, "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, delimiter=delimiter).writerows([("text", "label"), *rows])
        loaded.append(tasks.load(str(tmp_path / name), prompt="text", answer="label"))
    want = {(f"{p}\nAnswer:", f" {a}\n") for p, a in rows}
    for task in (tasks.load(jsonl), *loaded):
        assert rows_of(task) == want
        assert task.notes == [] and task.classes is None  # forty answers, once each
        assert all(task.final_answer(e.answer) == e.answer.strip() for e in task.examples(None))


def test_values_of_json_are_text_as_they_stand_there(tmp_path):
    values = ["true", "false", "2.50", "-0", "1e5", "12345678901234567890123", '"\\u00e9 "', "\t7 "]
    text = "".join(f'{{"prompt": "p{i}", "answer": {values[i % 8]}}}\n' for i in range(80))
    bad = "".join(f'{{"prompt": "p", "answer": {value}}}\n' for value in ("null", "[1]", "{}", '"\\ud800"', "NaN"))
    task = tasks.load(write(tmp_path / "a.jsonl", text + bad))
    assert set(task.classes) == {"true", "false", "2.50", "-0", "1e5", "12345678901234567890123", "\u00e9", "7"}
    assert "5 broken rows left out, lines 81, 82, 83, 84, 85" in task.notes[0]


def test_a_fifth_is_held_out_and_the_split_does_not_depend_on_the_order(tmp_path):
    rows = [json.dumps({"prompt": f"p{i}", "answer": "ab"[i % 2]}) for i in range(1000)]
    one = tasks.load(write(tmp_path / "one.jsonl", "\n".join(rows)))
    other = tasks.load(write(tmp_path / "other.jsonl", "\n".join(reversed(rows))))
    test, train = ({e.question for e in one.examples(None, split=s)} for s in ("test", "train"))
    assert 150 < len(test) < 250 and not test & train
    assert test == {e.question for e in other.examples(None, split="test")}
    assert one.classes == ["a", "b"]
    assert one.examples(5, seed=1) == one.examples(5, seed=1) != one.examples(5, seed=2)


def test_broken_rows_are_counted_and_named(tmp_path):
    good = [json.dumps({"prompt": f"p{i}", "answer": i}) for i in range(20)]
    bad = ["{", "[1]", '{"prompt": "p"}', '{"prompt": "p", "answer": "a\\nb"}', "", '{"prompt": " ", "answer": "a"}']
    task = tasks.load(write(tmp_path / "a.jsonl", "\n".join(good + bad)))
    assert len(rows_of(task)) == 20
    assert "5 broken rows left out, lines 21, 22, 23, 24, 26; line 21: not a JSON object" in task.notes[0]
    text = 'prompt,answer\n"two\nlines",a\n' + "".join(f"p{i},{'ab'[i % 2]}\n" for i in range(20)) + "x,y,z\n,b\n"
    task = tasks.load(write(tmp_path / "a.csv", text))
    assert len(rows_of(task)) == 21
    assert "2 broken rows left out, lines 24, 25; line 24: more fields than the header" in task.notes[0]


@pytest.mark.parametrize(
    "name, text, complaint",
    [
        ("a.jsonl", " \n\n", "it is empty"),
        ("a.csv", "prompt,answer\na,b\n", "no row is left to t"),
        ("a.csv", "text,label\na,b\n", "line 2: no 'prompt'; its columns are 'text', 'label': name two with --columns"),
        ("a.jsonl", "x\ny\n", "not one row can be used; line 1: not a JSON object"),
        ("a.tsv", "prompt\tanswer\n" + "".join(f"p{i}\tyes\n" for i in range(30)), "every answer is 'yes'"),
    ],
)
def test_useless_files_are_refused_in_one_line(tmp_path, name, text, complaint):
    with pytest.raises(UserError) as error:
        tasks.load(write(tmp_path / name, text))
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_where_every_row_is_too_long_for_the_base_none_is_left_to_use(tmp_path):
    rows = [json.dumps({"prompt": "p" * (i + 1), "answer": "ab"[i % 2]}) for i in range(30)]
    task = tasks.load(write(tmp_path / "a.jsonl", "\n".join(rows)))
    with pytest.raises(UserError, match="every row"):
        task.drop(lambda e: True)


def test_quotation_marks_of_tsv_are_text_and_of_csv_are_closed_or_refused(tmp_path):
    rows = [(f"it's {i}", "ab"[i % 2]) for i in range(40)]

    def file(name, sep, marks):
        lines = [marks.get(i, "{}").format(prompt) + sep + answer for i, (prompt, answer) in enumerate(rows)]
        return write(tmp_path / name, "\n".join([f"prompt{sep}answer", *lines]))

    for marks in {10: '"{}', 20: '"{}'}, {10: '"{}"'}, {39: '{}"'}, {0: '""{}'}:  # each line is a row
        task = tasks.load(file("a.tsv", "\t", marks))
        prompts = {question.removesuffix("\nAnswer:") for question, _ in rows_of(task)}
        assert prompts == {marks.get(i, "{}").format(prompt) for i, (prompt, _) in enumerate(rows)} and not task.notes
    for marks, line in ({10: '"{}', 20: '"{}'}, 12), ({39: '"{}'}, 41), ({5: '"{}"!'}, 7):
        with pytest.raises(UserError, match=f"a.csv, line {line}: a quotation mark opens a cell"):
            tasks.load(file("a.csv", ",", marks))
    task = tasks.load(file("a.csv", ",", {10: '"{}', 20: '{}"'}))  # which may be meant
    assert len(rows_of(task)) == 30 and "1 rows have several lines, the longest 11 up to line 22" in task.notes[0]
    for answer in ('b,"x', '"b'):  # a mark opens in another column or in the answer, and closes ten rows below
        lines = [f"{p},{answer if i == 10 else a + chr(34) if i == 20 else a}" for i, (p, a) in enumerate(rows)]
        task = tasks.load(write(tmp_path / "a.csv", "\n".join(["prompt,answer,note", *lines])))
        assert "1 rows have several lines, the longest 11 up to line 22" in task.notes[-1]


def test_a_column_that_stands_there_twice_is_refused(tmp_path):
    rows = "".join(f"p{i},a,{i % 2}\n" for i in range(30))
    with pytest.raises(UserError, match="line 2: 'answer' stands there twice"):
        tasks.load(write(tmp_path / "a.csv", "prompt,answer,answer\n" + rows))
    assert tasks.load(write(tmp_path / "a.csv", "prompt,note,answer\n" + rows)).classes == ["0", "1"]
    unnamed = "prompt,,,answer\n" + rows.replace(",a,", ",,a,")
    assert tasks.load(write(tmp_path / "a.csv", unnamed)).classes == ["0", "1"]
    good = "".join(f'{{"prompt": "p{i}", "answer": {i % 2}}}\n' for i in range(30))
    task = tasks.load(write(tmp_path / "a.jsonl", good + '{"prompt": "p", "answer": 0, "prompt": "q"}'))
    assert len(rows_of(task)) == 30 and "line 31: 'prompt' stands there twice" in task.notes[0]


def test_answers_that_only_the_test_file_has_are_no_classes_and_told(tmp_path):
    train = write(tmp_path / "train.csv", "prompt,answer\n" + "".join(f"p{i},{i % 2}.0\n" for i in range(20)))
    test = write(tmp_path / "test.csv", "prompt,answer\nx,1\ny,0\nz,1.0\n")
    task = tasks.load(train, test=test)
    assert task.classes == ["0.0", "1.0"] and task.trigger == "Answer with one of: 0.0, 1.0."
    assert "2 of 3 test answers occur nowhere among those to tune on, and count as wrong: '0', '1'" in task.notes[0]


def test_answers_are_what_the_tokenizer_writes(tmp_path, tokenizer):
    """With one that normalizes, its own words are right; where it cannot tell answers apart, that is said."""

    class Lower:
        name, decode, encode_task = "lower", staticmethod("".join), staticmethod(lambda text: list(text.lower()))

    accents = [f"{{}}Ren{e} {i}" for i in range(20) for e in ("e\u0301",)]  # two characters for one letter
    answers = {"Yes": ["Yes", "NO"], "yes": ["yes", "Yes", "no"], "names": accents}
    for name, some in answers.items():
        rows = [json.dumps({"prompt": f"p{i}", "answer": some[i % len(some)]}) for i in range(60)]
        task = tasks.load(write(tmp_path / f"{name}.jsonl", "\n".join(rows)))
        before = rows_of(task)
        task.write_with(tokenizer)
        assert rows_of(task) == before and not task.notes  # this one writes everything
        task.write_with(Lower)
        for e in task.examples(None):
            assert task.final_answer(Lower.decode(Lower.encode_task(e.answer))) == task.final_answer(e.answer)
        assert task.classes == (None if name == "names" else ["no", "yes"])
        assert any("writes some answers as others" in note for note in task.notes) == (name == "yes")
    Lower.encode_task = staticmethod(lambda text: text.split())
    with pytest.raises(UserError, match="cannot write all answers"):
        task.write_with(Lower)


ANSWER = "1405;2507;3609;000=975$"  # of 321+654=
CARRIED = "9908;9919;001=198$"  # of 99+99=


@pytest.mark.parametrize(
    "task, answer, text, kind",
    [
        ("addition", ANSWER, "7405;2507;3609;000=975$", "digit misread"),
        ("addition", ANSWER, "1405;2517;3609;000=975$", "carry wrong"),
        ("addition", CARRIED, "9908;9908;001=188$", "carry missed"),
        ("addition", ANSWER, "1405;2508;3609;000=985$", "digits added wrong"),
        ("addition", ANSWER, "1405;2507;3609;000=957$", "sum miscopied"),
        ("addition", ANSWER, "1405;2507;000=75$", "stopped early"),
        ("addition", ANSWER, "1405;2507;3609;0000;000=975$", "ran on"),
        ("addition", ANSWER, "The sum is 975$", "another format"),
        ("multiplication", "7602;4648;002=282$", "7602;4648;002=228$", "product miscopied"),
        ("multiplication", "7602;4648;002=282$", "7602;4647;002=272$", "digits multiplied wrong"),
        ("symbolic_sum", "3;8;12=12$", "3;9;13=13$", "wrong total"),
        ("symbolic_sum", "3;8;12=12$", "3;12=12$", "term left out"),
        ("symbolic_sum", "3;8;12=12$", "3; 8; 12=12$", "space added"),
        ("last_letter", "k;e;g=keg$", "k;g;g=kgg$", "wrong letter"),
        ("last_letter", "k;e;g=keg$", "k;e;g=kge$", "letters miscopied"),
        ("word_reversal", "pmal$", "pmla$", "wrong character"),
    ],
)
def test_the_kind_of_error_tells_what_went_wrong_first(task, answer, text, kind):
    assert tasks.load(task).kind_of_error(answer, text) == kind


@given(st.data(), st.sampled_from(tasks.names()))
@settings(max_examples=100, deadline=None)
def test_every_text_but_the_answer_has_a_kind_of_error(data, name):
    task = tasks.load(name)
    answer = task.examples(1, seed=data.draw(st.integers(0, 50)))[0].answer
    i = data.draw(st.integers(0, len(answer)))
    text = answer[:i] + data.draw(st.text("0123456789;=$ab", max_size=12))
    assert text == answer or task.kind_of_error(answer, text)
