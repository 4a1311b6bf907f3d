"""What the commands share: the base's options, and one clear line for whatever was wrong."""

import argparse
import sys

import torch

from model import HUB, BUNDLED, best_dtype


class Parser(argparse.ArgumentParser):
    """argparse with the program's docstring as its help, and errors as ValueError, a line without the usage."""

    def __init__(self, doc):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")

    def error(self, message):
        raise ValueError(f"{message}; --help shows what there is")

    def add_base(self):
        self.add_argument(
            "--model",
            default="nano",
            help=f"{', '.join([*BUNDLED, *HUB])}, a checkpoint's folder or its .safetensors file (default %(default)s)",
        )
        self.add_argument(
            "--dtype", choices=["float32", "bfloat16"], help="of the base (default: what the device multiplies faster)"
        )

    def parse_args(self):
        """args, with --device resolved, and --dtype where the program has it."""
        args = super().parse_args()
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: this machine has none, leave it out")
        args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if "dtype" in args:
            args.dtype = getattr(torch, args.dtype) if args.dtype else best_dtype(args.device)
        return args


def run(main, program):
    """Call main(); what it refuses goes to stderr as one line, with exit code 2."""
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
