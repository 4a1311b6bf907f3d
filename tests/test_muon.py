"""muon.py against an exact decomposition."""

import pytest
import torch

from methods.muon import Muon, optimizers
from model import GPT, GPTConfig


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
def test_a_first_muon_step_is_nearly_the_orthogonal_factor(shape):
    """Newton-Schulz brings every singular value near 1: the step is U V^T of the gradient's SVD."""
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


def test_queries_keys_and_values_are_orthogonalised_apart():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(48, 16))
    p.grad = torch.randn(48, 16)
    Muon([p], lr=1.0).step()
    for i in range(3):
        assert torch.linalg.svdvals(p.detach()[16 * i : 16 * (i + 1)]).max() < 1.3


def test_matrices_side_by_side_are_orthogonalised_apart():
    """One parameter of two matrices takes the steps that two parameters take."""
    torch.manual_seed(0)
    both = torch.nn.Parameter(torch.randn(6, 40))
    apart = [torch.nn.Parameter(x.clone()) for x in both.detach().split(20, 1)]
    one, two = Muon([both], lr=0.1, width=20), Muon(apart, lr=0.1)
    for _ in range(3):
        both.grad = torch.randn(6, 40)
        for p, grad in zip(apart, both.grad.split(20, 1)):
            p.grad = grad.clone()
        one.step()
        two.step()
    torch.testing.assert_close(both, torch.cat(apart, 1))


def test_muon_learns_a_linear_map():
    torch.manual_seed(0)
    want, p = torch.randn(8, 8), torch.nn.Parameter(torch.zeros(8, 8))
    x = torch.randn(256, 8)
    optimizer = Muon([p], lr=0.05)
    for _ in range(200):
        loss = ((x @ p.T - x @ want.T) ** 2).mean()
        p.grad = None
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_every_parameter_has_one_optimizer():
    model = GPT(GPTConfig(10, 8, 2, 2, 8))
    groups = [p for o in optimizers(model, 0.02, 2e-3) for p in o.param_groups[0]["params"]]
    assert len(groups) == len({id(p) for p in groups}) == len(list(model.parameters()))
