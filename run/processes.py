"""Several processes that tune one prompt: torchrun starts them, and without torchrun nothing here does anything.

    torchrun --nproc_per_node=2 train_task.py --task addition

Every process holds the base, draws the same batches and answers its share of each. Of what is tuned only gradients
travel, a few KB for a prompt. Process 0 alone prints and writes.
"""

import os
import sys
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist


def start(device):
    """Join the processes that torchrun started. A device is CUDA's for NCCL; on a CPU they talk through Gloo."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # which "cuda" means from now on
    # one that waits for longer than that waits for one that is gone
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=10))
    if not is_main():
        sys.stdout = open(os.devnull, "w")


def leave():
    """End this process, which has done its work. A usual end destroys Gloo's threads while they run, and that aborts
    one process in ten."""
    if dist.is_initialized():
        wait()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def rank():
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_processes():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """Whether this process prints and writes."""
    return rank() == 0


def wait():
    """Until all processes are here."""
    if n_processes() > 1:
        dist.barrier()


def shard(model, device):
    """Split the weights of each block among the processes; a block is whole only while it computes. All processes have
    to call each block equally often. Zhao et al. (2023), "PyTorch FSDP", section 3.2."""
    from torch.distributed.device_mesh import init_device_mesh  # here, since every program would wait for these
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # about changes in place, of which there are none
    mesh = init_device_mesh(device, (n_processes(),))
    for block in model.h:
        # It moves the block to the device first, one at a time. To FSDP each block is a root of its own, and a root
        # stays whole after its forward pass unless told otherwise: all blocks would be whole at once.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return model.to(device)


def is_sharded(network):
    return hasattr(network.h[0], "reshard")  # a method that fully_shard gives to a block


def part(items):
    """This process's part of a list or a tensor's rows: number rank(), rank() + n_processes(), ..."""
    return items[rank() :: n_processes()]


def share(batch):
    """This process's rows of a batch of tensors, (B, ...) each: B / n_processes() of them, or one more.

    A batch of fewer rows than processes is every process's whole, which leaves the mean what it is.
    """
    return batch if len(batch[0]) < n_processes() else [part(t) for t in batch]


def average(parameters, loss, weights):
    """Replace each parameter's gradient by its mean over all processes, each of which counts as the sum of its
    `weights` (of its tokens), so that it is that of the whole batch; returns the same mean of the loss, ()."""
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
    """What process 0 has."""
    if n_processes() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather(mine, n):
    """The whole list, of n, from each process's `part` of it."""
    if n_processes() == 1:
        return mine
    parts, whole = [None] * n_processes(), [None] * n
    dist.all_gather_object(parts, mine)
    for r, items in enumerate(parts):
        whole[r :: n_processes()] = items
    return whole
