"""Speed and memory beside PEFT + transformers, on the same weights, the same rows and the same text.

    python bench.py                        one table for GPT-2's shape, random weights
    python bench.py --arch llama           the same for SmolLM2-135M's shape
    python bench.py --sweep --plot b.png   also over prompt lengths and batch sizes, and a plot of the first
    python bench.py --runs 3               everything three times over, for numbers to quote
    python bench.py --n-layer 2 --n-embd 128 --vocab-size 1000 --repeat 1     a look in a minute

Each side runs in a process of its own, so that its peak memory is its own, and the sides take turns: one step of each,
again and again. The median [lowest, highest] of the turns is shown; with --runs, of the runs' medians. First both sides
have to agree on the loss. Numbers to quote want a machine that does nothing else: the load at the start is shown.
Peers that are not installed are left out: pip install -r requirements-dev.txt.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

import prefix
from files import peft as peft_io
from files import schemas
from files.errors import UserError, run_main
from files.safe import read_tensors, write_json
from files.weights import load_model, save_model
from generate import generate
from llama import Llama, LlamaConfig
from model import GPT, GPTConfig
from run.flags import Parser, at_least, best_dtype, check_memory
from train_task import train_step

JOBS = {
    "prompt": "prompt tuning, a step",
    "checkpoint": "same, checkpointed",
    "prefix": "prefix-tuning, a step",
    "finetune": "fine-tuning, a step",
    "decode": "greedy decoding",
}


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_argument("--arch", choices=["gpt2", "llama"], default="gpt2", help="of the model (default %(default)s)")
    p.add_argument("--n-layer", type=at_least(1, 1000), help="of the model (default 12, llama 30)")
    p.add_argument("--n-embd", type=at_least(64, 65536), help="64 for each head (default 768, llama 576)")
    p.add_argument("--vocab-size", type=at_least(2), help="of the model (default 50257, llama 49152)")
    p.add_argument("--rows", type=at_least(1, 100_000), default=50, help="virtual tokens (default %(default)s)")
    p.add_argument("--batch-size", type=at_least(1, 65536), default=32, help="texts per step (default %(default)s)")
    p.add_argument("--question", type=at_least(1, 100_000), default=10, help="tokens of it (default %(default)s)")
    p.add_argument("--answer", type=at_least(2, 100_000), default=30, help="tokens of it (default %(default)s)")
    p.add_argument("--repeat", type=at_least(1, 1000), default=5, help="turns of each side (default %(default)s)")
    p.add_argument("--runs", type=at_least(1, 100), default=1, help="of all this, in new processes (default 1)")
    p.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS), help="(default: all)")
    p.add_argument("--sweep", action="store_true", help="prompt tuning over prompt lengths and batch sizes as well")
    p.add_argument("--plot", metavar="FILE", help="with --sweep: cost against prompt length, a PNG")
    p.add_argument("--json", metavar="FILE", help="write the numbers")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    default = LlamaConfig() if args.arch == "llama" else GPTConfig()
    for name in ("n_layer", "n_embd", "vocab_size"):
        setattr(args, name, getattr(args, name) or getattr(default, name))
    n = (args.vocab_size + 1024 + 12 * args.n_layer * args.n_embd) * args.n_embd  # parameters, about
    check_memory(8 * n, f"a model of {n:,} parameters on each side")
    for file in filter(None, (args.plot, args.json)):
        if not Path(file).absolute().parent.is_dir():
            raise UserError(f"no folder for {file}: make it first")
    return args


def shape(w):
    """The model's configuration, with 64 columns a head; a Llama has SmolLM2's proportions."""
    block_size, n_head = max(1024, max(w["rows"], 200) + w["question"] + w["answer"]), w["n_embd"] // 64
    if w["arch"] == "gpt2":
        return GPTConfig(w["vocab_size"], block_size, w["n_layer"], n_head, w["n_embd"])
    n_kv_head, n_inner = n_head // 3 if n_head % 3 == 0 else n_head, w["n_embd"] * 8 // 3
    return LlamaConfig(w["vocab_size"], block_size, w["n_layer"], n_head, n_kv_head, w["n_embd"], 64, n_inner)


# ---------------------------------------------------------------- one side of one measurement, in its own process


def some_text(w):
    rng = torch.Generator().manual_seed(0)
    return torch.randint(w["vocab_size"], (w["batch_size"], w["question"] + w["answer"]), generator=rng).to(w["device"])


def ours(w):
    """() -> loss or text of one step or one decoding, by this project: the step is the one that trains."""
    dtype = getattr(torch, w["dtype"])
    model = load_model(w["folder"], w["device"], dtype).freeze()
    model.checkpoint_activations = w["job"] == "checkpoint"
    tokens, Q = some_text(w), w["question"]
    if w["job"] == "finetune":
        method = prefix.Finetune(model)
    else:
        method = peft_io.import_peft(Path(w["folder"]) / w["adapter"], model)
    if w["job"] == "decode":
        with torch.no_grad():
            past = method.past(model)
        questions = tokens[:, :Q].tolist()
        return lambda: generate(model, questions, w["answer"], past)
    network, optimizers = method.network(model), method.optimizers(1e-3, dtype)
    answer = torch.zeros_like(tokens[:, 1:], dtype=torch.bool)  # (B, T-1)
    answer[:, Q - 1 :] = True
    batch = tokens[:, :-1], tokens[:, 1:], answer
    return lambda: train_step(method, network, batch, optimizers, dtype).item()


def theirs(w):
    """The same by transformers and, but for decoding without a prompt, PEFT, which does not checkpoint activations
    behind a prefix: it is shown without."""
    autocast = w["dtype"] == "bfloat16" and w["job"] != "decode"
    dtype = torch.bfloat16 if w["dtype"] == "bfloat16" and not autocast else torch.float32
    kind = {"finetune": None, "prefix": "PrefixTuningConfig"}.get(w["job"], "PromptTuningConfig")
    model = peft_model(w["folder"], kind, w["rows"], dtype, w["device"])
    if kind:  # peft loads a prompt for inference only: a new one is given our rows
        _, tensors = read_tensors(Path(w["folder"]) / w["adapter"] / "adapter_model.safetensors")
        model.prompt_encoder.default.embedding.weight.data.copy_(tensors["prompt_embeddings"])
    tokens, Q = some_text(w), w["question"]
    if w["job"] == "decode":
        how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": w["answer"]}
        ask = {"input_ids": tokens[:, :Q], "attention_mask": torch.ones_like(tokens[:, :Q])}
        return lambda: model.generate(**ask, **how)[:, -w["answer"] :].tolist()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=0)
    labels = tokens.clone()
    labels[:, :Q] = -100
    return lambda: peft_step(model, optimizer, tokens, labels, autocast)


def peft_model(folder, kind, rows, dtype, device):
    """transformers' model of a folder, without dropout, behind a new prompt of PEFT's class `kind`, if it is given."""
    import peft
    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    if kind:
        model = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=rows))
    return model.eval()


def peft_step(model, optimizer, tokens, labels, autocast=False):
    """One step of training as PEFT's users write it; labels (B, T) are -100 outside the answers. Returns the loss."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
        loss = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def without_a_cache(w):
    """Greedy decoding as nanoGPT does it: the whole text again for every token."""
    model = load_model(w["folder"], w["device"], getattr(torch, w["dtype"])).freeze()
    tokens, Q = some_text(w), w["question"]
    with torch.no_grad():
        past = peft_io.import_peft(Path(w["folder"]) / w["adapter"], model).past(model)
    return lambda: model.generate(tokens[:, :Q], w["answer"], past).tolist()


def matmul_lower_bound(w):
    """The matrix products of one step or decoding, and nothing else: what the machine would need for them alone."""
    dtype, C, V, L = getattr(torch, w["dtype"]), w["n_embd"], w["vocab_size"], w["n_layer"]
    B, Q, A, P = w["batch_size"], w["question"], w["answer"], w["rows"]
    D, matrices = 64, [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)]  # of a block: (n_in, n_out)
    if w["arch"] == "llama":
        n_kv_head, n_inner = shape(w).n_kv_head, shape(w).n_inner
        matrices = [(C, C + 2 * n_kv_head * D), (C, C), (C, 2 * n_inner), (n_inner, C)]
    passes = []  # (sequences, positions of each, positions attended to, rows of logits, backward passes)
    if w["job"] == "decode":
        passes += [(B, Q, P + Q, B, 0)] + [(B, 1, P + Q + i, B, 0) for i in range(1, A)]
    else:
        T, own = Q + A - 1, w["job"] == "finetune"
        passes.append((B, T, T if own else P + T, B * A, 2 if own else 1))
        if w["job"] in ("prompt", "checkpoint"):  # its rows go through the network as well, once
            passes.append((1, P, P, 0, 1))
    pairs = []  # (a, b, how often)
    for n, T, S, logits, backward in passes:
        for n_in, n_out in matrices:
            pairs.append((torch.randn(n * T, n_in), torch.randn(n_in, n_out), L * (1 + backward)))
        if logits:
            pairs.append((torch.randn(logits, C), torch.randn(C, V), 1 + backward))
        heads, times = n * (C // D), L * (1 + 2 * bool(backward))
        pairs.append((torch.randn(heads, T, D), torch.randn(heads, D, S), times))
        pairs.append((torch.randn(heads, T, S), torch.randn(heads, S, D), times))
    pairs = [(a.to(w["device"], dtype), b.to(w["device"], dtype), times) for a, b, times in pairs]

    def multiply():
        for a, b, times in pairs:
            for _ in range(times):
                a @ b
        return 0.0

    return multiply


SIDES = {"ours": ours, "PEFT": theirs, "no cache": without_a_cache, "products alone": matmul_lower_bound}


def timed(turn, device):
    """(seconds, what turn() gives), with all that it started on the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = turn()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def work(w):
    """Answer every line on stdin with one turn: seconds, what came out, peak memory in GB; null if memory ran out."""
    turn = SIDES[w["side"]](w)
    if w["device"] == "cpu":  # or the system would end some process of its choice
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * free), resource.RLIM_INFINITY))
    print("ready", flush=True)
    for _ in sys.stdin:
        try:
            seconds, out = timed(turn, w["device"])
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error):
                raise
            print("null", flush=True)
            continue
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if w["device"] == "cuda":
            peak = torch.cuda.max_memory_allocated()
        print(json.dumps([seconds, out, peak / 1e9]), flush=True)


# ---------------------------------------------------------------- the turns


def measure(w, sides, repeat, bar):
    """{side: {"turns": seconds of each, "gb": peak, "out": what came out first}} of sides that take turns; a side
    that the machine's memory does not hold is left out."""
    workers = {}
    try:
        for side in sides:
            command = [sys.executable, "-m", "research.bench", "--worker", json.dumps(w | {"side": side})]
            workers[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if workers[side].stdout.readline() != "ready\n":
                raise UserError(f"{side} could not start: its own message is above")
        turns = {side: [] for side in sides}
        for _ in range(repeat + 1):  # the first is to warm up
            for side, worker in workers.items():
                if turns[side] is None:
                    continue
                try:
                    worker.stdin.write("go\n")
                    worker.stdin.flush()
                except BrokenPipeError:
                    pass  # it has ended: the next line is empty
                line = worker.stdout.readline()
                if not line:
                    raise UserError(f"{side} broke off: its own message is above")
                if (turn := json.loads(line)) is None:
                    turns[side] = None
                    worker.kill()
                    bar.write(f"{w['job']}, {w['rows']} rows, batch {w['batch_size']}: {side} ran out of memory")
                    continue
                turns[side].append(turn)
                bar.set_postfix_str(f"{w['job']} {w['dtype']} {side} {turn[0]:.2f} s")
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return {
        side: {"turns": [seconds for seconds, *_ in some[1:]], "gb": some[-1][2], "out": some[0][1]}
        for side, some in turns.items()
        if some
    }


def one_work(args, model, folder, job, dtype, rows, batch):
    """What the sides of one measurement are told. A prompt for it is written into the folder, as PEFT's files."""
    deep = job == "prefix"
    adapter = f"{'prefix' if deep else 'prompt'}-{rows}"
    prompt = (prefix.DeepPrefix if deep else prefix.HybridPrefix)(model, rows)
    peft_io.export_peft(prompt, model, Path(folder) / adapter)
    w = vars(args) | {"folder": str(folder), "adapter": adapter, "job": job, "dtype": dtype, "rows": rows}
    return w | {"batch_size": batch, "worker": None}


def main(argv=None):
    args = parse_args(argv)
    if args.worker is not None:
        work(schemas.decode(args.worker, schemas.BenchWork, "--worker", "bench.py alone calls itself with it"))
        return
    peers = all(importlib.util.find_spec(name) for name in ("peft", "transformers"))
    if not peers:
        print(
            "peft and transformers are not installed, so this measures ours alone: pip install -r requirements-dev.txt"
        )
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    dtypes = ["float32"] + ["bfloat16"] * (best_dtype(args.device) == torch.bfloat16)
    points = [(job, dtype, args.rows, args.batch_size) for job in args.jobs for dtype in dtypes]
    if args.sweep:
        points += [("prompt", dtypes[-1], rows, args.batch_size) for rows in (10, 50, 100, 200)]
        points += [("prompt", dtypes[-1], args.rows, batch) for batch in (1, 8, 32, 128)]
        points = list(dict.fromkeys(points))
    results = {point: dict(zip(("job", "dtype", "rows", "batch"), point)) | {"sides": {}} for point in points}
    bar, load = tqdm(total=args.runs * len(points), unit=" measurements"), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = (Llama if args.arch == "llama" else GPT)(shape(vars(args))).freeze()
        save_model(model, folder)
        for job, dtype, rows, batch in points * args.runs:
            w = one_work(args, model, folder, job, dtype, rows, batch)
            sides = ["ours", "products alone"] + ["PEFT"] * peers + ["no cache"] * (job == "decode")
            measured = measure(w, sides, args.repeat, bar)
            check_agreement(job, dtype, {name: side["out"] for name, side in measured.items()})
            known = results[job, dtype, rows, batch]["sides"]
            for name, side in measured.items():
                known.setdefault(name, {"runs": []})["runs"].append(side["turns"])
                known[name]["gb"] = side["gb"]
            bar.update()
            complete = [r for r in results.values() if "ours" in r["sides"]]
            if args.json:
                write_json(args.json, {"load": load, "measurements": complete})
    bar.close()
    print(table(complete, args, load))
    if args.plot:
        plot(complete, args)


def check_agreement(job, dtype, out):
    """Raises UserError where our side and PEFT give another loss or another text: they would not do the same work."""
    if dtype != "float32" or not {"ours", "PEFT"} <= out.keys():
        return
    ours, peft = out["ours"], out["PEFT"]
    if ours != peft if job == "decode" else abs(ours / peft - 1) >= 1e-3:
        raise UserError(f"{job}: ours gives {ours}, PEFT {peft}: they do not do the same work")


def seconds(r, name):
    """Of one run, the seconds of each turn of a side; of several, the median of each."""
    runs = r["sides"][name]["runs"]
    return runs[0] if len(runs) == 1 else [statistics.median(turns) for turns in runs]


def spread(values, form):
    """The median and range of some numbers; of like ones, the number."""
    low, mid, high = (form.format(v) for v in (min(values), statistics.median(values), max(values)))
    return mid if low == high else f"{mid} [{low}, {high}]"


def ratio(slow, fast):
    """How many times as long one side takes, turn by turn or run by run."""
    return spread([s / f for s, f in zip(slow, fast)], "{:.1f}x")


def table(results, args, load):
    """Markdown: time and peak memory of each side, how much faster ours is, and the share of our time that the matrix
    products alone take; then ours in its best dtype against PEFT in both."""
    name, over = "Llama" if args.arch == "llama" else "GPT-2", f"{args.repeat} turns" if args.repeat > 1 else "1 turn"
    over = over if args.runs == 1 else f"the medians of {over} in {args.runs} runs"
    lines = [
        f"{name} of {args.n_layer} layers, {args.n_embd} wide, {args.vocab_size} words, random weights; {args.question}"
        f" + {args.answer} tokens of question and answer; {args.device}, {torch.get_num_threads()} threads, load "
        f"{load:.1f} at the start; median [lowest, highest] of {over}.",
        "",
        "| | dtype | rows | batch | ours | PEFT | faster | no cache | bound |",
        "| --- " * 9 + "|",
    ]
    for r in results:
        cells = []
        for side in ("ours", "PEFT", "no cache"):
            shown = ""
            if side in r["sides"]:
                shown = spread(seconds(r, side), "{:.3f}") + " s"
                if r["job"] == "decode":
                    shown = spread([r["batch"] * args.answer / s for s in seconds(r, side)], "{:.0f}") + " tok/s"
                shown += f", {r['sides'][side]['gb']:.1f} GB"
            cells.append(shown)
        faster = ratio(seconds(r, "PEFT"), seconds(r, "ours")) if "PEFT" in r["sides"] else ""
        bound = statistics.median(seconds(r, "products alone")) / statistics.median(seconds(r, "ours"))
        head = [JOBS[r["job"]], r["dtype"], str(r["rows"]), str(r["batch"])]
        lines.append(f"| {' | '.join([*head, *cells[:2], faster, cells[2], f'{bound:.0%}'])} |")
    usual = [r for r in results if "PEFT" in r["sides"] and (r["rows"], r["batch"]) == (args.rows, args.batch_size)]
    best = {r["job"]: r for r in usual}  # in bfloat16 where that was measured, since it comes second
    if usual:
        lines += ["", "| faster than PEFT | PEFT's dtype | ours, dtype | memory |", "| --- " * 4 + "|"]
    for r in usual:
        ours, peft = best[r["job"]], r["sides"]["PEFT"]
        share, faster = ours["sides"]["ours"]["gb"] / peft["gb"], ratio(seconds(r, "PEFT"), seconds(ours, "ours"))
        lines.append(f"| {JOBS[r['job']]} | {r['dtype']} | {faster}, {ours['dtype']} | {share:.0%} |")
    return "\n".join(lines)


def plot(results, args):
    """Seconds of a prompt-tuning step against the number of virtual tokens, of both sides."""
    from eval.plots import finish, plt  # imported here, so that --help need not wait for matplotlib

    fig, axis = plt.subplots(figsize=(7.2, 4.2), constrained_layout=True)
    some = [r for r in results if r["job"] == "prompt" and r["batch"] == args.batch_size]
    for dtype in sorted({r["dtype"] for r in some}):
        for side, style in (("ours", "-"), ("PEFT", "--")):
            same = [r for r in some if r["dtype"] == dtype and side in r["sides"]]
            points = {r["rows"]: statistics.median(seconds(r, side)) for r in same}
            if len(points) > 1:
                axis.plot(*zip(*sorted(points.items())), style, marker="o", ms=4, label=f"{side}, {dtype}")
    title = f"prompt tuning, batch {args.batch_size}"
    axis.set(xlabel="virtual tokens", ylabel="seconds a step", ylim=(0, None), title=title)
    finish(fig, axis, args.plot)


if __name__ == "__main__":
    run_main(main, "bench.py")
