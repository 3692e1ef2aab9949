"""Pictures exist, hold what they should, come out the same twice, and leave matplotlib as it was."""

import itertools
import random
import re
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from dartsfast import drawing
from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.cnn import visualize as cnn_visualize
from dartsfast.drawing import alphas, cells, figure
from dartsfast.drawing.layout import lay_out
from dartsfast.errors import InputError
from dartsfast.rnn import genotypes as rnn_genotypes
from dartsfast.rnn import visualize as rnn_visualize

matplotlib = pytest.importorskip("matplotlib")

CNN = namedtuple("CNN", "normal normal_concat reduce reduce_concat")
RNN = namedtuple("RNN", "recurrent concat")
PUBLISHED = {
    f"{module.__name__.split('.')[1]}-{name}": getattr(module, name)
    for module, names in (
        (cnn_genotypes, ("DARTS_V1", "DARTS_V2", "NASNet", "AmoebaNet")),
        (rnn_genotypes, ("DARTS_V1", "DARTS_V2", "ENAS")),
    )
    for name in names
}
TWO = [("sep_conv_3x3", 0), ("skip_connect", 1)]
OPS = ["none", "max_pool_3x3", "sep_conv_3x3"]


def texts(path):
    """Return every text element of an SVG (which must parse)."""
    found = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()).strip() for element in found]


def check_pair(paths, stem):
    """Check that the two files are a PNG of some size and an SVG."""
    png, svg = paths
    assert (png.name, svg.name) == (f"{stem}.png", f"{stem}.svg")
    head = png.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(head[16:20], "big") > 300 and int.from_bytes(head[20:24], "big") > 150
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


@pytest.mark.parametrize("name", PUBLISHED)
def test_genotype_pictures_hold_every_label(name, tmp_path):
    genotype = PUBLISHED[name]
    paths = drawing.draw_genotype(genotype, tmp_path / "cell")
    check_pair(paths, "cell")
    is_cnn = hasattr(genotype, "normal")
    edges = [*genotype.normal, *genotype.reduce] if is_cnn else genotype.recurrent
    found = texts(paths[1])
    for op in {op for op, _ in edges}:
        assert found.count(op) == sum(other == op for other, _ in edges)
    steps = len(genotype.normal) // 2 if is_cnn else len(genotype.recurrent) + 1
    assert set(map(str, range(steps))) <= set(found)
    assert not list(tmp_path.glob(".*"))


def random_cells():
    rng = random.Random(1)
    for steps in (1, 4, 7, 12):
        edges = [(f"sep_conv_{k % 2 * 2 + 3}x3", rng.randrange(2 + k // 2)) for k in range(2 * steps)]
        yield cells._cell_graph(edges, range(2, 2 + steps), "")
        edges = [("sigmoid", rng.randrange(1 + k)) for k in range(steps)]
        yield cells._recurrent_graph(edges, range(1, 1 + steps), "")
    nasnet = cnn_genotypes.NASNet
    yield cells._cell_graph(nasnet.normal, nasnet.normal_concat, "")
    yield cells._cell_graph(nasnet.reduce, nasnet.reduce_concat, "")


@pytest.mark.parametrize("cell", list(random_cells()))
def test_nothing_overlaps(cell):
    boxes, ways = lay_out(cell.nodes, cell.edges)
    for a, b in itertools.combinations(boxes, 2):
        beside = abs(a.x - b.x) >= (a.width + b.width) / 2
        assert beside or abs(a.y - b.y) >= (a.height + b.height) / 2
    assert all(a.x + a.width / 2 < b.x - b.width / 2 for way in ways for a, b in itertools.pairwise(way))
    assert len({way[-2] for way in ways if way[-2].text}) == sum(bool(edge.text) for edge in cell.edges)
    assert boxes[-1].kind == "output"


def test_labels_fit_their_boxes():
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    for op in {*cnn_genotypes.PRIMITIVES, *rnn_genotypes.PRIMITIVES, "conv_7x1_1x7"}:
        text = TextPath((0, 0), op, size=cells._LABEL_SIZE, prop=FontProperties("DejaVu Sans"))
        extents = text.get_extents()
        edge = cells._edge(op, 0, 2)
        assert extents.width / 72 <= edge.width
        assert extents.height / 72 <= edge.height


@pytest.mark.parametrize("draw", ["genotype", "alphas", "curves"])
def test_same_input_same_bytes(draw, tmp_path):
    def write(folder):
        if draw == "genotype":
            return drawing.draw_genotype(cnn_genotypes.AmoebaNet, tmp_path / folder / "a")
        if draw == "alphas":
            return drawing.draw_alphas({"normal": (torch.eye(3), OPS, OPS)}, tmp_path / folder / "a")
        return drawing.draw_curves([{"train_loss": 1.0}, {"train_loss": 0.5}], tmp_path / folder / "a")

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(write, "pqrs"))
    assert len({png.read_bytes() for png, _ in runs}) == 1
    assert len({svg.read_bytes() for _, svg in runs}) == 1
    assert b"<dc:date>" not in runs[0][1].read_bytes()


@pytest.mark.parametrize(
    ("genotype", "names"),
    [
        (
            CNN(TWO, [2], [("skip_connect", 2), ("none", 0)], [2]),
            r"reduction cell entry 0 .*'skip_connect', 2",
        ),
        (CNN([("skip_connect", -1), TWO[1]], [2], TWO, [2]), r"normal cell entry 0 .*-1.* 0 to 1"),
        (CNN(TWO[:1], [2], TWO, [2]), r"normal cell are .*two"),
        (CNN([], [], TWO, [2]), r"normal cell are \[\]"),
        (CNN(TWO, [3], TWO, [2]), r"concat of the normal cell names node 3; its nodes run from 2 to 2"),
        (CNN(TWO, [], TWO, [2]), r"concat of the normal cell is \[\]"),
        (CNN(TWO, None, TWO, [2]), r"concat of the normal cell is None"),
        (CNN([("sep_conv_3x3",), TWO[1]], [2], TWO, [2]), r"entry 0 .*pair"),
        (CNN([("sep_conv_3x3", "0"), TWO[1]], [2], TWO, [2]), r"entry 0 .*'0'"),
        (RNN([("tanh", 0), ("relu", 2)], [1, 2]), r"recurrent cell entry 1 .*\('relu', 2\).* 0 to 1"),
        (RNN([("tanh", 0)], [2]), r"concat of the recurrent cell names node 2"),
        (RNN([], [1]), r"recurrent cell are \[\]"),
        (TWO, r"fields normal.*recurrent"),
    ],
)
def test_bad_genotypes_are_named(genotype, names, tmp_path):
    with pytest.raises(InputError, match=names):
        drawing.draw_genotype(genotype, tmp_path / "cell")
    assert not list(tmp_path.iterdir())


def test_suffixes_are_honoured_dots_are_kept_and_folders_made(tmp_path):
    genotype = RNN([("tanh", 0)], [0, 1])
    heads = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF", ".PDF": b"%PDF"}
    for suffix, head in heads.items():
        path = tmp_path / f"new{suffix}" / f"cell{suffix}"
        assert drawing.draw_genotype(genotype, path) == [path] == list(path.parent.iterdir())
        first = path.read_bytes()
        assert first.startswith(head)
        drawing.draw_genotype(genotype, path)
        assert path.read_bytes() == first
    for suffix in (".jpg", ".eps", ".TIFF"):
        with pytest.raises(InputError, match=r"pictures are \.png, \.svg, \.pdf.*change the suffix"):
            drawing.draw_genotype(genotype, tmp_path / f"cell{suffix}")
    check_pair(drawing.draw_genotype(genotype, str(tmp_path / "epoch.5")), "epoch.5")
    with pytest.raises(InputError, match="file name"):
        drawing.draw_genotype(genotype, "")


def test_a_killed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    genotype = RNN([("tanh", 0)], [1])
    png, _ = drawing.draw_genotype(genotype, tmp_path / "cell")
    before = png.read_bytes()

    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(figure.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        drawing.draw_genotype(RNN([("relu", 0), ("relu", 1)], [1]), tmp_path / "cell")
    assert png.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell.png", "cell.svg"]


@pytest.mark.parametrize("cell", list(random_cells()))
def test_no_arrowhead_covers_another(cell):
    from matplotlib.patches import FancyArrowPatch

    ax = figure.full_axes(figure.new_figure())
    boxes, ways = lay_out(cell.nodes, cell.edges)
    for way, tip in zip(ways, cells.tips_of(ways), strict=True):
        cells._draw_edge(ax, way, tip)
    figure.fit(ax.figure, ax, 20, 20)
    heads = []
    for arrow, way in zip(ax.patches, ways, strict=True):
        assert isinstance(arrow, FancyArrowPatch)
        paths, fillable = arrow._get_path_in_displaycoord()
        (head,) = (path for path, filled in zip(paths, fillable, strict=True) if filled)
        x, y = ax.transData.inverted().transform(head.vertices[:3]).T
        target = way[-1]
        assert abs(x.max() - (target.x - target.width / 2)) < 0.03
        assert target.y - target.height / 2 < y.min() and y.max() < target.y + target.height / 2
        heads.append((target, y.min(), y.max()))
    for (a, top, bottom), (b, other_top, other_bottom) in itertools.combinations(heads, 2):
        assert a is not b or bottom < other_top or other_bottom < top


def drawn_alphas(tmp_path, alphas, **options):
    """Draw and return the paths and every text of the SVG."""
    paths = drawing.draw_alphas(alphas, tmp_path / "alphas", **options)
    check_pair(paths, "alphas")
    return paths, texts(paths[1])


def test_alphas(tmp_path, monkeypatch):
    raw = torch.tensor([[0.0, 0.0, 0.0], [5.0, -5.0, 0.0]], requires_grad=True)
    panels = {"normal": (raw, OPS, ["0→2", "1→2"]), "reduce": (np.zeros((1, 2)), OPS[:2], ["0→2"])}
    shapes, add_numbers = [], figure.add_numbers

    def seen(ax, places, numbers, *style):
        shapes.extend(numbers)
        add_numbers(ax, places, numbers, *style)

    monkeypatch.setattr(alphas, "add_numbers", seen)
    _, found = drawn_alphas(tmp_path, panels, title="epoch $5")
    found += shapes
    assert {"normal", "reduce", "→", *OPS, "epoch $5", "softmax(α), %"} <= set(found)
    # 50.0 is the upper end of the colour scale as well.
    assert [found.count(number) for number in ("33.3", "99.3", "50.0", "0.7")] == [3, 1, 3, 1]
    assert found.count("→") == 3 and "in the genotype" not in found


@pytest.mark.parametrize("number", ["12.50", "7", "→"])
def test_numbers_look_as_texts_do(number):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    inks = []
    for write in (
        lambda ax: figure.add_numbers(ax, [(0.5, 0.4)], [number], ["#d62728"], 12),
        lambda ax: ax.text(0.5, 0.4, number, fontsize=12, color="#d62728", ha="center", va="center"),
    ):
        canvas = FigureCanvasAgg(figure.new_figure(facecolor="white"))
        ax = figure.full_axes(canvas.figure)
        figure.fit(canvas.figure, ax, 1, 1)
        write(ax)
        canvas.draw()
        inks.append(255 - np.asarray(canvas.buffer_rgba())[..., 1].astype(int))  # [dpi, dpi]
    ours, texts = (np.argwhere(ink > 60) for ink in inks)
    assert abs(ours.mean(0)[1] - texts.mean(0)[1]) < 1, "at the same place"
    assert abs(sum(ours[[0, -1], 0]) / 2 - 0.4 * figure.DPI) < (1 if number != "→" else 4), "in the middle"
    assert np.abs(np.ptp(ours, axis=0) - np.ptp(texts, axis=0)).max() < 2.5, "of the same size"
    assert inks[0].sum() == pytest.approx(inks[1].sum(), rel=0.1), "as thick"


def test_numbers_stand_on_their_cells():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    panel = alphas._panel("w", torch.zeros(1, 3), OPS, ["0→1"], left=1.0, top=1.0)
    canvas = FigureCanvasAgg(figure.new_figure())
    ax = figure.full_axes(canvas.figure)
    alphas._draw_panel(ax, panel, 30.0, 40.0)
    figure.fit(canvas.figure, ax, 4, 3)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)  # [height, width, 3]
    for x in panel.x:
        width, height = np.array(alphas._CELL) * figure.DPI
        left, top = int(x * figure.DPI), int(panel.y[0] * figure.DPI)
        # Without the cell's white edges, and without the line below its number.
        cell = pixels[top + 6 : top + int(height) - 7, left + 6 : left + int(width) - 6]
        dark = np.argwhere(cell.sum(-1) < cell.sum(-1).max() - 150)
        assert len(dark) > 30, "a number is there"
        assert np.abs(dark.mean(0) + 6 - np.array((height, width)) / 2).max() < 3, "in the middle"


def test_edges_of_alphas_are_set_as_in_the_cell(tmp_path):
    table = (torch.zeros(2, 3), OPS, ["c_{k-2}→0", "c_{k-1}→0"])
    (_, svg), _ = drawn_alphas(tmp_path, {"normal": table})
    cell = drawing.draw_genotype(cnn_genotypes.DARTS_V2, tmp_path / "cell")[1].read_text(encoding="utf-8")
    inputs = [
        set(re.findall(r"<!-- (\$c_.*?) -->", text)) - {"$c_k$"} for text in (svg.read_text("utf-8"), cell)
    ]
    assert inputs[0] == inputs[1] == {"$c_{k-2}$", "$c_{k-1}$"}


def test_what_the_genotype_keeps_is_framed_and_the_strongest_underlined(tmp_path):
    ops, edges = ["none", "tanh", "relu"], ["0→1", "0→2", "1→2"]
    from matplotlib.collections import PathCollection

    raw = np.log([[0.8, 0.05, 0.15], [0.2, 0.5, 0.3], [0.2, 0.1, 0.7]])
    panel = alphas._panel("w", raw, ops, edges, [("relu", 0), ("relu", 1)], left=1.0, top=1.0)
    assert panel.taken == {(0, 2), (2, 2)}
    assert panel.x[0] > panel.x[2] > panel.x[1], "none stands last"
    assert panel.x[0] - panel.x[2] > 1.2 * (panel.x[2] - panel.x[1]), "and apart"
    assert panel.y[2] - panel.y[1] < panel.y[1] - panel.y[0], "the edges of a node stand together"
    _, found = drawn_alphas(tmp_path, {"w": (raw, ops, edges, [("relu", 0), ("relu", 1)])})
    assert {"in the genotype", "strongest of its edge"} <= set(found)
    ax = figure.full_axes(figure.new_figure())
    alphas._draw_panel(ax, panel, 5.0, 70.0)
    cells_, lines, frames = (drawn for drawn in ax.collections if not isinstance(drawn, PathCollection))
    columns = [int(line[:, 0].mean() > panel.x[2]) for line in lines.get_segments()]
    assert sorted(columns) == [0, 1, 1], "none is no edge's strongest"
    assert len(frames.get_paths()) == 2
    shades = cells_.get_facecolors().reshape(3, 3, 4)
    assert (shades[:, 0] == shades[0, 0]).all(), "none takes no part in the colours"
    assert not (shades[2, 2] == shades[2, 1]).all()


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.02])
def test_the_colours_span_what_the_alphas_span(tmp_path, spread):
    raw = torch.tensor([[9.0, -spread, spread, 0.0]])
    weights = 100 * raw.softmax(-1)[0, 1:]
    ops = ["none", "tanh", "relu", "identity"]
    _, found = drawn_alphas(tmp_path, {"w": (raw - torch.tensor([9.0, 0, 0, 0]), ops, ["0→1"])})
    weights = 100 * torch.tensor([0.0, -spread, spread, 0.0]).softmax(-1)[1:]
    at = found.index("softmax(α), %")
    low, high = map(float, found[at - 2 : at])
    assert low == pytest.approx(weights.min().item(), abs=0.06)
    assert high == pytest.approx(weights.max().item(), abs=0.06)


@pytest.mark.parametrize(
    ("alphas", "names"),
    [
        ({}, "no alphas"),
        ({"normal": (torch.zeros(2, 3), OPS, ["0→2"])}, r"'normal' have shape \(2, 3\) for 1 edges"),
        ({"normal": (torch.full((1, 3), torch.nan), OPS, ["0→2"])}, "'normal' have no softmax"),
    ],
)
def test_bad_alphas_are_named(alphas, names, tmp_path):
    with pytest.raises(InputError, match=names):
        drawing.draw_alphas(alphas, tmp_path / "alphas")


def test_curves(tmp_path):
    history = [
        {"epoch": epoch, "train_loss": 1 / epoch, "valid_loss": 2 / epoch, "train_acc": 50.0, "genotype": "x"}
        for epoch in range(1, 6)
    ]
    history[-1] |= {"valid_acc": 60.0, "valid_ppl": 90}
    paths = drawing.draw_curves(history, tmp_path / "curves")
    check_pair(paths, "curves")
    assert {"loss", "accuracy, %", "perplexity", "train", "valid", "epoch"} <= set(texts(paths[1]))
    with pytest.raises(InputError, match="1 epochs has nothing to draw"):
        drawing.draw_curves([{"lr": 0.1}], tmp_path / "none")
    with pytest.raises(InputError, match="entry 1 has epoch 'one'"):
        drawing.draw_curves([{"epoch": "one", "train_loss": 1.0}], tmp_path / "none")


def test_one_format_alone(tmp_path):
    genotype = RNN([("tanh", 0)], [1])
    table = {"w": (torch.zeros(1, 3), OPS, ["0→2"])}
    for suffix in ("png", "svg", "pdf"):
        files = [tmp_path / f"{name}.{suffix}" for name in ("cell", "alphas", "curves")]
        assert drawing.draw_genotype(genotype, files[0]) == files[:1]
        assert drawing.draw_alphas(table, files[1]) == files[1:2]
        assert drawing.draw_curves([{"train_loss": 1.0}], files[2]) == files[2:]
    assert len(list(tmp_path.iterdir())) == 9


def test_matplotlib_stays_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    drawing.draw_genotype(cnn_genotypes.DARTS_V2, tmp_path / "cell")
    drawing.draw_alphas({"normal": (torch.zeros(1, 3), OPS, ["0→2"])}, tmp_path / "alphas")
    drawing.draw_curves([{"train_loss": 1.0}], tmp_path / "curves")
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path):
    code = """if True:
        import sys
        from dartsfast import drawing
        from dartsfast.cnn import genotypes
        import dartsfast.cnn.visualize, dartsfast.rnn.visualize
        assert "matplotlib" not in sys.modules
        drawing.draw_genotype(genotypes.DARTS_V2, sys.argv[1])
        assert "matplotlib.pyplot" not in sys.modules
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "cell")], check=True)


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'dartsfast\[search\]'"):
        drawing.draw_curves([{"train_loss": 1.0}], tmp_path / "curves")


def test_original_scripts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_pair(cnn_visualize.plot(cnn_genotypes.DARTS_V2.normal, "mine"), "mine")
    check_pair(rnn_visualize.plot(rnn_genotypes.DARTS_V2.recurrent, "mine"), "mine")
    cnn_visualize.main(["DARTS_V2"])
    rnn_visualize.main(["ENAS"])
    names = ["normal.png", "normal.svg", "reduction.png", "reduction.svg", "recurrent.png", "recurrent.svg"]
    assert capsys.readouterr().out.split() == names
    assert texts("recurrent.svg").count("relu") == 7
    for main in (cnn_visualize.main, rnn_visualize.main):
        with pytest.raises(InputError, match=r"no genotype 'DARTS_V3'.*DARTS_V1, DARTS_V2"):
            main(["DARTS_V3"])
