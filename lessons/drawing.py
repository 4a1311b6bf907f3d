"""How the lessons' figures look: six inches wide, so that letters of 12 points can be read on a phone of 375 pixels."""

import matplotlib.pyplot as plt

RED, BLUE, GREEN, ORANGE, GRAY = "#c1272d", "#1f5fa8", "#2f7d3b", "#e08a2e", "#8a8a8a"

plt.rcParams.update(
    {
        "figure.dpi": 120,
        "figure.constrained_layout.use": True,
        "font.size": 13,
        "figure.labelsize": 13,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 13,
        "axes.titlelocation": "left",
        "legend.frameon": False,
    }
)


def letters(text):
    """The characters of a text as labels of an axis: a space and a line's end are made visible."""
    return ["␣" if c == " " else "¶" if c == "\n" else c for c in text]


def attention_map(axis, weights, rows, columns, P):
    """Draw weights (T, P + T) of one head. rows and columns: a label for each query and each key. A line separates the
    cache from the question."""
    axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.axvline(P - 0.5, color=RED, lw=1.5)
    axis.set_xticks(range(len(columns)), columns, fontsize=12)
    axis.set_yticks(range(len(rows)), rows, fontsize=12)
    axis.tick_params(length=0)


def grid(axis, numbers, rows, columns, form="{:.2f}"):
    """Draw a small table of numbers, (len(rows), len(columns)), each written into its cell. What is minus infinity is
    left white."""
    numbers = numbers.tolist()
    finite = [n for row in numbers for n in row if n > float("-inf")]
    top = max(map(abs, finite)) or 1
    axis.imshow(numbers, cmap="RdBu", vmin=-1.6 * top, vmax=1.6 * top, aspect="auto")
    for i, row in enumerate(numbers):
        for j, n in enumerate(row):
            if n > float("-inf") and form.format(n).strip("-0."):
                axis.text(j, i, form.format(n), ha="center", va="center", fontsize=12)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)


def redraw(fig, handle=None):
    """Show a figure in a notebook, in place of the one that `handle` stands for. Returns the handle. Elsewhere nothing
    happens."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    if get_ipython() is None:
        return None
    if handle is None:
        return display(fig, display_id=True)
    handle.update(fig)
    return handle
