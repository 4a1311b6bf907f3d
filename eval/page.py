"""report.html: a run on one page that needs no network and no server.

    python -m eval.page out/addition-nano-2     # write it again, after a change of report.html.jinja

It is made from results.json and from details.json, which holds every question, what was written after it, and where
answers look.
"""

from pathlib import Path

import jinja2

from eval import plots, report
from files import schemas
from files.errors import Parser, UserError, run_main
from files.safe import write_text


def details(task, tests, written, words, before, tuned):
    """The content of details.json.

    questions  {range: [[question, true answer, length]]}
    written    {"before" or "accuracy": {contender: {range: answers}}}; an answer is None if it equals the true one,
               else [text, whether its final answer is right, the kind of error]
    attention  {"before" or "tuned": what attention_to_rows returned}
    words      what each row began as, None for random rows
    reading    how a person reads an answer

    tests: {range: examples}. written: the same as above with texts for answers.
    """

    def compared(e, text):
        right = task.final_answer(text) == task.final_answer(e.answer)
        return None if text == e.answer else [text, right, task.kind_of_error(e.answer, text)]

    return {
        "questions": {r: [[e.question, e.answer, e.length] for e in examples] for r, examples in tests.items()},
        "written": {
            when: {name: {r: [*map(compared, tests[r], of[r])] for r in of} for name, of in by_name.items()}
            for when, by_name in written.items()
        },
        "attention": {"before": before, "tuned": tuned},
        "words": words,
        "reading": task.reading,
    }


def write_page(path, results, details):
    strict = {"autoescape": True, "undefined": jinja2.StrictUndefined}  # data may hold any text
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **strict)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # ranges and contenders in their own order
    template, draw = environment.get_template("report.html.jinja"), plots.draw_run  # where the page has got to it
    write_text(path, template.render(r=results, details=details, draw=draw, red=plots.RED, report=report))


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("out", type=Path, metavar="FOLDER", help="of a run, with results.json and details.json")
    out = p.parse_args(argv).out
    read = [schemas.read_json(out / name, dict, "run it again") for name in ("results.json", "details.json")]
    try:
        write_page(out / "report.html", *read)
    except (UserError, jinja2.TemplateSyntaxError):  # it cannot be written, or is somebody's work
        raise
    except Exception as error:  # a value of another type fails wherever it is read
        raise UserError(f"{out} holds no results of this version ({error!r}): run it again") from None
    print(f"wrote {out / 'report.html'}")


if __name__ == "__main__":
    run_main(main)
