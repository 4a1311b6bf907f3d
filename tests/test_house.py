"""The source as a whole: which way imports go, what stays small, and that every operating system can import it."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

FLOORS = """
kernels < model < llama < generate < prefix < files < tasks < data < methods < eval < run < train_task < sample
< research < lessons < playground
"""
FLOOR = {name: number for number, names in enumerate(FLOORS.split("<")) for name in names.split()}

# the most lines that there may be
LINES = {
    "prefix.py": 510,
    "train_task.py": 340,
    "README.md": 130,
    "train_task.py --help": 52,
    "Python outside of tests and lessons": 8284,
}


PATHS = [path for name in FLOOR for path in (*ROOT.glob(f"{name}.py"), *ROOT.glob(f"{name}/**/*.py"))]
PATHS = [path for path in PATHS if "node_modules" not in path.parts]
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PATHS}
TREES = {module: list(ast.walk(ast.parse(path.read_text()))) for module, path in FILES.items()}


def imports(module):
    """The names of all modules that one imports anywhere in its file."""
    found = set()
    for node in TREES[module]:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):  # of a module of that package, or of a name in one
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names | {node.module}
    return found


OURS = {module: imports(module) & FILES.keys() for module in FILES}


def test_imports_go_one_way():
    """A module imports from its own floor and those before it, and no two import each other."""
    floor = {module: FLOOR[module.partition(".")[0]] for module in FILES}
    assert [f"{m} imports {other}" for m in FILES for other in OURS[m] if floor[other] > floor[m]] == []
    TopologicalSorter(OURS).prepare()  # raises CycleError, which names them


def test_prefix_imports_the_model_alone_and_tasks_no_torch():
    assert OURS["prefix"] <= {"model"}
    reached = {m for m in FILES if m.startswith("tasks")}
    while more := set().union(*(OURS[m] for m in reached)) - reached:
        reached |= more
    assert [m for m in reached if any(name.partition(".")[0] == "torch" for name in imports(m))] == []


def test_nothing_is_pickled():
    for module, nodes in TREES.items():
        assert not imports(module) & {"pickle", "dill", "joblib", "shelve", "marshal"}, module
        called = {(n.value.id, n.attr) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
        assert not called & {("torch", "save"), ("torch", "load")}, module


# what Windows does not have
WITHOUT_POSIX = """
import importlib, os, signal, sys
import filelock, huggingface_hub, matplotlib.pyplot, safetensors.torch, tiktoken, torch.distributed  # as they are there
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL"):
    delattr(signal, name)
for name in ("fork", "sysconf", "getloadavg", "getuid", "setsid", "killpg", "sched_getaffinity"):
    delattr(os, name)
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name)
"""


def test_every_module_can_be_imported_without_what_is_posix_only():
    modules = [m for m in FILES if not m.rpartition(".")[2][0].isdigit()]  # lessons are programs
    command = [sys.executable, "-c", WITHOUT_POSIX, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == modules


@pytest.mark.parametrize("what", LINES)
def test_what_is_small_stays_small(what, command):
    if what.endswith("--help"):
        n = command("train_task.py", "--help").out.count("\n")
    elif what.startswith("Python"):
        n = sum(len(path.read_text().splitlines()) for m, path in FILES.items() if not m.startswith("lessons"))
    else:
        n = len((ROOT / what).read_text().splitlines())
    assert n <= LINES[what]
