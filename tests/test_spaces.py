"""Search spaces: their networks compute what their operations do, and searches leave what they should."""

import json
from types import SimpleNamespace

import pytest
import torch
from op_backends import needs_kernels
from small_runs import cnn_options
from torch import nn

from dartsfast.cnn.genotypes import DARTS_V1, PRIMITIVES
from dartsfast.cnn.model_search import Cell, Network
from dartsfast.cnn.operations import OPS
from dartsfast.cnn.spaces import SPACES, Space, by_edge
from dartsfast.errors import InputError

EDGES = [(j, i + 2) for i in range(4) for j in range(i + 2)]


def network(space, backend="reference"):
    torch.manual_seed(0)
    criterion = nn.CrossEntropyLoss()
    return Network(4, 3, 2, criterion, backend=backend, primitives=space).double()


def test_the_space_darts_is_the_usual_one():
    ours, usual = network(SPACES["darts"]), network(None)
    assert [*ours.state_dict()] == [*usual.state_dict()]
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(ours(x), usual(x))


def test_spaces_as_published():
    """Zela et al., 2020: section 3, and figure 9 for S1, of which a few edges are looked at here."""
    for name, operations in (("s2", 2), ("s3", 3), ("s4", 2)):
        assert len(SPACES[name].normal) == operations and SPACES[name].normal == SPACES[name].reduce
    normal, reduction = (by_edge(SPACES["s1"].of(kind), 14) for kind in (False, True))
    assert normal[0] == ["skip_connect", "dil_conv_3x3"] and normal[13] == ["dil_conv_3x3", "dil_conv_5x5"]
    assert reduction[1] == ["max_pool_3x3", "dil_conv_3x3"] and reduction[6] == [
        "max_pool_3x3",
        "sep_conv_3x3",
    ]
    assert {name for row in normal + reduction for name in row} < {*PRIMITIVES} - {"none"}


@pytest.mark.parametrize("reduction", [False, True])
def test_a_cell_of_s1_mixes_each_edges_own_operations(reduction):
    torch.manual_seed(1)
    rows = SPACES["s1"].of(reduction)
    cell = Cell(4, 4, 4, 4, 4, reduction, False, primitives=rows).double()
    images = [torch.randn(2, 4, 8, 8, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(14, 2, dtype=torch.float64)
    states = [cell.preprocess0(images[0]), cell.preprocess1(images[1])]
    for node in range(4):
        total = 0
        for source, state in enumerate(states):
            edge = EDGES.index((source, node + 2))
            stride = 2 if reduction and source < 2 else 1
            for k, name in enumerate(rows[edge]):
                own = OPS[name](4, stride, False).double()
                if "pool" in name:
                    own = nn.Sequential(own, nn.BatchNorm2d(4, affine=False).double())
                own.load_state_dict(cell._ops[edge]._ops[k].state_dict())
                total = total + weights[edge, k] * own(state)
        states.append(total)
    wanted = torch.cat(states[2:], 1)
    assert torch.allclose(cell(*images, weights), wanted, rtol=0, atol=1e-12)


def test_the_genotype_names_each_edges_own_operations():
    model = network(SPACES["s1"])
    with torch.no_grad():
        for alpha in model.arch_parameters():
            alpha.copy_(torch.tensor([0.0, 1.0]))  # everywhere the second operation, all edges alike
    normal, reduction = ([row[1] for row in SPACES["s1"].of(kind)] for kind in (False, True))
    genotype = model.genotype()
    for kept, names in ((genotype.normal, normal), (genotype.reduce, reduction)):
        assert kept == [(names[EDGES.index((j, i + 2))], j) for i in range(4) for j in (0, 1)]


@needs_kernels
@pytest.mark.parametrize("name", ["s1", "s3", "s4"])
def test_kernels_compute_every_space(name):
    found = []
    for backend in ("reference", "cpu"):
        model = network(SPACES[name], backend)
        torch.manual_seed(2)
        x, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(3, (4,))
        loss = model._loss(x, y)
        loss.backward()
        gradients = [t.grad for t in (*model.parameters(), *model.arch_parameters())]
        found.append([loss.detach(), *gradients, *(b.double() for b in model.buffers())])
    for theirs, ours in zip(*found, strict=True):
        assert (theirs is None) == (ours is None)
        assert theirs is None or (ours - theirs).norm() <= 1e-11 * theirs.norm() + 1e-13


def test_noise_is_standard_normal_and_strided():
    torch.manual_seed(0)
    x = torch.zeros(4, 8, 32, 32, dtype=torch.float64)
    noise = OPS["noise"](8, 2, False)(x)
    assert noise.shape == (4, 8, 16, 16) and noise.dtype == x.dtype
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    torch.manual_seed(0)
    assert torch.equal(OPS["noise"](8, 2, False)(x.to(memory_format=torch.channels_last)), noise)


@pytest.mark.parametrize(
    "space, message",
    [
        (Space([["skip_connect"]] * 13, ["skip_connect"]), "14 edges, and there are operations for 13"),
        (Space([["noise"]] * 13 + [["none"]], ["noise"]), "an operation other than none"),
        (Space([["noise"]] * 13 + [["noise", "none"]], ["noise"]), "as many primitives"),
        (Space(["noise", "noise"], ["noise"]), "differ from each other"),
    ],
)
def test_spaces_that_are_none(space, message):
    with pytest.raises(InputError, match=message):
        network(space)


@pytest.mark.parametrize("name", ["s1", "s4"])
def test_a_search_of_a_space(tmp_path, name):
    pytest.importorskip("rich")
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from dartsfast.runs.page import write_report
    from dartsfast.runs.record import read_run
    from dartsfast.search import CNNConfig, search_cnn

    out = tmp_path / "run"
    options = {**cnn_options(tmp_path), "epochs": 1, "space": name, "out": str(out)}
    result = search_cnn(CNNConfig(**options))
    assert {alpha.shape for alpha in result.alphas.values()} == {(14, 2)}
    again = search_cnn(CNNConfig(), resume=out)  # which is finished
    assert again.genotype == result.genotype
    assert all(torch.equal(again.alphas[k], alpha) for k, alpha in result.alphas.items())
    assert read_run(out).options["space"] == name and not read_run(out).problems
    page = write_report(out).read_text()
    frames = json.loads(page.split('id="frames">')[1].split("</script>")[0])["frames"]
    tables = dict(zip(read_run(out).notes[1]["alphas"], frames[-1]["tables"], strict=True))
    for kind, alphas in (
        ("normal", result.alphas["alphas_normal"]),
        ("reduce", result.alphas["alphas_reduce"]),
    ):
        shown = torch.tensor(tables[f"alphas_{kind}"]["percent"]).view(14, -1)
        wanted = 100 * alphas.double().softmax(-1)
        assert torch.allclose(
            shown[shown > 0].view(14, 2).sort().values.double(), wanted.sort().values, atol=0.01
        )
    assert "50 % at the start" in result.lesson


def test_noise_in_the_second_order_needs_one_mask():
    from dartsfast.search import CNNConfig

    with pytest.raises(InputError, match="--preset paper"):
        CNNConfig(space="s4", order=2).check()
    CNNConfig(space="s4", order=2, preset="paper").check()


def test_a_cell_with_noise_is_not_trained(tmp_path):
    from dartsfast.train.network import build_network

    config = SimpleNamespace(network="cifar", init_channels=4, layers=3, auxiliary=False)
    noisy = DARTS_V1._replace(reduce=[("noise", index) for _, index in DARTS_V1.reduce])
    with pytest.raises(InputError, match="has the operation noise"):
        build_network(config, 10, noisy)


@needs_kernels
def test_a_space_is_explained():
    from dartsfast.explain import explain_cnn, total
    from dartsfast.search import CNNConfig

    sizes = {"init_channels": 4, "layers": 2, "batch_size": 2, "image_size": 8, "backend": "cpu"}
    work = {name: total(explain_cnn(CNNConfig(space=name, **sizes))[0].runs) for name in ("darts", "s2")}
    assert 0 < work["s2"].operations < work["darts"].operations / 3
