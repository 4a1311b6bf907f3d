"""Files that are whole: each is written under a temporary name and renamed when it is complete.

Everything is safetensors and JSON.
"""

import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from files.errors import UserError


@contextmanager
def replacing(path):
    """`with replacing(path) as temporary:` write to the temporary path; it then takes the place of `path`.

    No reader sees half a file, not even after a loss of power. If the block raises, the file that was there stays and
    the temporary one is removed. Raises UserError where the disk is full, read-only or gone.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device, whose place a file would take
        raise UserError(f"{path} is no regular file: name another")
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path} ({why}): make room, or choose another folder") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def flush(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and os.path.isdir(path):  # Windows opens no folder, and writes names by itself
        return
    descriptor = os.open(path, os.O_RDWR if os.path.isfile(path) else os.O_RDONLY)  # Windows flushes no O_RDONLY
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(path, tensors, metadata):
    """Write safetensors: {name: tensor} and {name: text}."""
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # that of any new file; the library's files are readable by their owner alone
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, temporary, metadata=metadata)
        temporary.chmod(mode)
        sort_header(temporary)


def trained(module):
    """{name: tensor} of a module's parameters but the frozen ones, and of its buffers."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: t for name, t in module.state_dict().items() if name not in frozen}


def sort_header(path):
    """Let the same tensors and metadata give the same bytes: the library writes metadata in an order of chance."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(size))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path may be no text


def check_unused(path):
    """Raise UserError where a file or folder is there already."""
    if Path(path).exists():
        raise UserError(f"{path} is already in use: name another, or remove it")


def read_tensors(path):
    """(header, {name: tensor}) of a safetensors file. Raises UserError where it is none, or holds NaN or infinity."""
    if not Path(path).is_file():  # a pipe might never end
        raise UserError(f"{path} is no regular file: {pickles(Path(path).parent) or 'name a safetensors file'}")
    try:
        with safe_open(path, framework="pt") as file:
            header, tensors = file.metadata() or {}, {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}): it is no safetensors file, or it was cut off") from None
    for name, t in tensors.items():
        check_finite(t, name, path)
    return header, tensors


def pickles(folder):
    """What to do with the weights of a folder that are pickles, or '' where there are none."""
    found = [path.name for end in ("bin", "pt", "pth") for path in sorted(folder.glob(f"*.{end}"))]
    how = "load it where you trust it, and let save_pretrained of a newer version write it as safetensors"
    return f"{found[0]} is a pickle, which may run any code: {how}" if found else ""


def check_finite(t, name, path):
    """Raise UserError where a tensor holds NaN, infinity or complex numbers."""
    if t.is_floating_point() and t.numel():  # its smallest and largest number tell; of float8 there are none
        finite = all(x.isfinite() for x in (t.float() if t.itemsize == 1 else t).aminmax())
    else:
        finite = not t.is_complex()
    if not finite:
        raise UserError(f"{path}: {name!r} holds NaN or infinite numbers: make or fetch the file again")
