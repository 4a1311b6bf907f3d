"""What the commands share: the base's options, checks of numbers, and one clear line for whatever was wrong."""

import argparse
import math
import os

from files.errors import UserError

DEFAULT_BASE = "nano-2"
MOST = 1_000_000  # of whatever is counted, where nothing narrower holds: examples, steps, tokens


class Parser(argparse.ArgumentParser):
    """argparse with the program's docstring as its help, and errors as ValueError, a line without the usage."""

    def __init__(self, doc, device=True):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        if device:
            self.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")

    def error(self, message):
        raise UserError(f"{message}; --help shows what there is")

    def add_base(self, default=DEFAULT_BASE):
        """--model and --dtype. Where the program chooses the base itself, `default` says in words how, and --model is
        None."""
        from files.weights import BUNDLED, HUB  # imported here, since it imports torch

        names = ", ".join([*BUNDLED, *HUB])
        self.add_argument(
            "--model",
            default=default if default in BUNDLED else None,
            help=f"{names}, the hub's OWNER/NAME, or a checkpoint's folder or file (default {default})",
        )
        self.add_argument(
            "--dtype", choices=["float32", "bfloat16"], help="of the base (default: what the device multiplies faster)"
        )

    def parse_args(self, argv=None):
        """args, with --device resolved, and --dtype where the program has it."""
        args = super().parse_args(argv)
        if "device" not in args:
            return args
        import torch  # imported here, so that what needs none of it starts at once

        if args.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: this machine has none, leave it out")
        args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if "dtype" in args:
            args.dtype = getattr(torch, args.dtype) if args.dtype else best_dtype(args.device)
        return args


def best_dtype(device):
    """bfloat16 where the device multiplies matrices faster in it, else float32."""
    import torch

    if str(device).startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capable = torch.cpu.get_capabilities()
    return torch.bfloat16 if capable.get("amx_bf16") or capable.get("avx512_bf16") else torch.float32


def at_least(least, most=MOST):
    """An argparse type: a whole number of at least `least` and at most `most`."""

    def whole_number(text):
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number}: give at least {least}")
        if number > most:
            raise argparse.ArgumentTypeError(f"{number}: give at most {most}")
        return number

    return whole_number


seed = at_least(0, 2**63 - 1)  # an argparse type: what torch's generators take


def rate(text):
    """An argparse type: a number above 0."""
    number = weight(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return number


def weight(text, most=1e30):
    """An argparse type: a number from 0 to `most`, by default one that can be multiplied in float32."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from None
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give a finite number of at least 0")
    if number > most:
        raise argparse.ArgumentTypeError(f"{text}: give at most {most:g}")
    return number


def temperature(text):
    """An argparse type: 0, or a number by which logits can be divided."""
    number = weight(text, most=1000)
    if 0 < number < 0.001:
        raise argparse.ArgumentTypeError(f"{text}: give 0, which is greedy, or at least 0.001")
    return number


def fraction(text):
    """An argparse type: a number from 0 to 1."""
    number = weight(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to 1")
    return number


def words(text):
    """An argparse type: text that is not blank."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the text is empty: write some words")
    return text


def check_memory(n_bytes, what):
    """Raise UserError where this machine's memory does not hold n_bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > memory:
        raise UserError(f"{what} would take {n_bytes / 1e9:,.1f} GB, and this machine has {memory / 1e9:,.1f} GB")
