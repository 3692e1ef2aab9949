"""Fully connected layers by our own products: stock numbers in any layout; what is more runs as it is."""

import pytest
import torch
from comparisons import assert_close
from op_backends import needs_kernels
from torch import nn

from dartsfast.fused.linear import is_plain, linear

pytestmark = needs_kernels


def layer(bias=True):
    torch.manual_seed(0)
    return nn.Linear(5, 3, bias, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_numbers_and_gradients_are_stock_ones(bias, transposed):
    module, x = layer(bias), torch.randn(4, 5, dtype=torch.float64)
    if transposed:
        module.weight = nn.Parameter(module.weight.detach().T.contiguous().T)
        x = x.T.contiguous().T
    x.requires_grad_()
    inputs, g = [x, *module.parameters()], torch.randn(4, 3, dtype=torch.float64)
    got, wanted = linear(module, x), module(x)
    assert_close(got.detach(), wanted.detach())
    assert_close(torch.autograd.grad(got, inputs, g), torch.autograd.grad(wanted, inputs, g))


def test_a_second_derivative_raises():
    module, x = layer(), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(linear(module, x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(first.sum(), module.weight)


def test_a_module_that_is_more_runs_as_it_is():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, seen = torch.randn(4, 5, dtype=torch.float64), []
    module = Doubled(5, 3, dtype=torch.float64)
    assert not is_plain(module) and torch.equal(linear(module, x), module(x))
    module = layer()
    assert is_plain(module)
    module.forward = lambda x: x
    assert not is_plain(module) and linear(module, x) is x
    module = layer()
    for register in (
        module.register_forward_hook,
        module.register_forward_pre_hook,
        module.register_full_backward_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        handle = register(lambda *args: seen.append(args))
        assert not is_plain(module)
        linear(module, x.requires_grad_()).sum().backward()
        handle.remove()
    assert is_plain(module) and len(seen) == 4
