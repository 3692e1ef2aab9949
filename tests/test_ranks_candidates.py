"""Competitions whose candidates are computed by several processes together, one after the other."""

import dataclasses
import json
import os
import subprocess

import pytest
import rank_scripts
import torch
from read_page import Page
from small_data import image_folder, text_folder
from small_runs import same

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch without gloo", allow_module_level=True)

from dartsfast import ranks
from dartsfast.candidates import RandomCNNConfig, random_cnn
from dartsfast.errors import InputError
from dartsfast.runs.checkpoint import has_checkpoint, load_checkpoint
from dartsfast.runs.record import read_run

PLACES = {"random": ("0", "1"), "select": ("0/search", "0/train", "1/search", "1/train")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two ranks have found, whole and stopped."""
    folder = tmp_path_factory.mktemp("ranks")
    image_folder(folder / "images", train=8)
    text_folder(folder / "text", lines=24)
    rank_scripts.start("competitions", folder)
    return folder


def kind(name, place):
    verb, cell = name.split("-")
    return cell if place.endswith("search") else f"train-{cell}"


def states(name, out):
    places = PLACES[name.partition("-")[0]]
    return [load_checkpoint(out / place, kind(name, place)) for place in places]


def table(out):
    return json.loads((out / "candidates.json").read_text())


@pytest.mark.parametrize("name", rank_scripts.COMPETITIONS)
def test_all_ranks_compute_every_candidate(folder, name):
    whole = folder / name / "whole"
    found = table(whole)
    assert found["processes"] == 2 and [row["name"] for row in found["candidates"]] == ["0", "1"]
    verb, cell = name.split("-")
    command = f"torchrun --nproc_per_node=2 -m dartsfast {verb} {cell} --config {whole / 'config.toml'}"
    assert command in Page((whole / "report.html").read_text(encoding="utf-8")).texts
    for state in states(name, whole):
        first, second = (part["random"][0] for part in state["ranks"])
        assert state["epoch"] == 1 and not torch.equal(first, second)


def test_a_candidate_is_trained_as_a_cell_is_by_itself(folder):
    alone = load_checkpoint(folder / "1", "train-cnn")
    same(alone, load_checkpoint(folder / "random-cnn" / "whole" / "1", "train-cnn"))
    row = table(folder / "random-cnn" / "whole")["candidates"][1]
    assert row["measure"] == alone["history"][-1]["valid_acc"]


@pytest.mark.parametrize("name", ["random-rnn", "select-cnn"])
def test_a_stopped_competition_goes_on_to_the_same_bits(folder, name):
    """The signal came to rank 1 alone, within the second candidate."""
    whole, stopped = folder / name / "whole", folder / name / "stopped"
    again = (
        f"torchrun --nproc_per_node=2 -m dartsfast {name.replace('-', ' ')} --resume {stopped} --device cpu"
    )
    said = f"stopped by SIGTERM with 1 of 2 candidates done; what is done is kept. Go on with: {again}"
    assert json.loads((folder / f"{name}-said.json").read_text()) == [said, said]
    assert table(whole) == table(stopped)
    same(states(name, whole), states(name, stopped))


def test_a_killed_rank(folder, tmp_path):
    """The other ends; the competition goes on, to the same table."""
    name, out = "select-rnn", tmp_path / "out"
    given = [f"--{option}={value}" for option, value in rank_scripts.COMPETITIONS[name][1].items()]
    command = [*rank_scripts.TORCHRUN, "select", "rnn", "--device=cpu"]
    rank_scripts.kill_a_rank(
        [*command, f"--data={folder / 'text'}", f"--out={out}", *given],
        when=lambda line: str(out / "1" / "train") in line,
    )
    assert [row["name"] for row in table(out)["candidates"]] == ["0"] and not (out / "cell.png").exists()
    again = subprocess.run([*command, f"--resume={out}"], check=True, capture_output=True, text=True)
    assert again.stdout.count("2 of 2 candidates done") == 1  # rank 0 alone says it
    whole = folder / name / "whole"
    assert table(out) == table(whole) and (out / "cell.png").exists()
    same(states(name, whole), states(name, out))


@pytest.fixture
def three_ranks(monkeypatch):
    monkeypatch.setattr(ranks, "size", lambda: 3)
    monkeypatch.setattr(ranks, "from_first", lambda find: find())


def test_candidates_of_another_number_of_ranks_are_not_compared(folder, monkeypatch, request):
    out = folder / "random-cnn" / "whole"
    with pytest.raises(
        InputError, match="run of 2 ranks, and here are 1: .* Go on with torchrun --nproc_per_node=2"
    ):
        random_cnn(RandomCNNConfig(), resume=out)
    config = dataclasses.replace(_alone(folder), out=str(folder / "alone"))
    random_cnn(config)
    request.getfixturevalue("three_ranks")
    with pytest.raises(
        InputError, match="run of 1 ranks, and here are 3: .* Go on with one process, without"
    ):
        random_cnn(RandomCNNConfig(), resume=config.out)


def _alone(folder):
    options = rank_scripts.COMPETITIONS["random-cnn"][1]
    return RandomCNNConfig(data=f"imagefolder:{folder / 'images'}", device="cpu", **options)


def test_a_table_of_an_earlier_version_is_of_one_process(folder, tmp_path):
    found = table(folder / "random-cnn" / "whole")
    del found["processes"]
    for name in ("config.toml", "genotype.json"):
        os.link(folder / "random-cnn" / "whole" / name, tmp_path / name)
    (tmp_path / "candidates.json").write_text(json.dumps(found))
    record = read_run(tmp_path)
    assert (record.ranks, record.problems, has_checkpoint(tmp_path)) == (1, [], False)
