"""Speed and memory beside PEFT + transformers, on the same weights, the same rows and the same text.

    python -m research.bench                    GPT-2's shape, random weights
    python -m research.bench --model smollm2    a base, here SmolLM2-135M
    python -m research.bench --jobs prompt --repeat 1     a look in a minute
    python -m research.bench --model nano-2 --busy 1      what a busy core costs

Each side runs in a process of its own, so that its peak memory is its own, and the sides take turns: one step of each,
again and again. The table shows the median [lowest, highest] of the turns. First both sides have to agree on the loss.
Numbers to quote want a machine that does nothing else.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import prefix
from files import peft as peft_files
from files.errors import UserError, run_main
from files.safe import read_tensors
from files.weights import load_model, save_model
from generate import generate
from methods.weights import Finetune
from model import GPT, GPTConfig
from run.flags import Parser, at_least, best_dtype
from run.record import peak_memory
from train_task import train_step

JOBS = ("prompt", "prefix", "finetune", "decode")  # a step of prompt tuning, ..., or greedy decoding
QUESTION, ANSWER = 10, 30  # tokens of a text


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_argument("--model", metavar="BASE", help="a base (default: GPT-2's shape, random weights)")
    p.add_argument("--rows", type=at_least(1, 900), default=50, help="virtual tokens (default %(default)s)")
    p.add_argument("--batch-size", type=at_least(1, 65536), default=32, help="texts per step (default %(default)s)")
    p.add_argument("--repeat", type=at_least(1, 1000), default=5, help="turns of each side (default %(default)s)")
    p.add_argument("--busy", type=at_least(0, 64), default=0, metavar="N", help="other processes that take a core each")
    p.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS, help="(default: all)")
    return p.parse_args(argv)


# ---------------------------------------------------------------- one side of one measurement, in its own process


def ours(w):
    """() -> loss of one step, or text of one decoding, by this project: the step is the one that trains."""
    dtype = getattr(torch, w.dtype)
    model = load_model(w.folder, w.device, dtype).freeze()
    method = Finetune(model) if w.job == "finetune" else peft_files.import_peft(w.folder / w.job, model)
    if w.job == "decode":
        with torch.no_grad():
            past = method.past(model)
        return lambda: generate(model, w.questions.tolist(), ANSWER, past)
    network, optimizers = method.network(model), method.optimizers(1e-3, dtype)
    batch = [t.to(w.device) for t in w.batch]
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
    if w.job == "decode":
        how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": ANSWER}
        questions = w.questions.to(w.device)
        ask = {"input_ids": questions, "attention_mask": torch.ones_like(questions)}
        return lambda: model.generate(**ask, **how)[:, -ANSWER:].tolist()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=0)
    batch = [t.to(w.device) for t in w.batch]
    return lambda: peft_step(model, optimizer, batch, autocast)


def check_peers():
    """Raises UserError where the libraries to compare with are not installed."""
    if not all(importlib.util.find_spec(name) for name in ("peft", "transformers")):
        raise UserError("this compares with PEFT and transformers: pip install peft transformers")


def peft_model(folder, kind, rows, dtype, device):
    """transformers' model of a folder, without dropout, behind a new prompt of PEFT's class `kind`, if it is given."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # which they read here
    import peft
    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    if kind:
        model = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=rows))
    return model.eval()


def peft_step(model, optimizer, batch, autocast=False):
    """One step of training as PEFT's users write it, on a batch (tokens, targets, answer), (B, T) each: its loss."""
    tokens, targets, answer = batch
    texts = torch.cat([tokens[:, :1], targets], 1)  # (B, T + 1)
    labels = torch.cat([torch.full_like(texts[:, :1], -100), targets.masked_fill(~answer, -100)], 1)
    with torch.autocast(texts.device.type, torch.bfloat16, enabled=autocast):
        loss = model(input_ids=texts, attention_mask=torch.ones_like(texts), labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def timed(turn, device):
    """(seconds, what turn() returns), with all that it started on the device."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    out = turn()
    wait()
    return time.perf_counter() - start, out


# ---------------------------------------------------------------- the turns


def begin(side, w):
    """Prepare this process for the turns of `ours` or `theirs`."""
    global turn
    turn = side(w)


def one_turn(device):
    """(seconds of one turn, its loss or text, peak memory of this process in GB)."""
    return *timed(turn, device), peak_memory(device)


def measure(w):
    """{side: {"seconds": of each turn, "gb": peak, "out": the first turn's}} of both sides, which take turns."""
    start = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"), begin)
    with start((ours, w)) as here, start((theirs, w)) as there:
        turns = {"ours": [], "PEFT": []}
        for _ in range(w.repeat + 1):  # the first turn warms up
            for side, process in zip(turns, (here, there)):
                turns[side].append(process.submit(one_turn, w.device).result())
    return {side: {"seconds": [s for s, *_ in t[1:]], "gb": t[-1][2], "out": t[0][1]} for side, t in turns.items()}


def keep_busy():
    """What --busy starts: a process that takes all of a core."""
    while True:
        pass


def check_agreement(job, ours, peft):
    """Both sides have to return the same loss or the same text: otherwise they do not do the same work."""
    agree = ours == peft if job == "decode" else abs(ours / peft - 1) < 1e-3
    assert agree, f"{job}: ours gives {ours}, PEFT {peft}: they do not do the same work"


def work_of(args, model, folder, job, dtype):
    """What the sides of one measurement are told: args, a batch, and a folder of PEFT's files of a random prompt."""
    prompt = (prefix.DeepPrefix if job == "prefix" else prefix.HybridPrefix)(model, n_random=args.rows)
    peft_files.export_peft(prompt, model, Path(folder) / job)
    size, rng = (args.batch_size, QUESTION + ANSWER), torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, size, generator=rng)
    answer = torch.arange(1, size[1]).expand(size[0], -1) >= QUESTION  # True where the target is in the answer
    texts = {"questions": tokens[:, :QUESTION], "batch": (tokens[:, :-1], tokens[:, 1:], answer)}
    return argparse.Namespace(**vars(args), **texts, folder=Path(folder), job=job, dtype=dtype)


def main(argv=None):
    args = parse_args(argv)
    check_peers()
    dtypes, results = ["float32"] + ["bfloat16"] * (best_dtype(args.device) == torch.bfloat16), []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = (load_model(args.model) if args.model else GPT(GPTConfig())).freeze()
        save_model(model, folder)
        for _ in range(args.busy):
            multiprocessing.get_context("spawn").Process(target=keep_busy, daemon=True).start()
        for job, dtype in tqdm([(job, dtype) for job in args.jobs for dtype in dtypes], unit=" measurements"):
            sides = measure(work_of(args, model, folder, job, dtype))
            if dtype == "float32":
                check_agreement(job, sides["ours"]["out"], sides["PEFT"]["out"])
            results.append((job, dtype, sides))
    print(table(results, args))


def spread(values, form):
    """The median and range of some numbers; of like ones, the number."""
    low, mid, high = (form.format(v) for v in (min(values), statistics.median(values), max(values)))
    return mid if low == high else f"{mid} [{low}, {high}]"


def table(results, args):
    """Markdown: time and peak memory of each side, and how many times as long PEFT takes."""
    base = args.model or "GPT-2's shape"
    lines = [
        f"{base}; {args.batch_size} texts of {QUESTION} + {ANSWER} tokens behind {args.rows} rows; {args.device}, "
        f"{torch.get_num_threads()} threads beside {args.busy} busy processes; "
        f"median [lowest, highest] of {args.repeat} turns.\n",
        "| | dtype | ours | PEFT | faster |\n" + "| --- " * 5 + "|",
    ]
    for job, dtype, sides in results:
        cells = [job, dtype]
        for side in sides.values():
            speed = spread(side["seconds"], "{:.3f}") + " s"
            if job == "decode":
                speed = spread([args.batch_size * ANSWER / s for s in side["seconds"]], "{:.0f}") + " tok/s"
            cells.append(f"{speed}, {side['gb']:.1f} GB")
        pairs = zip(sides["PEFT"]["seconds"], sides["ours"]["seconds"])
        lines.append(f"| {' | '.join(cells)} | {spread([slow / fast for slow, fast in pairs], '{:.1f}x')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main, "python -m research.bench")
