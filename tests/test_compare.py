"""compare.py on a tiny base: two methods, what they learned asked elsewhere, a stop and going on."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import compare
import prefix
from model import GPT, GPTConfig


@pytest.fixture
def args(tmp_path):
    torch.manual_seed(0)
    GPT(GPTConfig(vocab_size=1024, block_size=256, n_layer=1, n_head=2, n_embd=32)).save(tmp_path / "little")
    shutil.copy("data/nano/encoding.json", tmp_path / "little")
    return SimpleNamespace(
        model=str(tmp_path / "little"), tasks=None, seeds=2, examples=32, questions=5, jobs=2, device="cpu", sizes=[]
    )


def test_finished_runs_are_kept_and_the_rest_is_run(args, tmp_path):
    cells = [
        compare.cell(args, "word_reversal", "nothing", 1, "--method", "zero-shot"),
        compare.cell(args, "word_reversal", "rows", 24, "--method", "hybrid", then=["last_letter"]),
    ]
    results = compare.run_all(cells, args, tmp_path / "study")
    assert [[len(outs) for outs in runs] for runs in results] == [[1, 1], [2, 2]]
    one, other = results[1]
    assert one[0]["args"]["seed"] == 0 and other[0]["args"]["seed"] == 1
    assert one[0]["loss"]["hybrid"]["examples"][-1] == 32
    assert one[1]["task"] == "last_letter" and not one[1]["loss"]  # loaded, not tuned again
    kept = cells[0]["runs"][0][0] / "results.json"
    gone = cells[1]["runs"][1][1] / "results.json"
    before = kept.stat().st_mtime_ns
    gone.unlink()
    again = compare.run_all(cells, args, tmp_path / "study")
    assert kept.stat().st_mtime_ns == before and gone.exists()
    assert again[1][0][0] == one[0]

    rows = compare.summary(cells, results)
    assert list(rows[1]["accuracy"]) == ["in-distribution", "9 letters", "10 letters", "new words", "on last_letter"]
    assert rows[1]["trainable"] == one[0]["prefix"]["rows"] * 32
    text = compare.table(rows, args, "rows")
    assert "mean of 2 seeds" in text and "| rows | 24 |" in text
    for along in ("", "rows"):
        compare.plot(rows, tmp_path / "figure.png", along)
        assert (tmp_path / "figure.png").stat().st_size > 5000
        (tmp_path / "figure.png").unlink()


def test_mean_and_extremes_over_the_seeds_by_hand():
    def results(*right):
        return {
            "accuracy": {
                "hybrid": {"in-distribution": {"correct": right[0], "n": 10}, "longer": {"correct": right[1], "n": 4}}
            },
            "trainable": {"hybrid": 7},
            "seconds": {"tuning": 2.0, "measuring": 1.0},
        }

    cells = [{"task": "t", "series": "s", "x": None}]
    (row,) = compare.summary(cells, [[[results(10, 1)], [results(7, 2)], [results(4, 3)]]])
    assert row["accuracy"] == {"in-distribution": [70, 40, 100], "longer": [50, 25, 75]}
    assert (row["trainable"], row["seconds"]) == (7, 3.0)


def test_a_run_that_fails_is_named_and_the_others_are_kept(args, tmp_path):
    cells = [
        compare.cell(args, "word_reversal", "broken", None, "--method", "prompt", "--n-random", 5000),
        compare.cell(args, "word_reversal", "nothing", 1, "--method", "zero-shot"),
    ]
    args.seeds = 1
    with pytest.raises(ValueError, match="1 of 2 runs failed; .*exceed block_size 256"):
        compare.run_all(cells, args, tmp_path / "study")
    assert (cells[1]["runs"][0][0] / "results.json").exists()


@pytest.mark.parametrize("name", [n for n in compare.STUDIES if n != "size"])
def test_every_study_is_a_grid_of_commands_that_exist(args, name):
    cells = compare.STUDIES[name](args)
    assert len({tuple(c["args"]) for c in cells}) == len(cells)
    known = [*prefix.METHODS, "zero-shot", "few-shot", "scratch"]
    for c in cells:
        method = c["args"][c["args"].index("--method") + 1] if "--method" in c["args"] else "hybrid"
        assert method in known
    if name == "methods":
        assert {c["args"][c["args"].index("--method") + 1] for c in cells} == set(known)


def test_sizes_stand_at_their_number_of_parameters(args, tmp_path):
    args.sizes = [args.model]
    want = sum(p.numel() for p in GPT.load(args.model).parameters())
    assert {c["x"] for c in compare.size(args)} == {want}


def test_bad_input_is_one_line(command):
    for words, why in (
        ((), "name a study: methods"),
        (("nonsense",), "no study 'nonsense': choose from methods"),
        (("methods", "--seeds", 0), "--seeds 0: give at least 1"),
    ):
        done = command("compare.py", *words)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert why in done.err
    assert "methods   Every method on every task" in command("compare.py", "--list").out


def test_json_of_a_study_is_what_its_table_says(args, tmp_path):
    rows = [
        {"task": "t", "series": "s", "x": 10, "accuracy": {"in": [1.0, 0.0, 2.0]}, "trainable": 1234, "seconds": 5.4}
    ]
    assert json.loads(json.dumps(rows)) == rows
    assert "| s | 10 | 1.0 [0.0, 2.0] | 1,234 | 5 |" in compare.table(rows, args, "rows")
    assert "| s | 1.0 [0.0, 2.0] | 1,234 | 5 |" in compare.table(rows, args)
