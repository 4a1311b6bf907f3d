"""studies.py: each study's cells are commands that exist, and its contexts stand where they belong."""

import pytest

import prefix
import train_task
from files.weights import load_model
from research import compare, studies


@pytest.mark.parametrize("name", [n for n in studies.STUDIES if n != "base_size"])
def test_every_study_is_a_grid_of_commands_that_exist(study_args, name):
    cells = studies.STUDIES[name](study_args)
    assert len({tuple(c["args"]) for c in cells}) == len(cells)
    for c in cells:
        train_task.parse_args(c["args"])
    if name == "methods":
        every = {c["args"][c["args"].index("--method") + 1] for c in cells} | {"few-shot"}
        assert every == set(prefix.METHODS) - {"translator"}  # that base has none


def test_sizes_stand_at_their_number_of_parameters(study_args, little_base, tmp_path):
    """Two bases of one size are one point, and each size has contexts of its own."""
    one, two, deep = study_args.model[0], str(tmp_path / "two"), str(tmp_path / "deep")
    little_base(two, n_layer=1, n_embd=32)
    little_base(deep, n_layer=2, n_embd=32)
    small, large = (sum(p.numel() for p in load_model(name).parameters()) for name in (one, deep))
    study_args.sizes = [one, deep, two]
    cells = studies.base_size(study_args)
    assert {(c["x"], *c["bases"]) for c in cells} == {(small, one, two), (large, deep)}
    contexts = studies.context_cells(study_args, cells)
    assert {(c["x"], *c["bases"]) for c in contexts} == {(small, one, two), (large, deep)}
    assert {c["series"] for c in cells} == {"hybrid", "ptuning2"} | {
        name + help for name in ("lora", "finetune") for help in ("", ", 1 shot")
    }
    study_args.sizes = [one, two]
    contexts = studies.context_cells(study_args, studies.base_size(study_args))
    assert {c["x"] for c in contexts} == {None}  # of one size: a line along the axis


def test_the_contexts_of_several_bases_stand_beside_the_cells_of_their_own(study_args):
    """Or the row of one base would be taken for that of another, and --add would keep one of them."""
    bases = (1000, ["a"]), (5000, ["b", "c"]), (5000, ["b", "c"])
    cells = [studies.cell(study_args, "addition", "rows", x, bases=names) for x, names in bases]
    contexts = studies.context_cells(study_args, cells)
    assert [(c["series"], c["x"], c["bases"]) for c in contexts] == [
        ("the example as text", 1000, ["a"]),
        ("best context", 1000, ["a"]),
        ("the example as text", 5000, ["b", "c"]),
        ("best context", 5000, ["b", "c"]),
    ]
    assert len({compare.place(c) for c in contexts}) == 4


def test_a_text_that_the_context_does_not_hold_is_left_out_of_the_study_of_distilling(study_args):
    """The base has 256 positions, and an example of word reversal some 30 to 60 tokens."""
    series = {c["series"] for c in studies.distill(study_args)}
    assert "2 examples as text" in series and "32 examples as text" not in series
    assert "32 examples distilled" in series


def test_a_prompt_is_asked_what_it_memorized(study_args):
    lines = [c["args"] for c in studies.capacity(study_args)]
    parsed = [train_task.parse_args(line) for line in lines]
    assert [a.n_random for a in parsed] == [1, 2, 4, 8, 16, 32]
    assert {(a.task[0], a.examples, a.test_examples, a.validation) for a in parsed} == {("memory", 256, 256, 0)}
