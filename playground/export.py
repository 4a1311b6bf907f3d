"""Files for the page: the base as one ONNX graph, and each prompt as a small file.

    python -m playground.export --run out/addition-nano-2     # beside the prompts that are there

The graph takes a KV cache as an input, `past_key_values`. A prompt is such a cache, so one graph serves any prompt.
"""

import gzip
import json
from pathlib import Path

import onnx
import torch

import tasks
from data.tokenizer import Tokenizer
from eval.contexts import as_text
from eval.neighbors import nearest_tokens
from files import schemas
from files.errors import Parser, UserError, run_main
from files.safe import replacing, write_json, write_tensors
from files.weights import fingerprint, load_model
from generate import empty_cache
from prefix import METHODS
from run.prompts import base_of, load_prefix


class Step(torch.nn.Module):
    """What the graph computes: `run` of its `model`, with the caches of all layers in one tensor."""

    def forward(self, rows, tokens, past):
        """rows (1, R, C), then tokens (1, T), behind past (n_layer, 2, 1, n_kv_head, P, D) -> logits (1, R + T,
        vocab_size), and the cache that the next step takes as its past. R, T and P may be 0."""
        x = torch.cat([rows, self.model.wte(tokens)], 1)  # (1, R + T, C)
        hidden, cache = self.model.run(x, [tuple(pair) for pair in past])
        return self.model.logits(hidden), torch.cat([past, as_tensor(cache)], 4)


def as_tensor(cache):
    """A cache of batch 1 as (n_layer, 2, 1, n_kv_head, P, D)."""
    return torch.stack([torch.stack(pair) for pair in cache])


def export_model(model, path):
    """Write the graph, compressed: rows, tokens, past_key_values -> logits, present_key_values, attention_0, ...

    attention_i (1, n_head, R + T, P + R + T) are the weights of layer i: a caller asks for the outputs that it wants.
    The graph computes in float32 and stores its weights in float16, which holds nano-2's exactly to 3e-8.
    """
    rows, tokens = torch.zeros(1, 3, model.config.n_embd), torch.zeros(1, 4, dtype=torch.long)
    past, auto, step = as_tensor(empty_cache(model, 1, 5)), torch.export.Dim.AUTO, Step()
    step.model = model
    names = {"input_names": ["rows", "tokens", "past_key_values"], "output_names": ["logits", "present_key_values"]}
    sizes = {"dynamic_shapes": ({1: auto}, {1: auto}, {4: auto}), "verbose": False}
    proto = torch.onnx.export(step.eval(), (rows, tokens, past), **names, **sizes).model_proto
    graph = proto.graph
    for i, weights in enumerate([node.output[0] for node in graph.node if node.op_type == "Softmax"]):
        graph.node.append(onnx.helper.make_node("Identity", [weights], [f"attention_{i}"]))
        graph.output.append(onnx.helper.make_tensor_value_info(f"attention_{i}", onnx.TensorProto.FLOAT, [None] * 4))
    for w in [w for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims)]:
        graph.node.insert(0, onnx.helper.make_node("Cast", [f"{w.name}_half"], [w.name], to=onnx.TensorProto.FLOAT))
        values = onnx.numpy_helper.to_array(w).astype("float16")
        w.CopyFrom(onnx.numpy_helper.from_array(values, f"{w.name}_half"))
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(proto.SerializeToString(), mtime=0))


def export_prompt(run, model, base, path):
    """Write the prompt of a run, before tuning and after it: `rows` (2, P, C) at the input, of which the graph makes
    the cache; or, where they are not all that makes it, `cache` (2, n_layer, 2, 1, n_kv_head, P, D). The other one has
    P = 0. The header holds what the page shows of the prompt."""
    method, header = load_prefix(run / "prefix.safetensors", model, base)
    cache, rows = method.past(model), method.input_rows()
    if method.network(model) is not model or cache is None:
        raise UserError(f"{run}: --method {method.name} is no KV cache: tune another method for the page")
    if header["tokenize"] != "bytes":
        raise UserError(f"{run}: its prompt reads {header['tokenize']}, and the page bytes: tune with --tokenize bytes")
    made = rows is not None and model.prefill(rows[None])
    if made and made[0][0].shape == cache[0][0].shape and torch.allclose(as_tensor(made), as_tensor(cache), atol=1e-4):
        moved, words = (rows - method.start).norm(dim=1) / method.start.norm(dim=1), nearest_tokens(model, base, method)
        tensors = {"rows": torch.stack([method.start, rows]), "cache": torch.stack([as_tensor(empty_cache(model))] * 2)}
    else:
        before, moved, words = METHODS[method.name](model, **method.init_kwargs), torch.zeros(0), []
        before.shots = method.shots
        caches = as_tensor(before.past(model)), as_tensor(cache)
        tensors = {"rows": torch.zeros(2, 0, model.config.n_embd), "cache": torch.stack(caches)}
    task, results = tasks.load(header["task"]), schemas.read_json(run / "results.json", dict, "run it again")
    example = as_text(task.worth_showing(task.examples(500, split="train"), 1))
    about = {key: header[key] for key in ("task", "question_format", "stop")} | {"unit": task.unit, "words": words}
    about |= {"stops": base.stops(header["stop"]), "moved": moved.tolist(), "spread": model.wte.weight.std().item()}
    about |= {
        "instruction": base.bos + base.encode(task.trigger + "\n"),
        "example": base.bos + base.encode_task(example),
    }
    about |= {"tuned": results["in_distribution_lengths"], "curves": curves(results), "questions": questions(run, task)}
    write_tensors(path, tensors, {"about": json.dumps(about)})


def curves(results):
    """{contender: {length: [right, asked]}} of what a run measured, but for ranges of other words."""
    found, method = {}, results["method"]
    for name, when in ((method, "accuracy"), (method, "before"), ("one-shot", "accuracy"), ("scratch", "accuracy")):
        label = results["labels"].get(name, "") + ", before tuning" * (when == "before")
        for r, score in results[when].get(name, {}).items():
            if r not in results["new_words"]:
                found.setdefault(label, {}).update({n: [a["correct"], a["n"]] for n, a in score["by_length"].items()})
    return found


def questions(run, task):
    """{length: [[question, true answer, what the network trained from scratch wrote in the run, or None]]}: tests."""
    wrote, found = {}, {}
    if (run / "details.json").exists():
        details = schemas.read_json(run / "details.json", dict, "run it again")
        for r, texts in details["written"]["accuracy"].get("scratch", {}).items():
            wrote |= {q: text[0] if text else truth for (q, truth, _), text in zip(details["questions"][r], texts)}
    for r in task.ranges:
        for e in task.examples(120, r) if r not in task.new_words else ():
            found.setdefault(e.length, []).append([e.question, e.answer, wrote.get(e.question)])
    return dict(sorted(found.items()))


@torch.no_grad()
def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--run", type=Path, nargs="+", required=True, metavar="RUN", help="folders of runs with a prompt")
    p.add_argument("--out", type=Path, default=Path("out/playground"), help="the page's folder (default %(default)s)")
    args = p.parse_args(argv)
    model = load_model(base_of(args.run[0])).freeze()
    base, path = Tokenizer.load(model.folder, model.config.vocab_size), args.out / "index.json"
    about = vars(model.config) | {"fingerprint": fingerprint(model), "bos": base.bos}
    about |= {"parameters": sum(p.numel() for p in model.parameters()), "cache": [*as_tensor(empty_cache(model)).shape]}
    args.out.mkdir(parents=True, exist_ok=True)
    index = schemas.read_json(path, dict, "remove it") if path.exists() else {}
    if index.get("base") != about:
        export_model(model, args.out / "model.onnx.gz")
        texts = [text * (t not in base.ends) for t, text in enumerate(base.texts)]
        index = {"base": about, "bytes": base.bytes, "texts": texts, "prompts": []}
    for run in args.run:
        export_prompt(run, model, base, args.out / f"{run.name}.safetensors")
        index["prompts"] = [name for name in index["prompts"] if name != run.name] + [run.name]
    write_json(path, index)
    print(f"wrote index.json, model.onnx.gz and {', '.join(index['prompts'])} to {args.out}")


if __name__ == "__main__":
    run_main(main)
