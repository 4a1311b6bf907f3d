"""What the slides are made of: slides.md with its numbers, and the figures of the notebooks. Each is the picture of a
cell whose tag begins with `figure-`.

    python -m lessons.figures out/slides
"""

import argparse
import base64
import json
from pathlib import Path

from lessons.run import FOLDER, LESSONS, fill


def figures():
    """{name: PNG} of all notebooks. Raises ValueError where a tagged cell has no picture."""
    found = {}
    for path in LESSONS:
        for cell in json.loads(path.with_suffix(".ipynb").read_text())["cells"]:
            for tag in cell["metadata"].get("tags", []):
                if tag.startswith("figure-"):
                    pictures = [o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})]
                    if not pictures:
                        raise ValueError(f"{path.stem}: no picture in {tag}, run `python -m lessons.run`")
                    found[tag.removeprefix("figure-")] = base64.b64decode(pictures[-1])
    return found


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="what is written")
    folder = p.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in figures().items():
        (folder / f"{name}.png").write_bytes(png)
    (folder / "idea.svg").write_bytes((FOLDER.parent / "docs" / "idea.svg").read_bytes())
    (folder / "slides.md").write_text(fill((FOLDER / "slides.md").read_text()))
