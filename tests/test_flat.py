"""Parameters in one buffer: nobody else notices, and products are the same wherever parameters lie."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dartsfast.bilevel import VirtualStep, alpha_gradient, flatten_, hvp
from dartsfast.bilevel.flat import Flat, norm
from dartsfast.errors import DivergedError, InputError


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3))


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 4, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


def loss_of(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def is_flat(tensors):
    return all(group.buffer is not None for group in Flat(list(tensors)).groups)


def bits(tensors):
    return [t.detach().clone() for t in tensors]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


@pytest.fixture
def flat_model():
    model = network()
    flatten_(list(model.parameters()))
    assert is_flat(model.parameters())
    return model


def test_values_identities_and_layouts_stay():
    model = network().to(memory_format=torch.channels_last)
    depthwise = nn.Conv2d(4, 4, 3, groups=4)  # a dimension of size 1, whose stride tells the layout
    parameters = [*model.parameters(), *depthwise.parameters(), nn.Parameter(torch.empty(0, 3))]
    ids, values, strides = map(id, parameters), bits(parameters), [p.stride() for p in parameters]
    flatten_(parameters)
    assert is_flat(parameters)
    assert list(ids) == [id(p) for p in parameters]
    assert same(values, parameters)
    assert strides == [p.stride() for p in parameters]
    assert all(p.untyped_storage().nbytes() == p.nbytes and p.is_leaf and p.requires_grad for p in parameters)
    (group,) = Flat(parameters).groups
    assert all(p.data_ptr() % 64 == group.buffer.data_ptr() % 64 for p in parameters if p.numel())
    group.buffer.zero_()
    assert not any(p.any() for p in parameters)


def test_a_second_time_nothing_moves(flat_model):
    places = [p.data_ptr() for p in flat_model.parameters()]
    flatten_(list(flat_model.parameters()))
    assert places == [p.data_ptr() for p in flat_model.parameters()]


def test_memory_goes_with_the_parameters(flat_model):
    buffer = weakref.ref(Flat(list(flat_model.parameters())).groups[0].buffer)
    last = flat_model[4].bias
    del flat_model[:]
    gc.collect()
    assert last.sum().isfinite() and buffer() is not None
    del last
    gc.collect()
    assert buffer() is None


def test_files_are_as_large_as_before(flat_model):
    plain = network()
    assert len(saved(flat_model.state_dict())) == len(saved(plain.state_dict()))
    assert len(saved(flat_model[0].weight)) == len(saved(plain[0].weight))
    assert len(pickle.dumps(flat_model)) == len(pickle.dumps(plain))
    assert same(pickle.loads(pickle.dumps(flat_model)).parameters(), plain.parameters())
    loaded = torch.load(io.BytesIO(saved(flat_model.state_dict())))
    assert same(loaded.values(), plain.state_dict().values())


def test_copies_are_independent(flat_model):
    other = copy.deepcopy(flat_model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert same(flat_model.parameters(), network().parameters())


@pytest.mark.parametrize(
    "leave",
    [
        lambda model: model.double(),
        lambda model: model[0].double() and model.double(),
        lambda model: model.to(memory_format=torch.channels_last),
        lambda model: model.load_state_dict(network(2).state_dict(), assign=True),
        lambda model: model.__setitem__(4, network(2)[4]),
        lambda model: setattr(model[4].weight, "data", torch.ones(3, 20)),
        lambda model: setattr(model[0].weight, "data", model[0].weight.data.transpose(2, 3)),
    ],
)
def test_parameters_that_left_the_buffer_move_again(flat_model, leave):
    leave(flat_model)
    values = bits(flat_model.parameters())
    flatten_(list(flat_model.parameters()))
    assert is_flat(flat_model.parameters())
    assert same(values, flat_model.parameters())


def test_a_parameter_with_gaps_is_not_in_the_buffer(flat_model):
    flat_model[4].bias.data = flat_model[4].bias.data[::2]  # the last one, so that all places stay
    assert not is_flat(flat_model.parameters())


def test_loading_stays_in_the_buffer(flat_model):
    flat_model.load_state_dict(network(2).state_dict())
    assert is_flat(flat_model.parameters())
    assert same(flat_model.parameters(), network(2).parameters())


def test_training_has_the_same_bits(flat_model):
    plain = network()
    for model in (plain, flat_model):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, *batch()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert same(plain.parameters(), flat_model.parameters())
    assert is_flat(flat_model.parameters())


@pytest.mark.parametrize("wrap_first", [True, False])
def test_distributed_data_parallel(tmp_path, wrap_first):
    plain, model = network(), network()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        if not wrap_first:
            flatten_(list(model.parameters()))
        parallel = nn.parallel.DistributedDataParallel(model)
        flatten_(list(model.parameters()))
        for m in (plain, parallel):
            optimizer = torch.optim.SGD(m.parameters(), 0.1)
            for _ in range(2):
                optimizer.zero_grad()
                loss_of(m, *batch()).backward()
                optimizer.step()
        assert is_flat(model.parameters())
        assert same(plain.parameters(), model.parameters())
    finally:
        torch.distributed.destroy_process_group()


def alias_by_view(model):
    return model[4].weight.detach()


def alias_by_parameter(model):
    model[4].bias.data = model[0].bias.data[:3]


def alias_by_array(model):
    array = torch.randn(3).numpy()
    model[4].bias.data = torch.from_numpy(array)
    return array


def alias_by_process(model):
    model.share_memory()


def alias_by_graph(model):
    return loss_of(model, *batch())


@pytest.mark.parametrize(
    "alias", [alias_by_view, alias_by_parameter, alias_by_array, alias_by_process, alias_by_graph]
)
def test_memory_that_something_else_looks_at_stays(alias):
    model = network()
    held = alias(model)
    places = [p.data_ptr() for p in model.parameters()]
    flatten_(list(model.parameters()))
    assert places == [p.data_ptr() for p in model.parameters()]
    assert not is_flat(model.parameters())
    del held


def problem(model):
    """Return the weights of a model, an alpha, and training and validation losses that both depend on it."""
    x, y = (t.to(next(model.parameters()).dtype) if t.is_floating_point() else t for t in batch())
    alpha = torch.tensor([0.5, -0.3], requires_grad=True)

    def loss(shift):
        mix = torch.softmax(alpha.to(x.dtype) + shift, 0)
        return loss_of(model, mix[0] * x + mix[1] * x**2, y).to(alpha.dtype)

    return (
        list(model.parameters()),
        [alpha],
        lambda: loss(torch.tensor([0, 0])),
        lambda: loss(torch.tensor([0, 1])),
    )


def products(model):
    weights, alphas, train, valid = problem(model)
    buffers = [torch.ones_like(w) * 0.1 for w in weights]
    virtual = VirtualStep(
        0.1, 1e-2, 0.9, buffers, max_norm=0.5, still=frozenset({1}), vector_max_norm=1e-3, one_mask=True
    )
    before = bits([*weights, *buffers])
    vector = [torch.cos(torch.arange(w.numel())).view(w.shape) for w in weights]
    found = [*hvp(train, weights, vector, alphas), *alpha_gradient(weights, alphas, train, valid, virtual)]
    assert same(before, [*weights, *buffers])
    return found


def slices(model):
    for p in model.parameters():
        p.data = torch.stack([p.data, p.data], -1)[..., 0]


def some_in_float64(model):
    model[4].double()
    model[3] = nn.Sequential(model[3], ToDouble())


class ToDouble(nn.Module):
    def forward(self, x):
        return x.double()


@pytest.mark.parametrize("arrange", [alias_by_view, slices, some_in_float64], ids=lambda f: f.__name__)
def test_products_do_not_depend_on_where_parameters_lie(arrange):
    flat, other = network(), network()
    held = arrange(other)
    for model in (flat, other):
        flatten_(list(model.parameters()))
    assert is_flat(flat.parameters())
    layouts = [(p.data_ptr(), p.stride(), p.dtype) for p in other.parameters()]
    # The losses of the other arrangements are rounded differently.
    tolerance = {"rtol": 0, "atol": 0} if arrange is alias_by_view else {"rtol": 1e-3, "atol": 1e-6}
    for a, b in zip(products(flat), products(other), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    assert layouts == [(p.data_ptr(), p.stride(), p.dtype) for p in other.parameters()]
    del held


def test_half_precision_takes_steps_in_float32():
    w = torch.tensor([1.0, -2.0], dtype=torch.bfloat16, requires_grad=True)
    a = torch.tensor([2.0], requires_grad=True)
    flatten_([w])
    with pytest.warns(UserWarning, match="or a larger r"):
        (product,) = hvp(lambda: (a * w.float() ** 2).sum(), [w], [torch.ones(2)], [a], r=0.5)
    torch.testing.assert_close(product, torch.tensor([-2.0]), rtol=0.05, atol=0)
    assert w.tolist() == [1, -2]


def test_one_vector_of_several_groups_has_one_norm():
    flat = Flat([torch.ones(3), torch.ones(5, dtype=torch.float64), torch.ones(1)])
    vectors = flat.gather([torch.ones(3), torch.full([5], 2.0), None])
    assert norm(vectors).item() == pytest.approx(23**0.5)
    assert [part.tolist() for part in flat.split(vectors)] == [[1] * 3, [2] * 5, [0]]


def test_sparse_gradients_and_refused_parameters():
    embedding, a = nn.Embedding(4, 2, sparse=True), torch.ones(1, requires_grad=True)
    tokens = torch.tensor([1, 3])
    loss = lambda: (a * embedding(tokens) ** 2).sum()  # noqa: E731
    weights = [embedding.weight]
    vector = torch.autograd.grad(loss(), weights)
    assert vector[0].is_sparse
    (product,) = hvp(loss, weights, vector, [a])
    torch.testing.assert_close(product, 4 * (embedding(tokens) ** 2).sum()[None].detach(), rtol=1e-3, atol=0)
    for bad in (
        torch.ones(2, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
        torch.ones(2, dtype=torch.int64),
    ):
        with pytest.raises(InputError, match="dense and of floating-point"):
            hvp(loss, [bad], [torch.ones(bad.shape)], [a])
    with pytest.raises(InputError, match="at least one tensor"):
        hvp(loss, [], [], [a])
    with pytest.raises(InputError, match="must be positive"):
        hvp(loss, weights, vector, [a], r=0.0)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_short_and_long_vectors_have_their_product(scale):
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    a = torch.tensor([1.0], requires_grad=True)
    (product,) = hvp(lambda: (a * w**2).sum(), [w], [scale * torch.tensor([1.0, 1.0])], [a])
    torch.testing.assert_close(product / scale, torch.tensor([6.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_loss_that_raises_leaves_everything_to_the_bit(at, flatten):
    model = network()
    weights, alphas, train, valid = problem(model)
    if flatten:
        flatten_(weights)
    buffers = [torch.ones_like(w) for w in weights]
    before, calls = bits([*weights, *buffers, *alphas]), 0

    def raising(loss):
        def run():
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyError("a batch")
            return loss()

        return run

    virtual = VirtualStep(0.1, 1e-2, 0.9, buffers, still=frozenset({0}))
    with pytest.raises(KeyError, match="a batch"):
        alpha_gradient(weights, alphas, raising(train), raising(valid), virtual)
    assert calls == at
    assert same(before, [*weights, *buffers, *alphas])
    assert all(w.requires_grad for w in weights)


class Calls(TorchDispatchMode):
    """Records the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip", [None, 0.1])
def test_nothing_waits_for_a_device_before_the_end(clip):
    weights, alphas, train, valid = problem(network())
    flatten_(weights)
    virtual = VirtualStep(0.1, 1e-2, 0.9, [torch.ones_like(w) for w in weights], clip, vector_max_norm=clip)
    with Calls() as calls:
        alpha_gradient(weights, alphas, train, valid, virtual)
    names = [name for name in calls.names if name.startswith("dartsfast::fd") or "local_scalar" in name]
    assert names == [
        "dartsfast::fd_norm",
        "dartsfast::fd_virtual_step_",
        "dartsfast::fd_norm",
        "dartsfast::fd_perturb_",
        "dartsfast::fd_perturb_",
        "dartsfast::fd_quotient",
        "aten::_local_scalar_dense",
    ]


def test_a_vector_of_zeros_and_one_of_nan():
    w, a = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    flatten_([w])
    virtual = VirtualStep(0.1)
    train = lambda: (a.sum() * w**2).sum()  # noqa: E731
    (gradient,) = alpha_gradient([w], [a], train, lambda: (0 * w.sum() + a).sum(), virtual)
    assert gradient.tolist() == [1, 1]
    seen = []
    watched = lambda: seen.append(w.tolist()) or train()  # noqa: E731
    with pytest.raises(DivergedError, match="has diverged"):
        alpha_gradient([w], [a], watched, lambda: (w * torch.nan).sum() + a.sum(), virtual)
    assert seen == [[1, 1, 1]] * 3  # the passes run where the weights are
