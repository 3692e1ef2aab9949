"""What imports what in the package: one way, by the layers that docs/architecture.md draws."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"dartsfast": ROOT / "dartsfast", "dartsfast.kernels": ROOT / "kernels"}


def modules():
    """Return the file of every module by its name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            if package != "dartsfast" or parts[0] != "kernels":  # where that is a link, they are there twice
                found[name] = path
    return found


def imported(source, known):
    """Return those of the modules ``known`` that a source imports, within functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed here"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names <= known else names | {node.module}
    for name in named(source):
        begin, brace, _ = name.partition("{")
        found |= {one for one in known if begin and one.startswith(begin)} if brace else {name}
    return found & known


def named(source):
    """Return what is given to ``import_module``: a name, the beginning of one and then a {, or only a {."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else node.args[:1]
            found.append("".join(part.value if isinstance(part, ast.Constant) else "{" for part in parts))
    return found


def graph():
    files = modules()
    return {name: imported(path.read_text(), files.keys()) for name, path in files.items()}


def with_packages(edges):
    """Return the graph with the packages that are imported because a module in them is, from outside."""
    found = {}
    for name, targets in edges.items():
        parts = [target.split(".") for target in targets]
        packages = {".".join(part[:n]) for part in parts for n in range(1, len(part))}
        found[name] = targets | {p for p in packages if p != name and not name.startswith(f"{p}.")}
    return found


def cycle(edges):
    """Return modules that import each other in a circle, in order; None where none do."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def picture():
    """Return the layers of the picture, the highest first, each a list of modules and packages."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines = re.search(r"## Layers\n[^#]*?\n\n((?:    .*\n)+)", text)[1].splitlines()
    return [re.split(r"  +", line.strip())[0].split(", ") for line in lines]


def placed(module, layers):
    """Return (place from above, name) of what the picture names a module by, the longest that fits."""
    name = module.removeprefix("dartsfast.").replace("__main__", "cli")
    fits = [
        (len(one), place, one)
        for place, layer in enumerate(layers)
        for one in layer
        if name == one or name.startswith(f"{one}.")
    ]
    assert fits, f"{module} is in no layer of docs/architecture.md"
    return max(fits)[1:]


def upward(edges, layers):
    """Return the imports that do not go down the layers, nor stay within what the picture names."""
    found = []
    for name, targets in edges.items():
        for target in targets - {"dartsfast"}:
            (here, own), (there, other) = placed(name, layers), placed(target, layers)
            if own != other and there <= here:
                found.append(f"{name} -> {target}")
    return found


def test_no_two_modules_import_each_other():
    assert cycle(with_packages(graph())) is None


def test_modules_that_import_by_a_name_from_elsewhere_are_known():
    free = {
        name for name, path in modules().items() if any(n.startswith("{") for n in named(path.read_text()))
    }
    assert free == {"dartsfast.data.photos"}  # other packages


def test_imports_go_down_the_layers():
    edges = graph()
    # Everything imports the package, which imports one of its own only where that is asked for.
    assert edges.pop("dartsfast") == {"dartsfast.descendants"}
    assert upward(edges, picture()) == []


def test_every_name_in_the_picture_is_there():
    known = {name.removeprefix("dartsfast.") for name in modules()}
    names = [name for layer in picture() for name in layer]
    assert set(names) <= known and len(set(names)) == len(names)


KNOWN = {"dartsfast", "dartsfast.ops", "dartsfast.ops.gemm", "dartsfast.oracle.gemm", "dartsfast.errors"}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("import dartsfast.ops.gemm", {"dartsfast.ops.gemm"}),
        ("from dartsfast.ops import gemm", {"dartsfast.ops.gemm"}),
        ("from dartsfast.ops import gemm, gemm_", {"dartsfast.ops", "dartsfast.ops.gemm"}),
        ("from dartsfast import ops as other, errors", {"dartsfast.ops", "dartsfast.errors"}),
        ("def f():\n    if x:\n        from dartsfast.errors import InputError", {"dartsfast.errors"}),
        ("importlib.import_module('dartsfast.ops')", {"dartsfast.ops"}),
        ("import_module(f'dartsfast.oracle.{name}')", {"dartsfast.oracle.gemm"}),
        ("import torch", set()),
    ],
)
def test_every_way_to_import_is_seen(source, wanted):
    assert imported(source, KNOWN) == wanted


def test_a_circle_through_a_function_and_a_package_is_seen():
    """A loader asks for what the operators share: importing that imports the operators, which ask for it."""
    edges = graph()
    del edges["dartsfast"]
    edges["dartsfast.backends.native"] |= imported(
        "def load():\n    from dartsfast.ops.functional import define_functional", edges.keys()
    )
    assert {"dartsfast.backends.native", "dartsfast.ops"} <= set(cycle(with_packages(edges)))
    assert "dartsfast.backends.native -> dartsfast.ops.functional" in upward(edges, picture())


def test_what_ships_is_what_there_is():
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)[1]
    there = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert re.findall(r'"([\w.]+)"', listed) == sorted(there)


def test_what_ships_beside_modules_is_named():
    text = (ROOT / "pyproject.toml").read_text()
    table = re.search(r"\[tool\.setuptools\.package-data\]\n((?:.+\n)+)", text)[1]
    listed = {
        (ROOT / package.replace(".", "/") / name)
        for package, names in re.findall(r'"([\w.]+)" = \[(.*)\]', table)
        for name in re.findall(r'"([^"]+)"', names)
    }
    files = {
        path for path in (ROOT / "dartsfast").rglob("*") if path.is_file() and "__pycache__" not in str(path)
    }
    assert {path for path in files if path.suffix not in (".py", ".so", ".pyc")} == listed


def test_the_map_names_everything():
    """CONTRIBUTING's table has every package, and every file that is in none."""
    table = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`(?:dartsfast/)?(\w+)(?:\.py)?`", table))
    there = {name.split(".")[1] for name in modules() if "." in name}
    assert there - {"__main__"} <= named
