"""The methods: their first iterations against plain torch, searches that are killed, and what options say."""

import copy
import subprocess

import pytest
import torch
import torch.nn.functional as F
from op_backends import needs_kernels
from small_runs import cnn_options, same
from test_search import command, kill_after
from torch import nn

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast import restore
from dartsfast.errors import InputError
from dartsfast.methods.eigenvalue import largest_eigenvalue, monitored, stops
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.search import CNNConfig, search_cnn
from dartsfast.search.cnn import CNNSearch

EDGES = [(j, i) for i in range(4) for j in range(i + 2)]  # (source, node)


def mixed(edge, x, row):
    return sum(w * op(x) for w, op in zip(row, edge._ops, strict=True))


def partly_mixed(edge, x, row):
    """A quarter of the channels mixed, the others as they are; channel 4 a + b is then channel C/4 b + a."""
    operations, weight = row
    C = x.shape[1]
    around = x[:, C // 4 :]
    if edge.mixed.stride == 2:
        around = F.max_pool2d(around, 2)
    both = torch.cat([mixed(edge.mixed, x[:, : C // 4], operations), around], 1)
    return weight * both[:, [C // 4 * (k % 4) + k // 4 for k in range(C)]]


def forward(model, x, rows, edge=mixed):
    """Return the logits of a network on its own modules, ``rows`` being what its edges take by kind."""
    s0 = s1 = model.stem(x)
    for cell in model.cells:
        states = [cell.preprocess0(s0), cell.preprocess1(s1)]
        for node in range(4):
            into = [k for k, (_, end) in enumerate(EDGES) if end == node]
            mine = rows[cell.reduction]
            states.append(sum(edge(cell._ops[k], states[EDGES[k][0]], mine[k]) for k in into))
        s0, s1 = s1, torch.cat(states[2:], 1)
    return model.classifier(s1.mean((2, 3)))


class DARTS:
    edge = staticmethod(mixed)

    def rows(self, model):
        return {
            kind: a.softmax(-1) for kind, a in ((False, model.alphas_normal), (True, model.alphas_reduce))
        }

    def penalty(self, model):
        return 0.0


class GDAS(DARTS):
    tau = 10.0

    def rows(self, model):
        rows = {}
        for kind, alphas in ((False, model.alphas_normal), (True, model.alphas_reduce)):
            gumbel = -torch.empty(alphas.shape, dtype=alphas.dtype).exponential_().log()
            soft = F.softmax((F.log_softmax(alphas, -1) + gumbel) / self.tau, -1)
            rows[kind] = []
            for row in soft:
                k = row.argmax()
                straight = 1 - row[k].detach() + row[k]
                rows[kind].append([straight if i == k else 0.0 for i in range(len(row))])
        return rows


class DrNAS(DARTS):
    def beta(self, alphas):
        return torch.where(alphas > 0, alphas + 1, alphas.exp())

    def rows(self, model):
        kinds = {False: model.alphas_normal, True: model.alphas_reduce}
        return {kind: torch.distributions.Dirichlet(self.beta(a)).rsample() for kind, a in kinds.items()}

    def penalty(self, model):
        total = 0.0
        for alphas in (model.alphas_normal, model.alphas_reduce):
            beta = self.beta(alphas)
            whole = beta.sum(-1)
            flat = torch.lgamma(torch.tensor(float(alphas.shape[1]), dtype=beta.dtype))
            inner = ((beta - 1) * (torch.digamma(beta) - torch.digamma(whole)[:, None])).sum(-1)
            total = total + (torch.lgamma(whole) - torch.lgamma(beta).sum(-1) - flat + inner).sum()
        return 0.25 * total


class PCDARTS(DARTS):
    edge = staticmethod(partly_mixed)

    def rows(self, model):
        rows = {}
        for kind, name in ((False, "normal"), (True, "reduce")):
            alphas, betas = (
                getattr(model, f"alphas_{name}").softmax(-1),
                getattr(model, f"betas_{name}").exp(),
            )
            into = [[k for k, (_, end) in enumerate(EDGES) if end == node] for _, node in EDGES]
            rows[kind] = [(alphas[k], betas[k] / betas[into[k]].sum()) for k in range(14)]
        return rows


METHODS = {
    "darts": (DARTS(), {}),
    "gdas": (GDAS(), {}),
    "drnas": (DrNAS(), {"drnas_kl": 0.25}),
    "pc-darts": (PCDARTS(), {"init_channels": 4}),
    "p-darts": (DARTS(), {"epochs": 3}),
}


def started(tmp_path, method, **options):
    sizes = {**cnn_options(tmp_path), "layers": 3, **METHODS[method][1], **options}
    search = CNNSearch(CNNConfig(method=method, **sizes))
    search.model.double().train()
    return search


def batches(count):
    torch.manual_seed(7)
    pairs = [torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(2, (4,))]
    return [
        [*(t.clone() for t in pairs), torch.randn_like(pairs[0]), torch.randint(2, (4,))]
        for _ in range(count)
    ]


def gap(ours, theirs):
    return ((ours - theirs).norm() / (theirs.norm() + 1e-6)).item()


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernels)])
@pytest.mark.parametrize("method", METHODS)
def test_first_iterations_against_plain_torch(tmp_path, method, backend):
    search = started(tmp_path, method, backend=backend)
    twin, (plain, _), config = copy.deepcopy(search.model), METHODS[method], search.config
    twin._backend = "reference"
    restore(twin)
    sgd = torch.optim.SGD(twin.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    alphas = list(twin.arch_parameters())
    adam = torch.optim.Adam(alphas, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    given = batches(2)
    torch.manual_seed(5)
    found = [search.iteration(*batch) for batch in given]
    torch.manual_seed(5)
    for (x, y, xv, yv), (logits, loss) in zip(given, found, strict=True):
        adam.zero_grad()
        valid = F.cross_entropy(forward(twin, xv, plain.rows(twin), plain.edge), yv)
        gradients = torch.autograd.grad(valid + plain.penalty(twin), alphas)
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient
        adam.step()
        sgd.zero_grad()
        wanted = forward(twin, x, plain.rows(twin), plain.edge)
        F.cross_entropy(wanted, y).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), config.grad_clip)
        sgd.step()
        assert gap(logits, wanted) < 1e-10
        assert abs(loss - F.cross_entropy(wanted, y)) < 1e-10
    ours = search.model.state_dict()
    for name, value in twin.state_dict().items():
        assert gap(ours[name].double(), value.double()) < 1e-9, name


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernels)])
def test_beta_decay_and_smoothing_against_plain_torch(tmp_path, backend):
    options = {"beta_decay": 50.0, "smooth": 0.3, "epochs": 10, "backend": backend}
    search = started(tmp_path, "darts", **options)
    search.epoch = 4
    twin, plain = copy.deepcopy(search.model), DARTS()
    twin._backend = "reference"
    (x, y, xv, yv), alphas = batches(1)[0], [twin.alphas_normal, twin.alphas_reduce]
    adam = torch.optim.Adam(alphas, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    term = sum(a.exp().sum(-1).log().mean() for a in alphas)
    loss = F.cross_entropy(forward(twin, xv, plain.rows(twin)), yv) + 50 * 4 / 10 * term
    for alpha, gradient in zip(alphas, torch.autograd.grad(loss, alphas), strict=True):
        alpha.grad = gradient
    adam.step()
    torch.manual_seed(5)
    epsilon = 0.03 + (0.3 - 0.03) * 4 / 10
    near = {}
    for kind, rows in plain.rows(twin).items():
        rows = (rows.detach() + (2 * torch.rand_like(rows) - 1) * epsilon).clamp(0, 1)
        near[kind] = rows / rows.sum(-1, keepdim=True)
    wanted = forward(twin, x, near)
    torch.manual_seed(5)
    before = search.model.alphas_normal.grad
    logits, _ = search.iteration(x, y, xv, yv)
    assert gap(logits, wanted) < 1e-9
    for ours, theirs in zip(search.model.arch_parameters(), alphas, strict=True):
        assert gap(ours, theirs) < 1e-9
    assert before is None and search.model._adjust is None
    assert torch.equal(search.model.eval()(x), search.model(x))


def test_smoothing_keeps_an_edge_that_is_cut_to_nothing():
    from dartsfast.methods.smooth_darts import moved

    rows = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    near = moved(rows, torch.tensor([[-0.5, -0.8], [0.1, -0.5]]))
    assert near.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_the_temperature_falls_linearly():
    search = CNNConfig(method="gdas")
    from dartsfast.methods import new_network

    model = new_network(search.but(init_channels=4, layers=1), 2)
    taus = []
    for epoch in range(5):
        model.begin_epoch(epoch, 5)
        taus.append(model.tau)
    assert taus == pytest.approx([10, 7.525, 5.05, 2.575, 0.1])
    model.begin_epoch(0, 1)
    assert model.tau == 10


def test_gdas_draws_operations_as_often_as_softmax_says():
    from dartsfast.methods.gdas import drawn

    torch.manual_seed(0)
    alphas = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64).expand(20000, 3)
    noise = -torch.empty_like(alphas).exponential_().log()
    rows = drawn(alphas, noise, 0.3)
    assert set(rows.unique().tolist()) == {0.0, 1.0} and (rows.sum(-1) == 1).all()
    assert torch.allclose(rows.mean(0), alphas[0].softmax(-1), atol=0.015)  # four standard errors


@pytest.mark.parametrize("method", ["gdas", "drnas"])
def test_what_is_validated_is_not_drawn(tmp_path, method):
    model = started(tmp_path, method).model.eval()
    x = batches(1)[0][0]
    assert torch.equal(model(x), model(x))
    (rows,) = model.mixing_weights([False])
    alphas = model.alphas_normal.detach()
    if method == "gdas":
        assert torch.equal(rows.argmax(-1), alphas.argmax(-1)) and (rows.max(-1).values == 1).all()
    else:
        beta = F.elu(alphas) + 1
        assert torch.allclose(rows, beta / beta.sum(-1, keepdim=True))
    assert not torch.equal(*(model.train()(x) for _ in range(2)))


def test_betas_decide_which_edges_are_kept(tmp_path):
    model = started(tmp_path, "pc-darts").model
    with torch.no_grad():
        model.alphas_normal[:, 4] = 1.0  # sep_conv_3x3 everywhere
        model.alphas_normal[EDGES.index((0, 3)), 4] = 1.2
        model.alphas_normal[EDGES.index((1, 3)), 4] = 1.1
        model.betas_normal.zero_()
        model.betas_normal[EDGES.index((0, 3))] = -2.0  # the strongest operation, on a weak edge
        model.betas_normal[EDGES.index((3, 3))] = 2.0
    kept = model.genotype().normal
    assert kept[6] == ("sep_conv_3x3", 3) and kept[7] == ("sep_conv_3x3", 1)


@pytest.mark.parametrize("method", ["gdas", "drnas", "pc-darts"])
def test_another_network_of_a_method_is_one(tmp_path, method):
    model = started(tmp_path, method).model
    other = model.new()
    assert type(other) is type(model) and other.state_dict().keys() == model.state_dict().keys()
    for ours, theirs in zip(model.arch_parameters(), other.arch_parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours is not theirs


@pytest.mark.parametrize("method", ["gdas", "pc-darts"])
def test_a_killed_search_of_a_method_goes_on_to_the_same_bits(tmp_path, method):
    """With a temperature that goes by the epoch, and betas, after an epoch without steps of the alphas."""
    options = {**cnn_options(tmp_path), **METHODS[method][1], "method": method, "warmup_epochs": 1}
    options |= {"checkpoint_seconds": 0, "backend": "reference"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = search_cnn(CNNConfig(**options, out=str(whole)))
    kill_after(3, command("cnn", killed, options), killed)  # while the weights warm up
    resume = command("cnn", killed, None, "--resume", "--checkpoint_seconds=0")
    kill_after(4, resume, killed)
    done = subprocess.run(resume, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    same(load_checkpoint(whole, "cnn"), load_checkpoint(killed, "cnn"))
    again = search_cnn(CNNConfig(), resume=whole)
    assert again.alphas.keys() == result.alphas.keys()
    assert all(torch.equal(again.alphas[name], alpha) for name, alpha in result.alphas.items())
    assert ("betas_reduce" in again.alphas) == (method == "pc-darts")


def test_alphas_stay_while_the_weights_warm_up(tmp_path):
    search = started(tmp_path, "darts", warmup_epochs=1)
    search.model.float()
    before = copy.deepcopy(search.model.state_dict())
    for _ in search.iterations():
        pass
    after = search.model.state_dict()
    assert torch.equal(after["alphas_normal"], before["alphas_normal"])
    assert not torch.equal(after["stem.0.weight"], before["stem.0.weight"])
    search.epoch, search.step = 1, 0
    next(iter(search.iterations()))
    assert not torch.equal(search.model.alphas_normal, before["alphas_normal"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gdas_tau_max": 5.0}, "gdas_tau_max is of --method gdas, and the method is darts"),
        ({"method": "gdas", "pc_share": 2}, "pc_share is of --method pc-darts"),
        ({"method": "drnas", "order": 2}, "drnas draws differs.*--preset paper"),
        ({"warmup_epochs": 50}, "nothing would be searched"),
        ({"method": "gdas", "gdas_tau_min": 0.0}, "gdas_tau_min must be above 0"),
        ({"method": "pc-darts", "smooth": 0.3}, "smooth moves softmax"),
        ({"method": "gdas", "monitor": "eigenvalue"}, "the eigenvalue is of a loss"),
        ({"method": "enas"}, "method must be one of darts, pc-darts, gdas, drnas, p-darts"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(InputError, match=message):
        CNNConfig(**options).check()


def test_channels_that_cannot_be_shared():
    from dartsfast.methods import new_network

    with pytest.raises(InputError, match="6 channels cannot be cut into 4"):
        new_network(CNNConfig(method="pc-darts", init_channels=6), 2)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernels)])
def test_the_largest_eigenvalue_against_the_whole_hessian(tmp_path, backend):
    search = started(tmp_path, "darts", space="s2", backend=backend)
    model, (x, y, *_) = search.model, batches(1)[0]
    twin = copy.deepcopy(model)
    twin._backend = "reference"
    alphas = list(twin.arch_parameters())
    loss = F.cross_entropy(forward(twin, x, DARTS().rows(twin)), y)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, alphas, create_graph=True)])
    rows = [torch.autograd.grad(g, alphas, retain_graph=True) for g in gradient]
    hessian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    wanted = torch.linalg.eigvalsh(hessian)[-1].item()
    before, training = copy.deepcopy(model.state_dict()), model.training
    found = largest_eigenvalue(F.cross_entropy(forward(twin, x, DARTS().rows(twin)), y), alphas, steps=56)
    assert found == pytest.approx(wanted, rel=1e-9)
    torch.manual_seed(4)
    few, drawn = monitored(model, x, y), torch.rand(1)
    assert 0.9 * wanted < few <= 1.000001 * wanted
    same(model.state_dict(), before)
    torch.manual_seed(4)
    assert torch.equal(torch.rand(1), drawn) and model.training == training and model.backend == backend
    assert all(w.requires_grad for w in model.parameters())


def test_where_robust_darts_would_stop():
    flat = [0.2] * 5
    assert not stops(flat + [0.5] * 4)  # not ten epochs yet
    assert stops(flat + [0.28] * 5) and not stops(flat + [0.25] * 5)
    assert not stops([-0.1] * 5 + [-0.2] * 5)


def test_a_search_logs_the_eigenvalue(tmp_path, undrawn):
    options = {**cnn_options(tmp_path), "space": "s2", "monitor": "eigenvalue", "epochs": 1}
    plain = search_cnn(CNNConfig(**{**options, "monitor": "none"}, out=str(tmp_path / "plain")))
    result = search_cnn(CNNConfig(**options, out=str(tmp_path / "run")))
    assert result.history[0]["eigenvalue"] > 0
    assert all(torch.equal(plain.alphas[name], alpha) for name, alpha in result.alphas.items())
    assert plain.history[0]["valid_loss"] == result.history[0]["valid_loss"]
