"""Files for the page: the base as one ONNX graph, and each prompt as a small file.

    python -m playground.export --run out/addition-nano-2 out/word_reversal-nano-2
    python -m playground.export --run out/mine       # adds a prompt to those that are there

The graph takes a KV cache as an input, `past_key_values`. A prompt is such a cache, so one graph serves any prompt.
"""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

import tasks
from data.tokenizer import Tokenizer
from eval.contexts import as_text
from eval.neighbors import nearest_tokens
from files import schemas
from files.errors import Parser, UserError, run_main
from files.peft import base_of
from files.prompts import load_prefix
from files.safe import replacing, write_json, write_tensors
from files.weights import fingerprint, load_model
from generate import empty_cache
from prefix import METHODS

QUESTIONS = 120  # of each range


class Step(nn.Module):
    """What the graph computes: `run` of model.py, with the caches of all layers in one tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, rows, tokens, past):
        """rows (1, R, C), then tokens (1, T), behind past (n_layer, 2, 1, n_kv_head, P, D) -> logits (1, R + T,
        vocab_size), and the cache that the next step takes as its past. R, T and P may be 0."""
        x = torch.cat([rows, self.model.wte(tokens)], 1)  # (1, R + T, C)
        hidden, cache = self.model.run(x, [tuple(pair) for pair in past])
        return self.model.logits(hidden), torch.cat([past, as_tensor(cache)], 4)


def as_tensor(cache):
    """A cache of batch 1 as (n_layer, 2, 1, n_kv_head, P, D)."""
    return torch.stack([torch.stack(pair) for pair in cache])


def export_model(model, path, half):
    """Write the graph, compressed: rows, tokens, past_key_values -> logits, present_key_values, attention_0, ...

    attention_i (1, n_head, R + T, P + R + T) are the weights of layer i: a caller asks for the outputs that it wants.
    The graph computes in float32. With `half` it stores its weights in float16, which holds nano-2's exactly to 3e-8.
    """
    example = torch.zeros(1, 3, model.config.n_embd), torch.zeros(1, 4, dtype=torch.long), empty_cache(model, 1, 5)
    auto = torch.export.Dim.AUTO
    proto = torch.onnx.export(
        Step(model),
        (*example[:2], as_tensor(example[2])),
        input_names=["rows", "tokens", "past_key_values"],
        output_names=["logits", "present_key_values"],
        dynamic_shapes=({1: auto}, {1: auto}, {4: auto}),
        dynamo=True,
        verbose=False,
    ).model_proto
    graph, softmax = proto.graph, [node.output[0] for node in proto.graph.node if node.op_type == "Softmax"]
    for i, weights in enumerate(softmax):
        graph.node.append(onnx.helper.make_node("Identity", [weights], [f"attention_{i}"]))
        graph.output.append(onnx.helper.make_tensor_value_info(f"attention_{i}", onnx.TensorProto.FLOAT, [None] * 4))
    for w in [w for w in graph.initializer if half and w.data_type == onnx.TensorProto.FLOAT and len(w.dims)]:
        graph.node.insert(0, onnx.helper.make_node("Cast", [f"{w.name}_half"], [w.name], to=onnx.TensorProto.FLOAT))
        values = onnx.numpy_helper.to_array(w).astype(np.float16)
        w.CopyFrom(onnx.numpy_helper.from_array(values, f"{w.name}_half"))
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(proto.SerializeToString(), mtime=0))


def export_prompt(run, model, base, path):
    """Write the prompt of a run, before tuning and after it: `rows` (2, P, C) at the input, of which the graph makes
    the cache; or, where they are not all that makes it, `cache` (2, n_layer, 2, 1, n_kv_head, P, D). The other one has
    P = 0. The header holds what the page shows of the prompt."""
    method, header = load_prefix(run / "prefix.safetensors", model, base)
    cache, rows, c = method.past(model), method.input_rows(), model.config
    if method.network(model) is not model or cache is None or len({keys.size(2) for keys, _ in cache}) > 1:
        raise UserError(f"{run}: --method {method.name} is no KV cache of all layers: tune another method for the page")
    if header["tokenize"] != "bytes":
        raise UserError(f"{run}: its prompt reads {header['tokenize']}, and the page bytes: tune with --tokenize bytes")
    made, words = None if rows is None else model.prefill(rows[None]), []
    if made and made[0][0].shape == cache[0][0].shape and torch.allclose(as_tensor(made), as_tensor(cache), atol=1e-4):
        tensors = {"rows": torch.stack([method.start, rows]), "cache": torch.stack([as_tensor(empty_cache(model))] * 2)}
        words = nearest_tokens(model, base, method)
    else:
        before = METHODS[method.name](model, **method.init_kwargs)
        before.shots = method.shots
        caches = torch.stack([as_tensor(before.past(model)), as_tensor(cache)])
        tensors = {"rows": torch.zeros(2, 0, c.n_embd), "cache": caches}
    task, results = tasks.load(header["task"]), schemas.read_json(run / "results.json", dict, "run it again")
    about = {key: header[key] for key in ("task", "question_format", "stop")} | {
        "name": run.name,
        "unit": task.unit,
        "stops": base.stops(header["stop"]),
        "instruction": base.bos + base.encode(task.trigger + "\n"),
        "example": base.bos + base.encode_task(as_text(task.worth_showing(task.examples(500, split="train"), 1))),
        "words": words,
        "tuned": results["in_distribution_lengths"],
        "curves": curves(results),
        "questions": questions(run, task),
    }
    write_tensors(path, tensors, {"about": json.dumps(about)})


def curves(results):
    """{contender: {length: [right, asked]}} of what a run measured, but for ranges of other words."""
    found = {}
    for when, ending in (("accuracy", ""), ("before", ", before tuning")):
        for name, by_range in results[when].items():
            lengths = [score["by_length"] for r, score in by_range.items() if r not in results["new_words"]]
            counts = {n: [a["correct"], a["n"]] for by_length in lengths for n, a in by_length.items()}
            found[results["labels"][name] + ending] = counts
    return found


def questions(run, task):
    """{length: [[question, true answer, what the network trained from scratch wrote in the run, or None]]}: tests."""
    wrote, found = {}, {}
    if (run / "details.json").exists():
        details = schemas.read_json(run / "details.json", dict, "run it again")
        for r, texts in details["written"]["accuracy"].get("scratch", {}).items():
            wrote |= {q: text[0] if text else truth for (q, truth, _), text in zip(details["questions"][r], texts)}
    for r in (r for r in task.ranges if r not in task.new_words):
        for e in task.examples(QUESTIONS, r):
            found.setdefault(e.length, []).append([e.question, e.answer, wrote.get(e.question)])
    return dict(sorted(found.items()))


@torch.no_grad()
def main(argv=None):
    p = Parser(__doc__, prog="python -m playground.export")
    p.add_argument("--run", type=Path, nargs="+", required=True, metavar="RUN", help="folders of runs with a prompt")
    p.add_argument("--out", type=Path, default=Path("out/playground"), help="the page's folder (default %(default)s)")
    p.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="of the weights' file (float16)")
    args = p.parse_args(argv)
    model = load_model(base_of(args.run[0])).freeze()
    base, path = Tokenizer.load(model.folder, model.config.vocab_size), args.out / "index.json"
    about = asdict(model.config) | {"name": model.name, "fingerprint": fingerprint(model), "dtype": args.dtype}
    about |= {"parameters": sum(p.numel() for p in model.parameters()), "bos": base.bos}
    about["cache"] = list(as_tensor(empty_cache(model)).shape)
    args.out.mkdir(parents=True, exist_ok=True)
    index = schemas.read_json(path, dict, "remove it") if path.exists() else {}
    if index.get("base") != about:
        export_model(model, args.out / "model.onnx.gz", args.dtype == "float16")
        index = {"base": about, "bytes": base.bytes, "texts": base.texts, "prompts": []}
    for run in args.run:
        export_prompt(run, model, base, args.out / f"{run.name}.safetensors")
        index["prompts"] = [name for name in index["prompts"] if name != run.name] + [run.name]
    write_json(path, index)
    print(f"wrote index.json, model.onnx.gz and {', '.join(index['prompts'])} to {args.out}")


if __name__ == "__main__":
    run_main(main, "python -m playground.export")
