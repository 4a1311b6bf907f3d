"""What prompts are compared with, and newer prompts. A method of your own is one more file here: `import methods`
imports every file of this folder, and each Method with a `name` is then in METHODS.

A file that cannot be imported is left out, with one line on stderr; asking for a method that nothing defines shows its
traceback.
"""

import importlib
import sys
from pathlib import Path

from prefix import METHODS

broken = []  # exceptions
for file in sorted(Path(__file__).parent.glob("[!_]*.py")):
    try:
        importlib.import_module(f"methods.{file.stem}")
    except Exception as error:  # of a file that somebody is writing
        broken.append(error)
        print(f"methods/{file.name} is left out: {type(error).__name__}: {error}", file=sys.stderr)


def find(name):
    """The class of the method with that name, or None. Raises a broken file's exception rather than return None."""
    if name not in METHODS and broken:
        raise broken[0]
    return METHODS.get(name)
