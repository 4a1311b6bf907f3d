"""Speed and memory beside PEFT + transformers, on the same weights, the same rows and the same text.

    python -m research.bench                    GPT-2's shape, random weights
    python -m research.bench --arch llama       SmolLM2-135M's shape
    python -m research.bench --n-layer 2 --n-embd 128 --vocab-size 1000 --repeat 1     a look in a minute

Each side runs in a process of its own, so that its peak memory is its own, and the sides take turns: one step of each,
again and again. The table shows the median [lowest, highest] of the turns. First both sides have to agree on the loss.
Numbers to quote want a machine that does nothing else.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import prefix
from files import peft as peft_files
from files.errors import UserError, run_main
from files.safe import read_tensors, write_json
from files.weights import load_model, save_model
from generate import generate
from llama import Llama, LlamaConfig
from methods.weights import Finetune
from model import GPT, GPTConfig
from run.flags import Parser, at_least, best_dtype
from train_task import train_step

JOBS = ("prompt", "prefix", "finetune", "decode")  # a step of prompt tuning, ..., or greedy decoding


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
    p.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS, help="(default: all)")
    p.add_argument("--json", metavar="FILE", help="write the numbers")
    args = p.parse_args(argv)
    default = LlamaConfig() if args.arch == "llama" else GPTConfig()
    for name in ("n_layer", "n_embd", "vocab_size"):
        setattr(args, name, getattr(args, name) or getattr(default, name))
    return args


def shape(w):
    """The model's configuration, with 64 columns a head; a Llama has SmolLM2's proportions."""
    block_size, n_head = max(1024, w.rows + w.question + w.answer), w.n_embd // 64
    if w.arch == "gpt2":
        return GPTConfig(w.vocab_size, block_size, w.n_layer, n_head, w.n_embd)
    n_kv_head = n_head // 3 if n_head % 3 == 0 else n_head
    return LlamaConfig(w.vocab_size, block_size, w.n_layer, n_head, n_kv_head, w.n_embd, 64, w.n_embd * 8 // 3)


# ---------------------------------------------------------------- one side of one measurement, in its own process


def ours(w):
    """() -> loss of one step, or text of one decoding, by this project: the step is the one that trains."""
    dtype = getattr(torch, w.dtype)
    model = load_model(w.folder, w.device, dtype).freeze()
    tokens, Q = w.tokens.to(w.device), w.question
    method = Finetune(model) if w.job == "finetune" else peft_files.import_peft(w.folder / w.job, model)
    if w.job == "decode":
        with torch.no_grad():
            past = method.past(model)
        return lambda: generate(model, tokens[:, :Q].tolist(), w.answer, past)
    network, optimizers = method.network(model), method.optimizers(1e-3, dtype)
    answer = torch.zeros_like(tokens[:, 1:], dtype=torch.bool)  # (B, T-1)
    answer[:, Q - 1 :] = True
    batch = tokens[:, :-1], tokens[:, 1:], answer
    return lambda: train_step(method, network, batch, optimizers, dtype).item()


def theirs(w):
    """The same by transformers and PEFT."""
    autocast = w.dtype == "bfloat16" and w.job != "decode"
    dtype = torch.bfloat16 if w.dtype == "bfloat16" and not autocast else torch.float32
    kind = {"finetune": None, "prefix": "PrefixTuningConfig"}.get(w.job, "PromptTuningConfig")
    model = peft_model(w.folder, kind, w.rows, dtype, w.device)
    if kind:  # PEFT loads a prompt for inference only: a new one is given our rows
        _, tensors = read_tensors(w.folder / w.job / "adapter_model.safetensors")
        model.prompt_encoder.default.embedding.weight.data.copy_(tensors["prompt_embeddings"])
    tokens, Q = w.tokens.to(w.device), w.question
    if w.job == "decode":
        how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": w.answer}
        ask = {"input_ids": tokens[:, :Q], "attention_mask": torch.ones_like(tokens[:, :Q])}
        return lambda: model.generate(**ask, **how)[:, -w.answer :].tolist()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=0)
    labels = tokens.clone()
    labels[:, :Q] = -100
    return lambda: peft_step(model, optimizer, tokens, labels, autocast)


def check_peers(*libraries):
    """Raises UserError where the libraries to compare with are not installed."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"this compares with {' and '.join(missing)}: pip install {' '.join(missing)}")


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


def products_alone(w):
    """The matrix products of one step or decoding, and nothing else: the time that the machine needs for them alone."""
    matrices = [p.shape for p in load_model(w.folder).h[0].parameters() if p.dim() == 2]  # of a block: (n_out, n_in)
    B, Q, A, P, C, D, L, own = w.batch_size, w.question, w.answer, w.rows, w.n_embd, 64, w.n_layer, w.job == "finetune"
    T = Q + A - 1
    # (sequences, positions of each, positions attended to, rows of logits, backward passes)
    passes = [(B, T, T if own else P + T, B * A, 2 if own else 1)]
    if w.job == "decode":
        passes = [(B, Q, P + Q, B, 0)] + [(B, 1, P + Q + i, B, 0) for i in range(1, A)]
    elif w.job == "prompt":  # its rows go through the network as well, once
        passes.append((1, P, P, 0, 1))
    products = []  # (shape of a, shape of b, how often)
    for n, T, S, logits, backward in passes:
        heads, times = n * C // D, L * (1 + 2 * bool(backward))
        products += [((n * T, n_in), (n_in, n_out), L * (1 + backward)) for n_out, n_in in matrices]
        products += [((heads, T, D), (heads, D, S), times), ((heads, T, S), (heads, S, D), times)]
        products += [((logits, C), (C, w.vocab_size), 1 + backward)] * bool(logits)
    random = partial(torch.randn, device=w.device, dtype=getattr(torch, w.dtype))
    pairs = [(random(a), random(b), times) for a, b, times in products]

    def multiply():
        for a, b, times in pairs:
            for _ in range(times):
                a @ b
        return 0.0

    return multiply


SIDES = {"ours": ours, "PEFT": theirs, "products alone": products_alone}


def timed(turn, device):
    """(seconds, what turn() returns), with all that it started on the device."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    out = turn()
    wait()
    return time.perf_counter() - start, out


def peak_memory(device):
    """The peak memory of this process on its device in GB; 0 on Windows, which does not tell it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "win32":
        return 0.0
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def work(w, side, pipe):
    """Answer each message in a pipe with one turn of a side: seconds, what came out, peak memory in GB."""
    turn = SIDES[side](w)
    while pipe.recv():
        pipe.send((*timed(turn, w.device), peak_memory(w.device)))


# ---------------------------------------------------------------- the turns


def measure(w, sides):
    """{side: {"seconds": of each turn, "gb": peak, "out": the first turn's}} of sides that take turns."""
    context, workers, turns = multiprocessing.get_context("spawn"), {}, {side: [] for side in sides}
    try:
        for side in sides:
            here, there = context.Pipe()
            workers[side] = here, context.Process(target=work, args=(w, side, there))
            workers[side][1].start()
            there.close()  # so that its end is noticed here
        for _ in range(w.repeat + 1):  # the first turn warms up
            for side, (pipe, _) in workers.items():
                try:
                    pipe.send("go")
                    turns[side].append(pipe.recv())
                except (EOFError, OSError):
                    raise UserError(f"{w.job}, {w.dtype}: {side} broke off, its own message is above") from None
    finally:
        for _, process in workers.values():
            process.kill()
            process.join()
    return {side: {"seconds": [s for s, *_ in t[1:]], "gb": t[-1][2], "out": t[0][1]} for side, t in turns.items()}


def check_agreement(job, ours, peft):
    """Raises UserError where our side and PEFT return another loss or another text: they do not do the same work."""
    if ours != peft if job == "decode" else abs(ours / peft - 1) >= 1e-3:
        raise UserError(f"{job}: ours gives {ours}, PEFT {peft}: they do not do the same work")


def work_of(args, model, folder, job, dtype):
    """What the sides of one measurement are told: args, the texts, and a folder of PEFT's files of a random prompt."""
    prompt = (prefix.DeepPrefix if job == "prefix" else prefix.HybridPrefix)(model, n_random=args.rows)
    peft_files.export_peft(prompt, model, Path(folder) / job)
    size, rng = (args.batch_size, args.question + args.answer), torch.Generator().manual_seed(0)
    tokens = torch.randint(args.vocab_size, size, generator=rng)
    return argparse.Namespace(**vars(args), folder=Path(folder), job=job, dtype=dtype, tokens=tokens)


def main(argv=None):
    args = parse_args(argv)
    check_peers("peft", "transformers")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    dtypes, results = ["float32"] + ["bfloat16"] * (best_dtype(args.device) == torch.bfloat16), []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = (Llama if args.arch == "llama" else GPT)(shape(args)).freeze()
        save_model(model, folder)
        for job, dtype in tqdm([(job, dtype) for job in args.jobs for dtype in dtypes], unit=" measurements"):
            w = work_of(args, model, folder, job, dtype)
            measured = measure(w, SIDES)
            out = {name: side.pop("out") for name, side in measured.items()}
            if dtype == "float32":
                check_agreement(job, out["ours"], out["PEFT"])
            results.append({"job": job, "dtype": dtype, "sides": measured})
            if args.json:
                write_json(args.json, results)
    print(table(results, args))


def spread(values, form):
    """The median and range of some numbers; of like ones, the number."""
    low, mid, high = (form.format(v) for v in (min(values), statistics.median(values), max(values)))
    return mid if low == high else f"{mid} [{low}, {high}]"


def table(results, args):
    """Markdown: time and peak memory of each side, how many times as long PEFT takes, and the share of our time that
    the matrix products alone take."""
    lines = [
        f"{args.arch}, {args.n_layer} layers, {args.n_embd} wide, {args.vocab_size} words; {args.batch_size} texts of "
        f"{args.question} + {args.answer} tokens behind {args.rows} rows; {args.device}, {torch.get_num_threads()} "
        f"threads; median [lowest, highest] of {args.repeat} turns.\n",
        "| | dtype | ours | PEFT | faster | bound |\n" + "| --- " * 6 + "|",
    ]
    for r in results:
        cells, (ours, peft, products) = [r["job"], r["dtype"]], (r["sides"][name]["seconds"] for name in SIDES)
        for seconds, side in (ours, "ours"), (peft, "PEFT"):
            speed, unit = spread(seconds, "{:.3f}"), "s"
            if r["job"] == "decode":
                speed, unit = spread([args.batch_size * args.answer / s for s in seconds], "{:.0f}"), "tok/s"
            cells.append(f"{speed} {unit}, {r['sides'][side]['gb']:.1f} GB")
        cells.append(spread([slow / fast for slow, fast in zip(peft, ours)], "{:.1f}x"))
        lines.append(f"| {' | '.join(cells)} | {statistics.median(products) / statistics.median(ours):.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main, "python -m research.bench")
