"""studies.py: each study's cells are commands that exist."""

import pytest

import train_task
from prefix import METHODS
from research import measure, studies


@pytest.mark.parametrize("name", studies.STUDIES)
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
