"""The fused operators: the oracles' bits, stock PyTorch's numbers, and good manners in torch."""

import pytest
import torch
import torch.nn.functional as F
from comparisons import assert_close, same_bits
from op_backends import INTERPRETED, assert_agrees, native_only, needs_kernels
from op_backends import instruction_set as instruction_set  # fixtures
from op_backends import triton_ran as triton_ran
from op_calls import call, oracle
from op_cases import CASES, CELLS, SMALL, VECTORS, Mix
from op_sampler import Sampler
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import dartsfast.ops
from dartsfast.oracle import activations

kernels = torch.ops.dartsfast
pytestmark = [needs_kernels, pytest.mark.usefixtures("triton_ran")]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def differentiable(f, args):
    """Return f as a function of the tensors in args, and those tensors as leaves of a graph."""
    flat, structure = tree_flatten(args)
    places = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)]
    leaves = [flat[i].detach().requires_grad_() for i in places]

    def function(*tensors):
        filled = list(flat)
        for i, t in zip(places, tensors, strict=True):
            filled[i] = t
        return tuple(tree_leaves(f(*tree_unflatten(filled, structure))))

    return function, leaves


def gradients(f, args):
    """Return the outputs of f and, for random gradients of the outputs, those of all tensors in args."""
    function, leaves = differentiable(f, args)
    outputs = function(*leaves)
    sampler = Sampler(outputs[0].dtype, seed=1)
    smooth = [out for out in outputs if out.requires_grad]
    return outputs, torch.autograd.grad(smooth, leaves, [sampler.tensor(*out.shape) for out in smooth])


def moments(z):
    pixels = (-4, -3, -2)
    return torch.stack([z.mean(pixels), z.var(pixels, correction=0)], -2)


def stock_convs(v, depthwise, pointwise, dilation, stride, relu):
    v = (v.relu() if relu else v).permute(0, 3, 1, 2)
    z = []
    for b, weight in enumerate(pointwise):
        t = v[:, :, ::stride, ::stride]
        if depthwise:
            padding = dilation[b] * (depthwise[b].shape[-1] - 1) // 2
            t = F.conv2d(v, depthwise[b], None, stride, padding, dilation[b], groups=v.shape[1])
        z.append(F.conv2d(t, weight).permute(0, 2, 3, 1))
    return torch.stack(z)


def stock_branch_conv(x, norm, *rest):
    z = stock_convs(x if norm is None else (x - norm[0]) * norm[1], *rest)
    return z, moments(z)


def stock_pools(x, stride):
    x = x.permute(0, 3, 1, 2)
    z = F.max_pool2d(x, 3, stride, 1), F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    return torch.stack(z).permute(0, 1, 3, 4, 2)


def stock_pool3x3(x, stride):
    z = stock_pools(x, stride)
    return z, moments(z)


def stock_mixed_sum(z, mean, rstd, weights, base):
    branches = zip(z, mean, rstd, weights, strict=True)
    return sum((w * (image - mu) * r for image, mu, r, w in branches), 0 if base is None else base)


def stock_highways(gates, states, weights):
    c, h = gates.chunk(2, -1)
    candidates = torch.stack([h.tanh(), h.relu(), h.sigmoid(), h], 1)  # [P, 4, B, H]
    highway = states[:, None] + c.sigmoid()[:, None] * (candidates - states[:, None])
    return (weights[:, :, None, None] * highway).sum((0, 1))


def stock_rnn_node(gates, states, weights, norm, eps):
    total = stock_highways(gates, states, weights)
    mean, variance = (total.mean(0), total.var(0, correction=0)) if norm is None else norm
    out = (total - mean) / (variance + eps).sqrt()
    return out, torch.stack([mean, variance]).detach() if norm is None else norm[:0]


STOCK = {
    "alpha_softmax": lambda alphas: [alpha.softmax(1) for alpha in alphas],
    "branch_conv": stock_branch_conv,
    "mixed_sum": stock_mixed_sum,
    "pool3x3": stock_pool3x3,
    "rnn_node": stock_rnn_node,
}


def stock_dz(g, z, coef):
    if coef is None:
        return torch.stack(g)
    m, mu, r, k = coef[:, :, None, None, None].unbind(1)
    return k * (torch.stack(g) - m - (torch.stack(z) - mu) * r)


def stock_branch_conv_backward(g, z, coef, x, norm, depthwise, pointwise, *rest):
    *rest, base, input_grad, weight_grads = rest
    v = x if norm is None else (x - norm[0]) * norm[1]
    function, leaves = differentiable(stock_convs, (v, depthwise, pointwise, *rest))
    dx, *weights = torch.autograd.grad(function(*leaves), leaves, stock_dz(g, z, coef))
    means = torch.stack([dx.mean((0, 1, 2)), (dx * v).mean((0, 1, 2))])
    if base is not None:
        dx = dx + base
    return (
        dx if input_grad else dx[:0],
        weights[: len(depthwise)] if weight_grads else [],
        weights[len(depthwise) :] if weight_grads else [],
        means if input_grad and norm is not None else means[:0],
    )


def stock_pool3x3_backward(g, z, coef, x, stride, base):
    x = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(stock_pools(x, stride), x, stock_dz(g, z, coef))
    return dx if base is None else dx + base


def stock_mixed_sum_backward(g, z, mean, rstd):
    zhat = (torch.stack(z) - mean[:, None, None, None]) * rstd[:, None, None, None]
    means = torch.cat([g.mean((0, 1, 2))[None], (g * zhat).mean((1, 2, 3))])
    return (g * zhat).sum((1, 2, 3, 4)), means


def stock_rnn_node_backward(g, out, variance, gates, states, weights, eps, own, base):
    if own:
        g = g - g.mean(0) - out * (g * out).mean(0)
    function, leaves = differentiable(stock_highways, (gates, states, weights))
    d_gates, d_states, d_weights = torch.autograd.grad(
        function(*leaves), leaves, [g / (variance + eps).sqrt()]
    )
    return d_gates, d_states if base is None else d_states + base, d_weights


STOCK_BACKWARD = {
    "branch_conv_backward": stock_branch_conv_backward,
    "mixed_sum_backward": stock_mixed_sum_backward,
    "pool3x3_backward": stock_pool3x3_backward,
    "rnn_node_backward": stock_rnn_node_backward,
}


@pytest.mark.parametrize("case", [*CASES, *VECTORS], ids=str)
def test_float32_agrees_with_the_oracle(case, instruction_set):
    for name, args in case.calls(torch.float32):
        assert_agrees(name, args)


@native_only
@pytest.mark.parametrize("case", CELLS, ids=str)
def test_float32_agrees_with_the_oracle_at_the_sizes_of_cells(case, instruction_set):
    for name, args in case.calls(torch.float32):
        assert_agrees(name, args)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_matches_stock_pytorch(case, instruction_set):
    (name, args), *others = case.calls(torch.float64)
    wanted = gradients(STOCK[name], args)
    assert_close(oracle(name, args), list(wanted[0]))
    assert_close(gradients(getattr(kernels, name), args), wanted)
    for name, args in others:
        stock = {**STOCK, **STOCK_BACKWARD}.get(name)
        if stock is not None:
            assert_close(call(name, args), stock(*args))


@pytest.mark.parametrize("stride", [1, 2])
def test_an_edge_matches_stock_batch_norm(stride):
    sampler = Sampler(torch.float64)
    depthwise = [sampler.weight(4, 1, k, k) for k in (3, 5)]
    pointwise = [sampler.weight(6, 4, 1, 1) for _ in range(2)]
    args = sampler.image(3, 7, 6, 4), depthwise, pointwise, sampler.tensor(1, 2)

    def fused(x, depthwise, pointwise, alpha):
        z, stats = dartsfast.ops.branch_conv(x, pointwise, depthwise, [1, 2], stride=stride)
        weights = dartsfast.ops.alpha_softmax([alpha])[0][0]
        rstd = (stats[:, 1] + 1e-5).rsqrt()
        return dartsfast.ops.mixed_sum(list(z), stats[:, 0], rstd, weights)

    def stock(x, depthwise, pointwise, alpha):
        z = stock_convs(x, depthwise, pointwise, [1, 2], stride, True)
        normal = [F.batch_norm(image.permute(0, 3, 1, 2), None, None, training=True) for image in z]
        return (alpha.softmax(1).reshape(-1, 1, 1, 1, 1) * torch.stack(normal)).sum(0).permute(0, 2, 3, 1)

    assert_close(gradients(fused, args), gradients(stock, args), 1e-11)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_first_of_equal_maxima_gets_the_gradient(stride, instruction_set):
    x = Sampler(torch.float64).tensor(2, 6, 7, 5).round()
    g = [Sampler(torch.float64, seed=1).tensor(*kernels.pool3x3(x, stride)[0].shape[1:]), None]
    g[1] = torch.zeros_like(g[0])
    args = g, [], None, x, stride, None
    assert_close(kernels.pool3x3_backward(*args), stock_pool3x3_backward(*args))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(case, instruction_set):
    name, args = case.calls(torch.float64)[0]
    # Fast: along one random direction, as the interpreter takes seconds for what takes one run an element.
    assert torch.autograd.gradcheck(*differentiable(getattr(kernels, name), args), fast_mode=INTERPRETED)


def test_any_of_the_gradients_of_a_convolution():
    sampler = Sampler(torch.float64)
    given = [sampler.tensor(*shape) for shape in ([2, 5, 6, 4], [2, 4], [4, 1, 3, 3], [3, 4, 1, 1])]

    def gradients(asked):
        leaves = [t.clone().requires_grad_(ask) for t, ask in zip(given, asked, strict=True)]
        x, norm, depthwise, pointwise = leaves
        z, stats = dartsfast.ops.branch_conv(x, [pointwise], [depthwise], [1], norm=norm)
        (z.sin().sum() + stats.cos().sum()).backward()
        return [t.grad for t in leaves]

    every = gradients([True] * 4)
    for one in range(4):
        found = gradients([i == one for i in range(4)])
        assert torch.equal(found[one], every[one])
        assert all(found[i] is None for i in range(4) if i != one)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_opcheck(case):
    (name, args), *backward = case.calls()
    need = tree_map(lambda t: t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t, args)
    torch.library.opcheck(getattr(kernels, name).default, need)
    for name, args in backward:
        torch.library.opcheck(getattr(kernels, name).default, args)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_compiled_equals_eager(case):
    torch._dynamo.reset()  # every case compiles anew, and the number of recompilations is limited
    name, args = case.calls()[0]
    function, leaves = differentiable(getattr(kernels, name), args)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert same_bits(gradients(compiled, leaves), gradients(function, leaves))


@pytest.mark.parametrize("case", [SMALL[0], SMALL[3], SMALL[5], SMALL[7]], ids=str)
def test_a_second_derivative_raises(case):
    name, args = case.calls()[0]
    function, leaves = differentiable(getattr(kernels, name), args)
    leaf = leaves[-2 if isinstance(case, Mix) else -1]  # the gradient of base needs no operator
    (first,) = torch.autograd.grad(function(*leaves)[0].square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        first.sum().backward()


@native_only
@pytest.mark.parametrize("case", [case for case in [*CASES, *VECTORS] if getattr(case, "N", 3) > 2], ids=str)
def test_same_bits_for_any_threads_and_every_run(case, threads):
    for name, args in case.calls():
        results = []
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(call(name, args))
        assert all(same_bits(result, results[0]) for result in results[1:]), name


@native_only  # in the interpreter every test here has memory full of NaN
@pytest.mark.parametrize("case", [*CASES, *VECTORS], ids=str)
def test_outputs_never_show_what_was_in_memory(case, instruction_set, threads):
    torch.set_num_threads(1)  # whose scratch memory the calls with NaN have filled
    for other in [*CASES, *VECTORS]:
        for name, args in other.calls() if type(other) is type(case) else []:
            call(name, tree_map(lambda t: t * torch.nan if isinstance(t, torch.Tensor) else t, args))
    for name, args in case.calls():
        wanted = oracle(name, args)
        sizes = [t.numel() for t in tree_leaves(wanted)] * 8 + [64, 256, 1024, 4096, 16384]
        for _ in range(3):
            poison = [torch.full([size], torch.nan) for size in sizes]
            del poison
            assert same_bits(call(name, args), wanted), name


def spoiled(args, values):
    """Return args with a few elements of every floating-point tensor replaced."""

    def spoil(t):
        if not isinstance(t, torch.Tensor):
            return t
        flat = t.flatten().clone()
        flat[:: max(1, flat.numel() // len(values) - 1)][: len(values)] = torch.tensor(values)[: flat.numel()]
        return flat.reshape(t.shape)

    return tree_map(spoil, args)


@pytest.mark.parametrize("case", [*CASES, *VECTORS], ids=str)
@pytest.mark.parametrize(
    "values", [[torch.nan], [torch.inf, -torch.inf], [1e-42, -1e-42, 3e38, -0.0]], ids=["nan", "inf", "tiny"]
)
def test_unusual_numbers_agree_with_the_oracle(case, values, instruction_set):
    for name, args in case.calls():
        assert_agrees(name, spoiled(args, values))


def test_nan_passes_relu_maximum_and_softmax(instruction_set):
    x = torch.full((1, 3, 3, 5), -1.0)
    x[0, 1, 1, 2] = torch.nan
    z, stats = dartsfast.ops.branch_conv(x, [torch.ones(4, 5, 1, 1)])
    assert z[0, 0, 1, 1].isnan().all() and z.isnan().sum() == 4 and stats.isnan().all()
    z, _ = dartsfast.ops.pool3x3(x)
    assert z[..., 2].isnan().all() and not z[..., [0, 1, 3, 4]].isnan().any()
    (p,) = dartsfast.ops.alpha_softmax([torch.tensor([[0, torch.nan, 1], [0, -torch.inf, 0]])])
    assert p[0].isnan().all() and p[1].tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_autocast_takes_float32(case):
    name, args = case.calls()[0]
    half = tree_map(lambda t: t.bfloat16() if isinstance(t, torch.Tensor) else t, args)
    wide = tree_map(lambda t: t.float() if isinstance(t, torch.Tensor) else t, half)
    function, leaves = differentiable(getattr(kernels, name), half)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = function(*leaves)
    assert same_bits(outputs, call(name, wide))
    smooth = [out for out in outputs if out.requires_grad]
    grads = torch.autograd.grad(smooth, leaves, [torch.ones_like(out) for out in smooth])
    assert all(grad.dtype == torch.bfloat16 for grad in grads)


@native_only  # launches nothing
@pytest.mark.parametrize("device", ["CPU", "CUDA", "XPU"])
@pytest.mark.parametrize("name", STOCK)
def test_autocast_is_known_on_every_device(name, device):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dartsfast::{name}", f"Autocast{device}")


def test_default_arguments_may_be_given_or_left_out():
    """One left at its default is no input of autograd before torch 2.13, and one from then on."""
    defaults = {
        name: [
            a.default_value for a in getattr(kernels, name).default._schema.arguments if a.has_default_value()
        ]
        for name in STOCK
    }
    assert defaults == {name: [None] if name == "branch_conv" else [] for name in STOCK}
    _, args = SMALL[0].calls()[0]
    omitted, *given = (
        gradients(kernels.branch_conv, (*args, *dtype)) for dtype in ((), (None,), (torch.float32,))
    )
    assert all(same_bits(found, omitted) for found in given)


@native_only
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activations_are_within_2_ulp(name):
    """Of the oracle, whose bits are those of every instruction set."""
    sampler = Sampler()
    x = torch.cat([torch.linspace(-87, 87, 200_001), *(sampler.tensor(200_000) * s for s in (1e-3, 0.5, 8))])
    truth = getattr(torch, name)(x.double())
    got = getattr(activations, name)(x).double()
    ulp = 2.0 ** (truth.abs().log2().floor().clamp(min=-126) - 23)
    assert ((got - truth).abs() <= 2 * ulp).all()
