"""Several processes that tune one prompt: torchrun starts them, and without torchrun nothing here does anything.

Every process holds the base, draws the same batches and answers its share of each. Process 0 alone prints and writes.
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from files.errors import UserError, saying


def start(device):
    """Join the processes that torchrun started: NCCL on CUDA, Gloo on the CPU."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return
    stated = [f"{n}={os.environ.get(n, '')}" for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")]
    try:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # which "cuda" means from now on
        with saying(f"waiting for all of torchrun's processes ({', '.join(stated)})"):
            # a process that waits for longer than that waits for one that has ended
            dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=10))
    except (KeyError, ValueError, dist.DistError) as error:
        raise UserError(f"no other process to join ({error}): start them by torchrun, or unset its variables") from None
    if not is_main():
        sys.stdout = open(os.devnull, "w")


def leave():
    """End this process. A normal exit aborts about one Gloo process in ten, so it ends by os._exit."""
    if n_processes() > 1:
        wait()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def n_processes():
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    return dist.get_rank() if n_processes() > 1 else 0


def is_main():
    return rank() == 0


def wait():
    if n_processes() > 1:
        dist.barrier()


def part(items):
    """This process's part of a list or of a tensor's rows: number rank(), rank() + n_processes(), ..."""
    return items[rank() :: n_processes()]


def share(batch):
    """This process's rows of a batch of tensors, (B, ...) each. A batch of fewer rows than processes goes to every
    process whole, which leaves the mean unchanged."""
    return batch if len(batch[0]) < n_processes() else [part(t) for t in batch]


def average(parameters, loss, weights):
    """Replace each parameter's gradient by its mean over all processes, each weighted by the sum of its `weights` (its
    answer tokens): the gradient of the whole batch. Returns the same mean of the loss, ()."""
    if n_processes() == 1:
        return loss
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [loss, torch.ones_like(loss), *gradients]
    flat = torch.cat([t.flatten().float() for t in parts]) * weights.sum()  # one message: they are small
    dist.all_reduce(flat)
    loss, total, *means = (flat / flat[1]).split([t.numel() for t in parts])
    for gradient, mean in zip(gradients, means):
        gradient.copy_(mean.view_as(gradient))
    return loss[0]


def first(value):
    """Broadcast from process 0."""
    values = [value]
    if n_processes() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gather(mine, n):
    """The whole list of n items from each process's `part` of it."""
    if n_processes() == 1:
        return mine
    parts, whole = [None] * n_processes(), [None] * n
    dist.all_gather_object(parts, mine)
    for r, items in enumerate(parts):
        whole[r :: n_processes()] = items
    return whole


def is_sharded(network):
    """True where research/sharded.py has split the base's weights among the processes."""
    return hasattr(network.h[0], "reshard")  # a method that fully_shard gives to a block
