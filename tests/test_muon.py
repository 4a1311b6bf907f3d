"""methods/muon.py against an exact decomposition."""

import pytest
import torch

from methods.muon import Muon, optimizers
from model import GPT, GPTConfig


@pytest.mark.parametrize("shape", [(16, 64), (48, 16)])
def test_a_first_step_is_nearly_the_orthogonal_factor(shape):
    """Newton-Schulz brings every singular value near 1: the step is U V^T of the gradient's SVD. A matrix of 3:1 is one
    matrix: cut into three, each part has singular values near 1, and the whole up to sqrt(3)."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(shape))
    before = p.detach().clone()
    u, _, vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    p.grad = u * torch.linspace(0.2, 1, min(shape)) @ vt
    Muon([p], lr=0.1).step()
    step = (before - p.detach()) / 0.1 / max(1, shape[0] / shape[1]) ** 0.5
    singular = torch.linalg.svdvals(step)
    assert 0.5 < singular.min() and singular.max() < 1.3
    assert (step * (u @ vt)).sum() / (step.norm() * (u @ vt).norm()) > 0.97


def test_fused_queries_keys_and_values_take_the_steps_of_three_parameters():
    torch.manual_seed(0)
    apart = [torch.nn.Parameter(torch.randn(16, 20)) for _ in range(3)]
    whole = torch.nn.Parameter(torch.cat(apart).detach())
    one, several = Muon([whole], 0.1, fused=[whole]), Muon(apart, 0.1)
    for _ in range(3):
        whole.grad = torch.randn_like(whole)
        for p, grad in zip(apart, whole.grad.chunk(3)):
            p.grad = grad.clone()
        one.step()
        several.step()
    torch.testing.assert_close(whole, torch.cat(apart))


def test_of_a_gpt_only_queries_keys_and_values_are_split_and_every_parameter_has_one_optimizer():
    model = GPT(GPTConfig(10, 8, 2, 2, 8))
    model.h[0].mlp = torch.nn.Linear(8, 24)  # another matrix of 3:1
    muon, adam = optimizers(model, 0.02, 2e-3)
    assert muon.fused == {block.attn.c_attn.weight for block in model.h}
    groups = [p for o in (muon, adam) for p in o.param_groups[0]["params"]]
    assert len(groups) == len({id(p) for p in groups}) == len(list(model.parameters()))
