"""train_task.py for a base that one GPU does not hold: each process holds a part of each block.

    torchrun --nproc_per_node=2 -m research.sharded --task addition --model Qwen/Qwen2.5-1.5B --beside none

Zhao et al. (2023), "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", section 3.2. The embedding table
and the head are not split.
"""

import warnings

import train_task
from files.errors import UserError, run_main
from files.weights import fingerprint, load_model
from run import processes

METHODS = "hybrid", "prompt", "lopt", "cpt", "prefix", "ptuning2"


def load_base(args):
    """The frozen base, split among the processes."""
    fits = args.method in METHODS and set(args.beside) <= {"scratch", "none"}
    if processes.n_processes() == 1 or not fits:
        names = ", ".join(METHODS)
        raise UserError(f"start it with torchrun, for --method {names}, with --beside scratch or none")
    model = load_model(args.model, "cpu", args.dtype).freeze()
    model.checkpoint_activations = args.checkpoint_activations
    model.fingerprint = fingerprint(model)
    return shard(model, args.device)


def shard(model, device):
    """Split each block's weights among the processes, which all have to call each block equally often."""
    from torch.distributed.device_mesh import init_device_mesh  # imported here, since it takes a second
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # about changes in place, of which there are none
    mesh = init_device_mesh(device, (processes.n_processes(),))
    for block in model.h:
        # It moves one block to the device at a time. For FSDP each block is a root of its own, and a root stays whole
        # after its forward pass unless it is told otherwise.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return model.to(device)


def main(argv=None):
    train_task.main(argv, load_base, __doc__)


if __name__ == "__main__":
    run_main(main)
    processes.leave()
