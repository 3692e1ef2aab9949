"""The suite of memory: budgets of its peers, both networks, table and picture."""

import dataclasses

import pytest

from bench import frontier, steps
from bench.cnn_peers import CNN
from bench.options import Options
from bench.plots import draw_memory
from bench.rnn_peers import RNN
from bench.workloads import FRONTIERS, MEASURED
from dartsfast.backends import availability

cpu = availability("cpu")
needs_cpu = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


@needs_cpu
def test_budgets_of_peers_go_by_the_image_or_column():
    size = dataclasses.replace(CNN.quick, batch=3)
    model = CNN.iteration(MEASURED["cnn_memory"].peers["cpu 5 MB an image"], size).model
    assert model._memory == "15MB"
    assert [fit.order for fit in model._fits] == [2]
    size = dataclasses.replace(RNN.quick, batch=3)
    model = RNN.iteration(MEASURED["rnn_memory"].peers["cpu 2.5 MB a column"], size).model
    assert model._memory == "7.5MB"
    assert [(fit.order, fit.text) for fit in model._fits] == [(2, (size.bptt, 3))]


@pytest.fixture
def result(monkeypatch):
    """What the suite leaves, with figures that grow from peer to peer in the place of measured ones."""

    def measured(workload, options, orders):
        size = dataclasses.replace(workload.size, batch=options.batch or workload.size.batch)
        rows = [
            {"peer": name, "order": order, "batch": size.batch, "peak_mb": 9.0 * k, "ms_p50": 1e3 / k}
            for order in orders
            for k, name in enumerate(workload.peers, 1)
        ]
        rows = [{**row, "ms_p20": row["ms_p50"], "ms_p80": row["ms_p50"]} for row in rows]
        return {"conditions": {**dataclasses.asdict(size), "repeats": 2}, "rows": rows}

    monkeypatch.setattr(steps, "run", measured)
    return {"header": {}, **frontier.run(Options(batch=16))}


def test_both_networks_are_measured_with_four_columns_of_text_an_image(result):
    found = {(row["network"], row["order"], row["batch"]) for row in result["rows"]}
    assert found == {("cnn", 2, 16), ("rnn", 2, 64)}
    said = frontier.conditions(result)
    assert "8 layers), 32x32 images, batch 16, float32" in said and "BPTT 35, the dropouts" in said
    whole = frontier.run(Options())["rows"]
    assert {(row["network"], row["batch"]) for row in whole} == {("cnn", 64), ("rnn", 256)}


def test_table_and_picture_have_every_peer(result, tmp_path):
    pytest.importorskip("matplotlib")
    cnn, rnn = frontier.table(result).split("RNN:")
    picture = next(path for path in draw_memory(result, tmp_path / "memory") if path.suffix == ".svg")
    text = picture.read_text()
    for table, network in ((cnn, "cnn"), (rnn, "rnn")):
        assert f"{network.upper()}, batch {16 if network == 'cnn' else 64}, order 2" in text
        for name in FRONTIERS[network].peers:
            assert f"| 2 | {name} | " in table
            assert (name.partition(" ")[2] or "store") in text
