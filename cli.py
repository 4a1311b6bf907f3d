"""What the commands share: the base's options, checks of numbers, and one clear line for whatever was wrong."""

import argparse
import math
import sys

import torch

from checkpoint import BUNDLED, HUB


class Parser(argparse.ArgumentParser):
    """argparse with the program's docstring as its help, and errors as ValueError, a line without the usage."""

    def __init__(self, doc):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")

    def error(self, message):
        raise ValueError(f"{message}; --help shows what there is")

    def add_base(self):
        names = ", ".join([*BUNDLED, *HUB])
        self.add_argument(
            "--model", default="nano", help=f"{names}, or a checkpoint's folder or file (default %(default)s)"
        )
        self.add_argument(
            "--dtype", choices=["float32", "bfloat16"], help="of the base (default: what the device multiplies faster)"
        )

    def parse_args(self, argv=None):
        """args, with --device resolved, and --dtype where the program has it."""
        args = super().parse_args(argv)
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: this machine has none, leave it out")
        args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if "dtype" in args:
            args.dtype = getattr(torch, args.dtype) if args.dtype else best_dtype(args.device)
        return args


def best_dtype(device):
    """bfloat16 where the device multiplies matrices faster in it, else float32."""
    if str(device).startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capable = torch.cpu.get_capabilities()
    return torch.bfloat16 if capable.get("amx_bf16") or capable.get("avx512_bf16") else torch.float32


def at_least(least):
    """An argparse type: a whole number of at least `least`."""

    def whole_number(text):
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number}: give at least {least}")
        return number

    return whole_number


def rate(text):
    """An argparse type: a number above 0."""
    number = weight(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return number


def weight(text):
    """An argparse type: a number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give a finite number of at least 0")
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


def run(main, program, argv=None):
    """Call main(argv); what it refuses goes to stderr as one line, with exit code 2."""
    try:
        main(argv)
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
