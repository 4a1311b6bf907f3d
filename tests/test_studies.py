"""studies.py: each study's cells are commands that exist, and its contexts stand where they belong."""

import pytest

import train_task
from files.weights import load_model
from prefix import METHODS
from research import measure, studies


@pytest.mark.parametrize("name", [n for n in studies.STUDIES if n != "base_size"])
def test_every_study_is_a_grid_of_commands_that_exist(study_args, name):
    study = studies.STUDIES[name]
    cells = [c for task in study.tasks for c in study(study_args, task)]
    assert len({tuple(c.line) for c in cells}) == len({(c.task, c.series, c.x) for c in cells}) == len(cells)
    parsed = [train_task.parse_args(c.line) for c in cells]
    if name == "methods":
        assert {a.method for a in parsed} | {"few-shot"} == set(METHODS) - {"translator"}  # that base has none
    if name == "capacity":  # a prompt is asked what it memorized
        assert [a.n_random for a in parsed] == [c.x for c in cells] == [1, 2, 4, 8, 16, 32]
        assert {(a.task[0], a.examples, a.test_examples, a.validation) for a in parsed} == {("memory", 256, 256, 0)}
    for program, *line in (line for c in cells for line in c.then.values()):
        assert studies.PROMPT in line and program in (train_task.__name__, measure.__name__)


def test_sizes_stand_at_their_number_of_parameters(study_args, little_base, tmp_path):
    """Two bases of one size are one point, and each size has contexts of its own."""
    one, two, deep = study_args.model[0], str(tmp_path / "two"), str(tmp_path / "deep")
    little_base(two, n_layer=1, n_embd=32)
    little_base(deep, n_layer=2, n_embd=32)
    small, large = (sum(p.numel() for p in load_model(name).parameters()) for name in (one, deep))
    study_args.sizes = [one, deep, two]
    cells = list(studies.base_size(study_args, "addition"))
    assert {(c.x, c.bases) for c in cells} == {(small, (one, two)), (large, (deep,))}
    contexts = [(c.series, c.x, c.bases) for c in studies.context_cells(study_args, cells)]
    assert contexts == [
        ("the example as text", small, (one, two)),
        ("best context", small, (one, two)),
        ("the example as text", large, (deep,)),
        ("best context", large, (deep,)),
    ]
    study_args.sizes = [one, two]
    contexts = studies.context_cells(study_args, list(studies.base_size(study_args, "addition")))
    assert {c.x for c in contexts} == {None}  # of one size: a line along the axis
