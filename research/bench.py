"""Speed and memory beside PEFT + transformers, on the same weights, the same rows and the same text.

    python -m research.bench                    GPT-2's shape, random weights
    python -m research.bench --model smollm2    a base, here SmolLM2-135M
    python -m research.bench --jobs prompt --repeat 1     a look in a minute
    python -m research.bench --model nano-2 --busy 1      what a busy core costs

Each side runs in a process of its own, and the sides take turns: one step of each, again and again. The table shows the
median [lowest, highest] of the turns. Numbers to quote want a machine that does nothing else.
"""

import argparse
import copy
import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from tqdm import tqdm

from files.errors import UserError, run_main
from files.weights import load_model, save_model
from generate import generate
from methods.weights import Finetune
from model import GPT, GPTConfig
from prefix import DeepPrefix, HybridPrefix
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


def ours(w):
    """() -> loss of one step, or text of one decoding, by this project: the step is the one that trains."""
    dtype = getattr(torch, w.dtype)
    model = load_model(w.folder, w.device, dtype).freeze()
    # a copy, since the processes share the memory of what they are sent
    method = Finetune(model) if w.job == "finetune" else copy.deepcopy(w.prompt).to(w.device)
    if w.job == "decode":
        with torch.no_grad():
            past = method.past(model)
        return lambda: generate(model, w.questions.tolist(), ANSWER, past)
    network, optimizers = method.network(model), method.optimizers(1e-3, dtype)
    batch = [t.to(w.device) for t in w.batch]
    return lambda: train_step(method, network, batch, optimizers, dtype).item()


def theirs(w):
    """The same by transformers, without dropout, and PEFT, as their users write it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # which they read here
    import peft
    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    autocast = w.dtype == "bfloat16" and w.job != "decode"
    dtype = torch.bfloat16 if w.dtype == "bfloat16" and not autocast else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(w.folder, dtype=dtype).to(w.device)
    if w.job != "finetune":  # PEFT loads a prompt for inference only: a new one is given our rows
        kind = peft.PrefixTuningConfig if w.job == "prefix" else peft.PromptTuningConfig
        model = peft.get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=w.rows))
        model.prompt_encoder.default.embedding.weight.data.copy_(w.prompt.rows.data)
    model.eval()
    if w.job == "decode":
        how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": ANSWER}
        questions = w.questions.to(w.device)
        ask = {"input_ids": questions, "attention_mask": torch.ones_like(questions)}
        return lambda: model.generate(**ask, **how)[:, -ANSWER:].tolist()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0)
    tokens, targets, answer = (t.to(w.device) for t in w.batch)  # (B, T) each
    texts = torch.cat([tokens[:, :1], targets], 1)  # (B, T + 1)
    labels = torch.cat([torch.full_like(texts[:, :1], -100), targets.masked_fill(~answer, -100)], 1)

    def step():
        with torch.autocast(texts.device.type, torch.bfloat16, enabled=autocast):
            loss = model(input_ids=texts, attention_mask=torch.ones_like(texts), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def begin(side, w):
    """Prepare this process for the turns of `ours` or `theirs`."""
    global turn
    turn = side(w)


def one_turn(device):
    """(seconds of one turn, its loss or text, peak memory of this process in GB)."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    out = turn()
    wait()
    return time.perf_counter() - start, out, peak_memory(device)


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
    """What the sides of one measurement are told: args, a folder of the base, a random prompt and a batch."""
    prompt = (DeepPrefix if job == "prefix" else HybridPrefix)(model, n_random=args.rows)
    size, rng = (args.batch_size, QUESTION + ANSWER), torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, size, generator=rng)
    answer = torch.arange(1, size[1]).expand(size[0], -1) >= QUESTION  # True where the target is in the answer
    texts = {"questions": tokens[:, :QUESTION], "batch": (tokens[:, :-1], tokens[:, 1:], answer)}
    return argparse.Namespace(**vars(args), **texts, prompt=prompt, folder=folder, job=job, dtype=dtype)


def main(argv=None):
    args = parse_args(argv)
    if not all(importlib.util.find_spec(name) for name in ("peft", "transformers")):
        raise UserError("this compares with PEFT and transformers: pip install peft transformers")
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
    run_main(main)
