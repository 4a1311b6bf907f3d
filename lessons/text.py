"""What the placeholders of the lessons may call: numbers in a row, and numbers out of this project's findings."""

from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def listed(items, form=".0f"):
    """[98.0, 50.0, 2.0] -> "98, 50 and 2"; what is the same everywhere is said once."""
    texts = [item if isinstance(item, str) else f"{item:{form}}" for item in items]
    if len(set(texts)) < 2:
        return texts[0]
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def finding(page, task, row, column, before=False):
    """A number of a page of docs/results/: where a table says 0.0 > 99.0 [98.0, 100.0] the 99.0, or the start."""
    text = (RESULTS / f"{page}.md").read_text()
    table = text[text.index(f"\n**{task}**\n") :].splitlines()
    header, *rows = [line.strip("| ").split(" | ") for line in table if line.startswith("|")]
    cells = next(cells for cells in rows if cells[0] == row)
    start, _, end = cells[1 + header.index(column)].partition(" [")[0].rpartition("> ")
    return float(start if before else end)
