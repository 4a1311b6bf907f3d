"""Try a tokenizer.json in a process of its own: python data/trial.py < tokenizer.json

The tokenizers library does whatever such a file says, and some files make it abort, loop or fill the memory. The exit
code is 0 where it reads and writes the texts below within the limits; else the last line of stderr says why not.
"""

import sys
from contextlib import suppress

SAMPLE = "".join(map(chr, range(32, 127))) + "aaaa" * 8 + "!\n\t 1234  it's \u00e4\u4e2d\n\n \u2028\u200b\U0001f600 b"
# a regular expression that tries all ways to cut a run of characters takes forever where the run ends in another
RUNS = [*sorted({*SAMPLE}), "ab", "a b1 "]
TEXTS = ["", SAMPLE, *(run * (50 // len(run)) + ("?" if run == "!" else "!") + SAMPLE for run in RUNS)]


def limit(size):
    """At most some seconds of the processor and some GB for a file of `size` bytes, where the system has limits."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        seconds, memory = 5 + size // 2**22, 2**31 + 30 * size
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def main():
    content = sys.stdin.buffer.read()
    limit(len(content))
    from tokenizers import Tokenizer

    try:
        file = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more exact
        sys.exit(" ".join(str(error).split()))
    file.no_padding()
    file.no_truncation()
    file.encode_special_tokens = True
    for text in TEXTS:
        tokens = file.encode(text).ids
        if len(tokens) > 100 + 20 * len(text):
            sys.exit(f"it makes {len(tokens):,} tokens of {len(text)} characters")
        file.decode(tokens, skip_special_tokens=False)
    file.decode(sorted(file.get_vocab().values()), skip_special_tokens=False)


if __name__ == "__main__":
    main()
