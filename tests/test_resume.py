"""Going on with a run: on the data it began with, wherever they lie, and from what can be its state only."""

import copy
import math
import re
import shutil

import pytest
import torch
from small_runs import CONFIG, OPTIONS, begun, digests, same

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.cli import main
from dartsfast.data import absolute_images, absolute_text, check_fingerprint, fingerprint
from dartsfast.data.images import ImageTask, TensorImages
from dartsfast.errors import InputError
from dartsfast.runs import begin as beginning
from dartsfast.runs.checkpoint import load_checkpoint, save_checkpoint
from dartsfast.search import CNNConfig, RNNConfig, search_cnn, search_rnn
from dartsfast.search.cnn import CNNSearch
from dartsfast.search.rnn import RNNSearch

pytestmark = pytest.mark.usefixtures("undrawn")

SEARCH = {"cnn": search_cnn, "rnn": search_rnn}
CLASS = {"cnn": CNNSearch, "rnn": RNNSearch}


def begin(kind, tmp_path, **changes):
    """Leave a run of one iteration in tmp_path/run; return its configuration."""
    config = CONFIG[kind](**{**OPTIONS[kind](tmp_path), **changes})
    (tmp_path / "run").mkdir()
    search = CLASS[kind](config)
    save_checkpoint(tmp_path / "run", begun(search, 1))
    return config


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A configuration and the state after two iterations for each kind."""
    found = {}
    for kind in OPTIONS:
        config = CONFIG[kind](**OPTIONS[kind](tmp_path_factory.mktemp(kind)))
        found[kind] = config, copy.deepcopy(begun(CLASS[kind](config)))
    return found


def edit(state, path, value):
    """Return a copy of ``state`` with ``value`` at ``path``; DELETE deletes, a function is applied."""
    state = copy.deepcopy(state)
    *way, last = path
    place = state
    for key in way:
        place = place[key]
    if value == "DELETE":
        del place[last]
    else:
        place[last] = value(place[last]) if callable(value) else value
    return state


NAN = math.nan
EDITS = [
    (("epoch",), "x", "epoch is 'x', not of type int"),
    (("epoch",), 99, "epoch is 99"),
    (("epoch",), -1, "epoch is -1"),
    (("epoch",), True, "epoch is True, not of type int"),
    (("epoch",), 1.0, "epoch is 1.0, not of type int"),
    (("epoch",), 1, "history has 0 epochs, and 1 are done"),
    (("epoch",), 2, "epoch is 2 and step 2"),
    (("step",), 1000, "step is 1000"),
    (("step",), -3, "step is -3"),
    (("step",), None, "step is None"),
    (("step",), 0, "sums"),
    (("count",), NAN, "count is nan"),
    (("count",), 1e9, "1e[+]09"),
    (("count",), 0.0, "count|after 0 images"),
    (("seconds",), -1.0, "seconds is -1.0"),
    (("seconds",), math.inf, "seconds is inf"),
    (("sums",), {}, "sums lacks"),
    (("sums", "loss"), NAN, "sums.loss is nan"),
    (("sums", "loss"), "DELETE", "sums lacks loss|sums lacks"),
    (("sums", "other"), 1.0, "sums has, unknown here, other"),
    (("history",), [{"epoch": 0}], "history has 1 epochs"),
    (("history",), {}, "history is {}"),
    (("random",), [], "random has 0 entries"),
    (("random", 0), lambda x: x[:-1], r"random\[0\] is torch.uint8"),
    (("random", 0), lambda x: x.new_full(x.shape, 255), "(?i)invalid|generator|state"),
    (("extra",), {}, "extra lacks"),
    (("extra", "more"), 1, "extra has, unknown here, more"),
    (("model",), {}, "model lacks"),
    (("model", "more"), torch.zeros(1), "model has, unknown here, more"),
    (("optimizer",), {}, "optimizer lacks param_groups, state"),
    (("optimizer", "param_groups", 0, "lr"), "x", "lr is 'x'"),
    (("optimizer", "param_groups", 0, "lr"), 7.0, "learning rate is 7.0|7.0, not"),
    (("optimizer", "param_groups", 0, "params"), [0], "params has 1 entries"),
    (("optimizer", "param_groups", 0, "weight_decay"), 0.5, "weight_decay is 0.5"),
    (("arch_optimizer", "state"), {}, "arch_optimizer.state has 0 entries"),
    (("arch_optimizer", "state", 7), {}, "none of the"),
    (("arch_optimizer", "state", 0, "exp_avg"), torch.zeros(1), "exp_avg is torch.float32"),
    (("arch_optimizer", "state", 0, "exp_avg"), "DELETE", "lacks exp_avg"),
    (("arch_optimizer", "state", 0, "exp_avg_sq"), lambda x: x * NAN, "exp_avg_sq is not finite"),
    (("arch_optimizer", "state", 0, "step"), torch.tensor(-1.0), "step is -1.0"),
    (("arch_optimizer", "param_groups", 0, "lr"), 1.0, "lr is 1.0"),
    (("config",), None, "config is None"),
    (("config", "more"), 1, "config has, unknown here, more"),
    (("config", "batch_size"), "3", "batch_size must be of type int, got '3'"),
    (("config", "epochs"), -1, "epochs must be above 0"),
    (("config", "order"), 3, "order must be one of 1, 2"),
    (("config", "seed"), 1.5, "seed must be of type int"),
    (("data",), None, "data is None"),
    (("data",), {"train": {}}, "data.train lacks"),
    (("kind",), "DELETE", "is of a `None`, not of a `search"),
    (("more",), 1, "state has, unknown here, more"),
    (("step",), "DELETE", "state lacks step"),
]
OF_KIND = {
    "cnn": [
        (
            ("model", "alphas_normal"),
            lambda x: x[:13],
            r"alphas_normal is .* \[13, 8\], not .*\[14, 8\]",
        ),
        (("model", "alphas_normal"), lambda x: x.double(), "alphas_normal is torch.float64"),
        (("model", "alphas_normal"), lambda x: x * NAN, "alphas_normal is not finite"),
        (("model", "alphas_normal"), "DELETE", "model lacks alphas_normal"),
        (("model", "stem.0.weight"), "text", "stem.0.weight is 'text', not of type Tensor"),
        (("optimizer", "state", 0, "momentum_buffer"), None, "momentum_buffer is None"),
        (("optimizer", "state"), {}, "optimizer.state has 0 entries"),
        (("extra", "scheduler", "last_epoch"), 1, "last_epoch is 1, not 0"),
        (("extra", "scheduler", "T_max"), 9, "T_max is 9"),
        (("extra", "scheduler", "_last_lr"), [0.5], "the learning rate is 0.5"),
        (("config", "layers"), 2, "model (lacks|has)"),
    ],
    "rnn": [
        (("model", "weights"), lambda x: x[:, :3], r"weights is torch.float32 \[36, 3\], not .*\[36, 5\]"),
        (("model", "weights"), "DELETE", "model lacks weights"),
        (("extra", "position"), 10**6, "position|at row 1000000"),
        (("extra", "position"), -5, "position is -5"),
        (("extra", "hidden"), None, "extra.hidden is None"),
        (("extra", "hidden", 0), lambda x: x[:, :2], "extra.hidden"),
        (("extra", "hidden_valid", 0), lambda x: x * NAN, "not finite"),
        (("extra", "lengths"), torch.zeros(3), "extra.lengths is torch.float32"),
    ],
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_checkpoint_with_other_values_is_refused_in_words(tmp_path, monkeypatch, states, kind):
    config, state = states[kind]
    fresh, build = CLASS[kind](config), beginning._run_again
    monkeypatch.setattr(  # one for all that would be built alike
        beginning, "_run_again", lambda *given: fresh if given[2] == config else build(*given)
    )
    wrong = []
    for number, (path, value, message) in enumerate(EDITS + OF_KIND[kind]):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_checkpoint(folder, edit(state, path, value))
        before = digests(folder)
        with pytest.raises(InputError) as caught:
            SEARCH[kind](config, resume=folder)
        if not re.search(message, str(caught.value)) or "\n" in str(caught.value):
            wrong.append((path, message, str(caught.value)))
        after = digests(folder)
        after.pop(str(folder / "run.lock"), None)
        assert after == before
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("kind", OPTIONS)
def test_values_of_a_finished_search_are_looked_at_too(tmp_path, states, kind):
    config, state = states[kind]
    done = {**state, "epoch": 2, "step": 0, "sums": {}, "count": 0.0}
    done["history"] = [{"epoch": 0, "valid_loss": 1.0}, {"epoch": 1, "valid_loss": 1.0}]
    alpha = next(iter(CLASS[kind].alpha_shapes(config)))
    edits = [
        (("history", 1, "epoch"), 5, r"history\[1\]"),
        (("history", 1, "valid_loss"), NAN, "valid_loss is nan"),
        (("history", 1, "valid_loss"), "x", "'valid_loss': 'x', not a number"),
        (("model", alpha), lambda x: x[1:], f"{alpha} is torch.float32"),
        (("model", alpha), "DELETE", f"{alpha} is None"),
        (("epoch",), 3, "epoch is 3"),
    ]
    for path, value, message in edits:
        save_checkpoint(tmp_path, edit(done, path, value))
        with pytest.raises(InputError, match=message):
            SEARCH[kind](config, resume=tmp_path)


def test_another_text_of_the_same_vocabulary_is_refused(tmp_path):
    config = begin("rnn", tmp_path)
    text = tmp_path / "text" / "train.txt"
    *rest, first, second = text.read_text().splitlines()  # their words have all been seen before
    for lines, message in (
        ([*rest, second, first], r"train text: other tokens \(600, as before\)\)"),
        ([*rest, first, second, first], r"train text: 610 tokens, were 600\)"),
        ([*rest, first, f"{second} new"], "vocabulary: 14 words, were 13"),
    ):
        text.write_text("\n".join(lines) + "\n")
        with pytest.raises(InputError, match=f"not those that the run began with .*{message}"):
            search_rnn(config, resume=tmp_path / "run")
    text.write_text("\n".join([*rest, first, second]) + "\n")
    (tmp_path / "text" / "valid.txt").write_text(f"{first}\n" * 30)
    with pytest.raises(InputError, match=r"\(valid text: other tokens"):
        search_rnn(config, resume=tmp_path / "run")


def test_another_picture_is_refused_by_name(tmp_path):
    config = begin("cnn", tmp_path)
    class0 = tmp_path / "images" / "train" / "class0"
    kept = (class0 / "3.png").read_bytes()
    resume = tmp_path / "run"
    (class0 / "3.png").unlink()
    with pytest.raises(InputError, match=r"\(train: 1 picture removed: class0/3.png\)"):
        search_cnn(config, resume=resume)
    (class0 / "3.png").write_bytes((class0 / "0.png").read_bytes())
    with pytest.raises(InputError, match=r"\(train: 1 picture changed: class0/3.png\)"):
        search_cnn(config, resume=resume)
    (class0 / "3.png").write_bytes(kept)
    for i in range(6, 10):
        (class0 / f"{i}.png").write_bytes(kept)
    named = "class0/6.png, class0/7.png, class0/8.png and 1 more"
    with pytest.raises(InputError, match=rf"\(train: 4 pictures added: {named}\)"):
        search_cnn(config, resume=resume)
    for part in ("train", "val"):
        shutil.move(tmp_path / "images" / part / "class0", tmp_path / "images" / part / "a")
    named = "class0/0.png, class0/1.png, class0/2.png and 3 more; train: 10 pictures added: a/0.png"
    with pytest.raises(InputError, match=rf"\(train: 6 pictures removed: {named}"):
        search_cnn(config, resume=resume)


def test_large_folders_are_named_by_class_and_read_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "LISTED", 10)
    monkeypatch.setattr(fingerprint, "READ", 100)
    monkeypatch.setattr(fingerprint, "SAMPLED", 4)
    read = []
    content = fingerprint._content
    monkeypatch.setattr(fingerprint, "_content", lambda path: read.append(path) or content(path))
    config = begin("cnn", tmp_path)
    assert 0 < len(read) < 18
    class0 = tmp_path / "images" / "train" / "class0"
    (class0 / "3.png").write_bytes((class0 / "3.png").read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"1 class changed: class0 \(6 pictures, were 6\)"):
        search_cnn(config, resume=tmp_path / "run")
    (class0 / "3.png").unlink()
    with pytest.raises(InputError, match=r"1 class changed: class0 \(5 pictures, were 6\)"):
        search_cnn(config, resume=tmp_path / "run")


def test_images_in_memory_are_compared_by_class():
    def task(images, targets):
        halves = TensorImages(images, targets)
        stats = torch.zeros(3), torch.ones(3)
        return ImageTask("memory", ["cat", "dog"], halves, halves, halves, *stats)

    images = torch.randint(0, 255, (6, 3, 4, 4), dtype=torch.uint8)
    targets = torch.tensor([0, 1, 0, 1, 0, 1])
    kept = fingerprint.image_fingerprint(task(images, targets))
    check_fingerprint("memory", kept, fingerprint.image_fingerprint(task(images.clone(), targets)))
    changed = images.clone()
    changed[3, 2, 1, 1] ^= 1
    with pytest.raises(InputError, match=r"train: 1 class changed: dog \(3 pictures, were 3\)"):
        check_fingerprint("memory", kept, fingerprint.image_fingerprint(task(changed, targets)))
    order = torch.tensor([2, 1, 0, 3, 4, 5])  # two cats change places
    with pytest.raises(InputError, match="cat"):
        check_fingerprint("memory", kept, fingerprint.image_fingerprint(task(images[order], targets)))


def test_other_kinds_of_data_are_refused(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    config = begin("cnn", tmp_path, data="photos", max_images=9, image_size=32)
    other = f"imagefolder:{tmp_path / 'images'}"
    with pytest.raises(InputError, match="train: 18 pictures, were 4,000; valid: not there now"):
        search_cnn(CNNConfig(**{**vars(config), "data": other}), resume=tmp_path / "run")


@pytest.mark.parametrize("kind", OPTIONS)
def test_data_that_have_moved_are_named_at_resume(tmp_path, monkeypatch, kind):
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path)
    options = OPTIONS[kind](tmp_path / "old")
    options["data"] = options["data"].replace(f"{tmp_path}/", "")  # relative to here
    assert str(tmp_path) not in options["data"]
    whole = SEARCH[kind](CONFIG[kind](**options, out="whole"))
    config = CLASS[kind].settle(CONFIG[kind](**options))
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run", begun(CLASS[kind](config), 1))
    stored = load_checkpoint(whole.out, kind)["config"]["data"]
    assert stored == config.data
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.move(tmp_path / "old", tmp_path / "new")
    with pytest.raises(InputError, match="cannot go on with the run in .*/run.*give --data"):
        SEARCH[kind](CONFIG[kind](), resume=tmp_path / "run")
    moved = options["data"].replace("old/", "../new/")
    again = SEARCH[kind](CONFIG[kind](data=moved), resume="../run")
    for name, alpha in whole.alphas.items():
        assert torch.equal(alpha, again.alphas[name])
    ours, theirs = (load_checkpoint(folder, kind) for folder in (tmp_path / "run", tmp_path / "whole"))
    assert "new" in ours["config"].pop("data")
    del theirs["config"]["data"]
    same(theirs, ours)


def test_data_are_named_so_that_they_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec, expected in (
        ("photos", "photos"),
        ("cifar10:folder", f"cifar10:{tmp_path}/folder"),
        ("imagefolder:~/folder", f"imagefolder:{tmp_path}/folder"),
        ("folder", f"cifar10:{tmp_path}/folder"),
        ("nowhere", "nowhere"),
        ("/abs:olute", "/abs:olute"),
    ):
        assert absolute_images(spec) == expected
    for spec, expected in (("pydoc", "pydoc"), ("./pydoc", f"{tmp_path}/pydoc"), ("~/a", f"{tmp_path}/a")):
        assert absolute_text(spec) == expected


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_finished_run_says_so_and_is_left_alone(tmp_path, capsys, kind):
    options = {**OPTIONS[kind](tmp_path), "epochs": 1}
    out = tmp_path / "run"
    first = SEARCH[kind](CONFIG[kind](**options, out=out))  # a path, as scripts give it
    shutil.rmtree(options["data"].removeprefix("imagefolder:"))
    before = digests(out)
    again = SEARCH[kind](CONFIG[kind](), resume=out)
    assert "is finished: 1 epoch is done" in capsys.readouterr().out
    assert again.genotype == first.genotype and repr(again.genotype) == repr(first.genotype)
    same(first.history, again.history)
    assert first.checkpoint == again.checkpoint == out / "checkpoint.pt"
    for name, alpha in first.alphas.items():
        assert torch.equal(alpha, again.alphas[name])
    assert main(["search", kind, "--resume", str(out / "checkpoint.pt"), f"--out={out}"]) == 0
    shown = capsys.readouterr().out
    assert "is finished" in shown and str(out / "genotype.json") in shown
    assert digests(out) == before


def test_the_command_takes_where_the_data_lie(tmp_path, capsys):
    begin("rnn", tmp_path)
    shutil.move(tmp_path / "text", tmp_path / "moved")
    resume = ["search", "rnn", "--resume", str(tmp_path / "run")]
    assert main([*resume, "--data", "pydoc"]) == 2
    assert "is no place where the data of a run can lie now" in capsys.readouterr().err
    assert main([*resume, "--data", str(tmp_path)]) == 2
    assert "lacks the files of a corpus" in capsys.readouterr().err
    assert main([*resume, "--data", str(tmp_path / "moved")]) == 0
    assert str(tmp_path / "moved") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CNNConfig(epochs="3"), "epochs must be of type int, got '3'"),
        (CNNConfig(cutout=1), "cutout must be of type bool, got 1"),
        (RNNConfig(lr="20"), "lr must be of type float, got '20'"),
        (RNNConfig(batch_size=4.0), "batch_size must be of type int, got 4.0"),
        (RNNConfig(data=None), "data must be of type str, got None"),
    ],
)
def test_options_of_other_types_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        SEARCH["cnn" if isinstance(config, CNNConfig) else "rnn"](config)
