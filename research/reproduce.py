"""Run a finished run again in another folder, and print what differs. The exit code is 1 if its results do.

python -m research.reproduce out/RUN
"""

import json
import shlex
import sys
from pathlib import Path

import train_task
from files import schemas
from files.errors import Parser, UserError, run_main
from run import record


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("run", help="the folder of a run of train_task.py")
    p.add_argument("--out", help="folder of the new run (default RUN-again)")
    args = p.parse_args(argv)
    path, out = Path(args.run) / "results.json", Path(args.out or f"{args.run.rstrip('/')}-again")
    before = schemas.read_json(path, dict, "name the folder of a run")
    try:
        command = shlex.split(schemas.decode(before, schemas.RecordedRun, path, "name another run")["command"])
    except ValueError:  # a quotation mark without another
        command = []
    if command[:2] != ["python", "train_task.py"]:
        raise UserError(f"{path} holds no command of train_task.py: name another run")
    again = [word for word in command[2:] if word not in ("--resume", "--overwrite")]
    train_task.main([*again, "--out", str(out)])
    lines = record.differences(before, json.loads((out / "results.json").read_text()))
    print("\n".join(["", f"{args.run} and {out} differ:", *lines] if lines else ["", f"{out}: the same results"]))
    if any(not line.startswith("record.") for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
