"""Searches in the space of NAS-Bench-201: against formulas, to the end, and what is refused."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from op_backends import needs_kernels
from small_runs import cnn_options, same, stopped_and_resumed

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.candidates import SelectCNNConfig
from dartsfast.cli import main
from dartsfast.cnn.genotypes import NASBENCH201, Architecture
from dartsfast.cnn.model_search import Network
from dartsfast.cnn.spaces import SPACES, OneCell
from dartsfast.descendants import models
from dartsfast.descendants.served import Served
from dartsfast.drawing.alphas import kept_places
from dartsfast.drawing.cells import cells_of
from dartsfast.drawing.layout import lay_out
from dartsfast.errors import InputError
from dartsfast.genotypes import CNN, as_genotype, genotype_from_json, genotype_to_json, resolve_genotype
from dartsfast.methods.pc_darts import PCDARTS
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.search import CNNConfig, search_cnn
from dartsfast.search.cnn import CNNSearch

BACKENDS = ["reference", pytest.param("cpu", marks=needs_kernels)]
CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
PAIRS = [(source, node) for node in (1, 2, 3) for source in range(node)]


class Plain:
    """The network by its tensors alone: a convolution or a norm is one call of torch.nn.functional."""

    def __init__(self, state, cells):
        self.state = {name: value.detach().clone() for name, value in state.items()}
        self.cells = cells
        self.weights = {n: v for n, v in self.state.items() if n.endswith(("weight", "bias"))}
        self.alphas = self.state["alphas_normal"].requires_grad_()

    def leaves(self):
        return [self.alphas, *(w.requires_grad_() for w in self.weights.values())]

    def norm(self, name, x):
        mean, var = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        affine = self.weights.get(f"{name}.weight"), self.weights.get(f"{name}.bias")
        return F.batch_norm(x, mean, var, *affine, training=True)

    def conv(self, name, x, stride=1):
        kernel = self.weights[f"{name}.op.1.weight"]
        out = F.conv2d(F.relu(x), kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return self.norm(f"{name}.op.2", out)

    def edge(self, name, x, row):
        ones = torch.ones_like(x)
        inside = F.avg_pool2d(ones, 3, 1, 1)  # a ninth of the pixels that a window really has
        return (
            row[1] * x
            + row[2] * self.conv(f"{name}.2", x)
            + row[3] * self.conv(f"{name}.3", x)
            + row[4] * F.avg_pool2d(x, 3, 1, 1) / inside
        )

    def logits(self, x, rows):
        x = self.norm("stem.1", F.conv2d(x, self.weights["stem.0.weight"], padding=1))
        for cell in range(3 * self.cells):
            if cell in (self.cells, 2 * self.cells):
                block = f"cells.{cell}.preprocess"
                short = F.conv2d(F.avg_pool2d(x, 2), self.weights[f"{block}.downsample.1.weight"])
                x = short + self.conv(f"{block}.conv_b", self.conv(f"{block}.conv_a", x, 2))
            nodes = [x, 0, 0, 0]
            for k, (source, node) in enumerate(PAIRS):
                nodes[node] = nodes[node] + self.edge(f"cells.{cell}._ops.{k}._ops", nodes[source], rows[k])
            x = nodes[3]
        features = F.relu(self.norm("global_pooling.0", x)).mean((2, 3))
        return F.linear(features, self.weights["classifier.weight"], self.weights["classifier.bias"])


def softmax(alphas):
    return alphas.exp() / alphas.exp().sum(-1, keepdim=True)


def gumbel(alphas):
    """One operation an edge, with the gradient of the softmax at temperature 10."""
    noise = -torch.empty(alphas.shape, dtype=alphas.dtype).exponential_().log()
    soft = softmax((softmax(alphas).log() + noise) / 10)
    hard = (soft == soft.max(-1, keepdim=True).values).double()
    return hard * (1 + soft - soft.detach())


def dirichlet(alphas):
    return torch.distributions.Dirichlet(torch.where(alphas > 0, alphas + 1, alphas.exp())).rsample()


def distance(alphas):
    beta = torch.where(alphas > 0, alphas + 1, alphas.exp())
    flat = torch.distributions.Dirichlet(torch.ones_like(beta))
    return 0.25 * torch.distributions.kl_divergence(torch.distributions.Dirichlet(beta), flat).sum()


METHODS = {
    "darts": (softmax, lambda alphas: 0.0, {}),
    "gdas": (gumbel, lambda alphas: 0.0, {}),
    "drnas": (dirichlet, distance, {"drnas_kl": 0.25}),
}


def options(tmp_path, **more):
    small = {name: value for name, value in cnn_options(tmp_path).items() if name != "layers"}
    return {**small, "space": "nasbench201", "stage_cells": 1, **more}


def started(tmp_path, **more):
    search = CNNSearch(CNNConfig(**options(tmp_path, init_channels=4, **more)))
    search.model.double().train()
    return search


def batches():
    torch.manual_seed(7)
    images = torch.randn(4, 5, 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(2, (4, 5))
    return [(images[k], labels[k], images[k + 1], labels[k + 1]) for k in (0, 2)]


def unrolled(plain, batch, rate, sgd):
    """Return equations 7 and 8 of DARTS: the gradient after a step, less the finite difference's product."""
    x, y, xv, yv = batch
    alphas, *weights = plain.leaves()

    def gradients(images, labels, of):
        loss = F.cross_entropy(plain.logits(images, softmax(alphas)), labels)
        return torch.autograd.grad(loss, of)

    def add(vectors, scale):
        with torch.no_grad():
            for weight, vector in zip(weights, vectors, strict=True):
                weight += scale * vector

    before = [weight.detach().clone() for weight in weights]
    momenta = [sgd.state[w].get("momentum_buffer", torch.zeros_like(w)) for w in weights]
    slopes = gradients(x, y, weights)
    add([0.9 * m + g + 3e-4 * w for m, g, w in zip(momenta, slopes, before, strict=True)], -rate)
    direct, *vector = gradients(xv, yv, [alphas, *weights])
    radius = 0.01 / torch.cat([v.flatten() for v in vector]).norm()
    found = []
    for sign in (1, -1):
        add([b - w for b, w in zip(before, [w.detach().clone() for w in weights], strict=True)], 1)
        add(vector, sign * radius)
        found.append(gradients(x, y, [alphas])[0])
    add([b - w for b, w in zip(before, [w.detach().clone() for w in weights], strict=True)], 1)
    return direct - rate * (found[0] - found[1]) / (2 * radius)


def counted(monkeypatch):
    """Return a list that sums on kernels are noted in, of however small images."""
    calls, compute = [], Served.compute
    monkeypatch.setattr(models, "_FEWEST_VALUES", 0)
    monkeypatch.setattr(models, "_LEAST_WORK", 0)
    monkeypatch.setattr(Served, "compute", lambda *given: (calls.append(given), compute(*given))[1])
    return calls


def gap(ours, theirs):
    return ((ours - theirs).norm() / (theirs.norm() + 1e-6)).item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("method", "order", "cells"), [("darts", 1, 2), ("gdas", 1, 1), ("drnas", 1, 1), ("darts", 2, 1)]
)
def test_first_iterations_against_the_formulas(tmp_path, monkeypatch, method, order, cells, backend):
    served = counted(monkeypatch)
    draw, penalty, own = METHODS[method]
    sizes = {"stage_cells": cells, "order": order, "backend": backend}
    search = started(tmp_path, method=method, **sizes, **own)
    plain = Plain(search.model.state_dict(), cells)
    alphas, *weights = plain.leaves()
    sgd = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam([alphas], 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    given = batches()
    torch.manual_seed(5)
    found = [search.iteration(*batch) for batch in given]
    assert bool(served) == (backend == "cpu")
    torch.manual_seed(5)
    for (x, y, xv, yv), (logits, loss) in zip(given, found, strict=True):
        if order == 2:
            alphas.grad = unrolled(plain, (x, y, xv, yv), 0.025, sgd)
        else:
            valid = F.cross_entropy(plain.logits(xv, draw(alphas)), yv) + penalty(alphas)
            (alphas.grad,) = torch.autograd.grad(valid, [alphas])
        adam.step()
        sgd.zero_grad()
        wanted = plain.logits(x, draw(alphas))
        F.cross_entropy(wanted, y).backward()
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        sgd.step()
        assert gap(logits, wanted) < 1e-9
        assert abs(loss - F.cross_entropy(wanted, y)) < 1e-9
    ours = search.model.state_dict()
    for name, value in plain.state.items():
        if order == 1 or "running" not in name:  # passes of the second order are not all alike in statistics
            assert gap(ours[name].double(), value.detach().double()) < 1e-8 or "num_batches" in name, name


def test_the_network_of_the_benchmark():
    """Section 2.1 and table 1 of the paper: 16, 32 and 64 channels, five cells each; a cell of six edges."""
    model = Network(16, 10, 5, F.cross_entropy, primitives=SPACES["nasbench201"])
    assert [(type(c.preprocess).__name__, c._ops[0]._ops[3].op[1].out_channels) for c in model.cells] == [
        (("Identity" if k else "ResidualBlock") if stage else "Identity", 16 * 2**stage)
        for stage in range(3)
        for k in range(5)
    ]
    assert [a.shape for a in model.arch_parameters()] == [(6, 5)] and model.classifier.in_features == 64
    convolutions = sum(5 * 6 * 10 * (16 * 2**k) ** 2 for k in range(3))  # 1x1 and 3x3 of every edge
    blocks = sum(c**2 * (2 * 9 + 4 * 9 + 2) + 8 * c for c in (16, 32))  # and their affine norms
    ends = 3 * 16 * 9 + 2 * 16 + 2 * 64 + 64 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == convolutions + blocks + ends
    twin = model.new()
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(twin.alphas_normal, model.alphas_normal)


def test_the_strongest_operation_of_every_edge_is_kept_none_too():
    model = Network(4, 2, 1, F.cross_entropy, primitives=SPACES["nasbench201"])
    wanted = [3, 0, 2, 1, 0, 4]
    with torch.no_grad():
        model.alphas_normal.copy_(F.one_hot(torch.tensor(wanted), 5))
    assert str(model.genotype()) == CELL
    with torch.no_grad():
        model.alphas_normal[2, 1] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        model.genotype()


def test_a_cell_round_trips_through_text_json_and_files(tmp_path):
    cell = as_genotype(f" {CELL}\n")
    assert cell == Architecture(CELL) and str(cell) == CELL and Architecture.of(cell.nodes()) == cell
    assert cell.nodes() == [
        [("nor_conv_3x3", 0)],
        [("none", 0), ("nor_conv_1x1", 1)],
        [("skip_connect", 0), ("none", 1), ("avg_pool_3x3", 2)],
    ]
    (tmp_path / "genotype.json").write_text(json.dumps(genotype_to_json(cell)))
    (tmp_path / "cell.txt").write_text(CELL)
    assert genotype_from_json(genotype_to_json(cell)) == cell
    for place in (tmp_path, tmp_path / "genotype.json", tmp_path / "cell.txt", CELL):
        assert resolve_genotype(str(place)) == cell


@pytest.mark.parametrize(
    "text, message",
    [
        (
            CELL.removesuffix("avg_pool_3x3~2|"),
            "is no cell of NAS-Bench-201: write the operations of all six",
        ),
        (CELL.replace("~2", "~3"), "is no cell of NAS-Bench-201"),
        (CELL.replace("none~0|nor_conv_1x1~1", "nor_conv_1x1~1|none~0"), "is no cell of NAS-Bench-201"),
        (CELL.replace("~0", "~00"), "is no cell of NAS-Bench-201"),
        (f"{CELL}+|none~0|", "is no cell of NAS-Bench-201"),
        (
            CELL.replace("nor_conv_3x3", "nor_conv_5x5"),
            "unknown operation 'nor_conv_5x5', known are none, skip",
        ),
    ],
)
def test_texts_that_are_no_cell(text, message):
    with pytest.raises(InputError, match=message):
        as_genotype(text, known=NASBENCH201)


def test_the_picture_has_every_edge_but_none():
    (cell,) = cells_of(CELL)
    assert [node.text for node in cell.nodes] == ["0", "1", "2", "3"]
    assert [(e.source, e.target, e.text) for e in cell.edges] == [
        (0, 1, "nor_conv_3x3"), (1, 2, "nor_conv_1x1"), (0, 3, "skip_connect"), (2, 3, "avg_pool_3x3"),
    ]  # fmt: skip
    entries = list(itertools.chain(*Architecture(CELL).nodes()))
    edges = [f"{source}→{node}" for source, node in PAIRS]
    assert kept_places(NASBENCH201, edges, entries) == {(0, 3), (1, 0), (2, 2), (3, 1), (4, 0), (5, 4)}


def test_a_cell_whose_last_node_nothing_reaches_has_a_picture():
    (cell,) = cells_of("|skip_connect~0|+|skip_connect~0|none~1|+|none~0|none~1|none~2|")
    boxes, _ = lay_out(cell.nodes, cell.edges)
    places = [(box.x, box.y) for box in boxes]
    assert len(set(places)) == len(places) and max(boxes, key=lambda box: box.x).text == "3"


@pytest.mark.parametrize(
    ("method", "backend"), [("darts", "reference"), pytest.param("gdas", "cpu", marks=needs_kernels)]
)
def test_a_stopped_search_goes_on_to_the_same_bits(tmp_path, undrawn, monkeypatch, method, backend):
    counted(monkeypatch)
    given = options(tmp_path, method=method, backend=backend)
    result = search_cnn(CNNConfig(**given, out=str(tmp_path / "whole")))
    again = stopped_and_resumed(given, tmp_path / "killed", [(0, 1), (1, 0)])
    same(load_checkpoint(result.out, "cnn"), load_checkpoint(again.out, "cnn"))
    assert again.genotype == result.genotype == resolve_genotype(str(again.out))
    finished = search_cnn(CNNConfig(), resume=again.out)
    assert torch.equal(finished.alphas["alphas_normal"], result.alphas["alphas_normal"])
    assert [*result.alphas] == ["alphas_normal"]


def test_a_search_on_the_command_line_leaves_the_cell(tmp_path, capsys):
    words = [f"--{name}={value}" for name, value in options(tmp_path, arch_learning_rate=0.1).items()]
    assert main(["search", "cnn", *words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    cell = json.loads((tmp_path / "run/genotype.json").read_text())["architecture"]
    assert "cnn search in space nasbench201" in said and f"\n{cell}\n" in said
    assert cell in (tmp_path / "run/report.html").read_text()
    notes = json.loads((tmp_path / "run/epochs.jsonl").read_text().splitlines()[-1])["alphas"]
    table = notes["alphas_normal"]
    assert table["operations"] == NASBENCH201 and [*notes] == ["alphas_normal"]
    chosen = [NASBENCH201[max(range(5), key=row.__getitem__)] for row in table["weights"]]
    assert chosen == [op for node in Architecture(cell).nodes() for op, _ in node]
    assert max(abs(w) for row in table["weights"] for w in row) > 0.05  # they have moved from 1e-3
    assert (tmp_path / "run/cell.png").exists() and (tmp_path / "run/alphas.png").exists()
    assert main(["draw", str(tmp_path / "run"), "--out", str(tmp_path / "cell.svg")]) == 0


@needs_kernels
@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_operations_run_on_kernels(monkeypatch, memory):
    """And where images are recomputed nothing but the time and the memory changes."""
    served = counted(monkeypatch)
    found = []
    for backend in ("reference", "cpu"):
        torch.manual_seed(0)
        options = {"primitives": SPACES["nasbench201"], "backend": backend, "memory": memory}
        model = Network(4, 3, 1, F.cross_entropy, **options).double()
        images = torch.randn(8, 3, 8, 8, dtype=torch.float64)
        loss = model._loss(images, torch.arange(8) % 3)
        loss.backward()
        assert bool(served) == (backend == "cpu")
        found.append([loss.detach(), *(t.grad for t in (*model.parameters(), *model.arch_parameters()))])
        found[-1] += [buffer.double() for buffer in model.buffers()]
    assert all(gap(ours, theirs) < 1e-9 for ours, theirs in zip(*found, strict=True))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"method": "pc-darts"}, "--method pc-darts searches the cells of DARTS.*darts, gdas, drnas"),
        ({"method": "p-darts", "epochs": 1}, "--method p-darts searches the cells of DARTS"),
        ({"layers": 5}, "--stage_cells says how many"),
        ({"memory": "cell"}, "choose one of store, recompute"),
        ({"memory": "1GB"}, "choose one of store, recompute"),
        ({"select": "perturbation"}, "select perturbation is of the cells of DARTS"),
        ({"auxiliary_skip": True}, "auxiliary_skip True is of the cells"),
        ({"storage_dtype": "bfloat16"}, "storage_dtype bfloat16 is of the cells"),
        ({"stop": "skips=2"}, "stop skips=2 is of the cells"),
        ({"space": "s2", "stage_cells": 2}, "stage_cells is of --space nasbench201, and the space is s2"),
    ],
)
def test_options_that_do_not_go_with_the_space(given, message):
    with pytest.raises(InputError, match=message):
        CNNConfig(**{"space": "nasbench201", **given}).check()


def test_what_a_cell_or_its_network_cannot_be_used_for(tmp_path, capsys):
    commands = {
        ("train", "cnn", CELL): "is none of CNNs.*such as `dartsfast query nasbench201`",
        ("export", CELL, "--format", "module"): "whose network is not exported",
        ("explain", "cnn", "--space", "nasbench201"): "choose another space",
    }
    for words, message in commands.items():
        assert main([*words]) == 2
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(capsys.readouterr().err)
    with pytest.raises(InputError, match="not trained here"):
        SelectCNNConfig(search_space="nasbench201").check()
    with pytest.raises(InputError, match="is none of CNNs"):
        as_genotype(CELL, CNN)
    with pytest.raises(InputError, match="mixed_op, skip_zero and storage_dtype"):
        PCDARTS(8, 2, 1, F.cross_entropy, primitives=SPACES["nasbench201"], share=4)
    with pytest.raises(InputError, match="6 edges, and there are operations for 5"):
        Network(8, 2, 1, F.cross_entropy, primitives=OneCell([["none", "skip_connect"]] * 5))
    with pytest.raises(InputError, match="cannot halve a 9x8 image"):
        Network(4, 2, 1, F.cross_entropy, primitives=SPACES["nasbench201"])(torch.randn(2, 3, 9, 8))
