"""The GPU check: how its runner ends, and that its stages find what they are there to find."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from gpu_check_parts import NCU, SANITIZER
from op_calls import moved
from op_cases import SMALL, VECTORS, Mix, Node

from bench import gpu_check
from bench.gpu_check import Run, Stage
from dartsfast.backends import availability

cpu = availability("cpu")
needs_kernels = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


def checked(tmp_path, *stages, rehearse=False):
    """Run stages of ``tests/gpu_stages``; return the exit status, what was kept, and the tables."""
    run = Run(tmp_path, rehearse=rehearse, stages=stages, package="gpu_stages")
    status = run.run()
    kept = json.loads((tmp_path / "gpu_check.json").read_text())
    return status, kept["stages"], (tmp_path / "gpu_check.md").read_text()


def test_stages_leave_rows_a_log_and_tables(tmp_path, capsys):
    status, stages, text = checked(tmp_path, Stage("fine", "first", 60), Stage("reads", "second", 60))
    assert status == 0 and [s["outcome"] for s in stages] == ["passed", "passed"]
    assert stages[1]["rows"] == [{"read": 1.25}]  # of the stage before
    assert "| kernel | ms |\n|---|---|\n| a | 1.25 |\n| b/c | 2 |" in text and "| all |\n|---|\n| 3 |" in text
    assert "this is fine" in (tmp_path / "gpu_check.log").read_text()
    assert capsys.readouterr().out.endswith(text)  # the tables are last
    assert len(list(tmp_path.iterdir())) == 3


def test_wrong_numbers_stop_it_and_what_did_not_run_says_why(tmp_path):
    status, stages, text = checked(tmp_path, Stage("wrong", "numbers", 60), Stage("fine", "after", 60))
    assert status == 1 and [s["outcome"] for s in stages] == ["WRONG", "not run"]
    assert stages[0]["reason"] == "pool3x3 is off by 1 (and 1 more)" and stages[0]["rows"]
    assert stages[1]["reason"] == "stopped: wrong WRONG" and "stopped: wrong WRONG" in text


@pytest.mark.parametrize("needed", [False, True])
def test_a_stage_that_fails_shows_its_end_and_stops_what_needs_it(needed, tmp_path, capsys):
    stages = Stage("crashes", "fails", 60, needed=needed), Stage("fine", "after", 60)
    status, found, _ = checked(tmp_path, *stages)
    assert status == 1 and found[0]["outcome"] == "FAILED" and found[0]["rows"] == [{"found": "before"}]
    assert found[1]["outcome"] == ("not run" if needed else "passed")
    assert "RuntimeError: the driver is not there" in capsys.readouterr().out


def test_a_stage_over_its_limit_is_ended_with_all_it_started_and_reported(tmp_path):
    status, found, _ = checked(tmp_path, Stage("slow", "too long", 2), Stage("fine", "after", 60))
    assert status == 1 and [s["outcome"] for s in found] == ["over its limit", "passed"]
    assert found[0]["rows"] == [{"found": "before"}] and "ended after 2 s" in found[0]["reason"]
    child = int(re.search(r"child (\d+)", (tmp_path / "gpu_check.log").read_text())[1])
    with pytest.raises(ProcessLookupError):
        for _ in range(200):  # its new parent takes a moment to see that it has ended
            os.kill(child, 0)
            time.sleep(0.05)


def test_a_tool_that_is_missing_is_a_reason_and_no_failure(tmp_path):
    status, found, text = checked(tmp_path, Stage("absent", "counters", 60), Stage("fine", "after", 60))
    assert status == 0 and [s["outcome"] for s in found] == ["not run", "passed"]
    assert "ncu is not on PATH" in text


def test_time_left_over_is_the_next_stages_and_the_total_stays(tmp_path):
    _, found, _ = checked(tmp_path, Stage("fine", "a", 50), Stage("absent", "b", 30), Stage("fine", "c", 20))
    limits = [s["limit"] for s in found]
    assert limits[0] == pytest.approx(50, abs=1)
    assert 60 < limits[1] < 80 and 70 < limits[2] < 100
    assert gpu_check.SECONDS == 600


@pytest.mark.parametrize("built", [True, False])
def test_kernels_in_cpp_serve_their_stages_where_they_were_built(built, tmp_path, monkeypatch):
    library = tmp_path / "_cuda.abi3.so"
    monkeypatch.setattr(gpu_check, "KERNELS", library)
    if built:
        library.touch()
    (tmp_path / "out").mkdir()
    status, found, _ = checked(tmp_path / "out", Stage("served", "a", 60), Stage("cuda/served", "b", 60))
    assert status == 0 and found[0]["rows"] == [{"served_by": "triton"}]
    assert found[1]["rows"] == [{"served_by": "cuda"}] * built
    assert found[1]["outcome"] == ("passed" if built else "not run")
    assert built or "see build:cuda" in found[1]["reason"]


def test_the_command_line_chooses_stages_in_their_order(tmp_path, monkeypatch):
    chosen = []

    def run(self):
        chosen.extend((stage.name, self.rehearse) for stage in self.stages)
        return 0

    monkeypatch.setattr(Run, "run", run)
    out = str(tmp_path / "new" / "folder")
    assert gpu_check.main(["--out", out, "--rehearse", "--stages", "warm"]) == 0
    assert chosen == [("versions", True), ("warm", True)]
    with pytest.raises(SystemExit):
        gpu_check.main(["--stages", "fast"])


def test_a_stage_runs_on_this_checkout_and_needs_no_installation(tmp_path):
    environment = gpu_check.environment(tmp_path, rehearse=True)
    assert environment["TRITON_CACHE_DIR"].startswith(str(tmp_path))
    pytest.importorskip("triton")
    code = "import dartsfast, dartsfast.kernels.launch as l, op_cases; print(dartsfast.__path__, l.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"['{tmp_path}/dartsfast'] {tmp_path}/dartsfast/kernels/launch.py" in done.stdout


def test_arguments_keep_their_layout_on_another_device():
    for case in (*SMALL, Node(2, 3, 4, "expanded"), VECTORS[1]):
        for _, args in case.calls():
            there = moved(args, "cpu", torch.float64)
            for a, b in zip(_tensors(args), _tensors(there), strict=True):
                assert a.stride() == b.stride() and a.storage_offset() == b.storage_offset()
                assert torch.equal(a.to(b.dtype), b) or a.isnan().any()
                assert b.dtype == (torch.float64 if a.is_floating_point() else a.dtype)
                assert a.data_ptr() != b.data_ptr() or not a.numel() or a.dtype == b.dtype


def _tensors(tree):
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, torch.Tensor)]


@needs_kernels
@pytest.mark.parametrize("fault", [None, "off", "unwritten", "another time", "half"])
def test_operators_that_are_off_unwritten_or_vary_are_found(fault, monkeypatch):
    pytest.importorskip("triton")
    from bench.gpu import operators

    runs = []

    def call(name, args):
        z = getattr(torch.ops.dartsfast, name)(*args)
        runs.append(name)
        if fault == "off":
            z = z * (1 + 1e-4)
        if fault == "unwritten":
            z.flatten()[3] = torch.nan
        if fault == "another time":
            z.flatten()[0] += 1e-6 * len(runs)
        return z

    monkeypatch.setattr(operators, "call", call)
    name, args = Mix(2, 3, 2, 3, 2, True, "nchw").calls()[0]
    if fault == "half":  # what is as near as another order of sums would be is right, and not to the bit
        monkeypatch.setattr(operators, "call", lambda name, args: call(name, args) * (1 + 2.0**-23))
    if fault in (None, "half"):
        assert operators.agrees(name, args, torch.device("cpu")) is (fault is None)
        return
    with pytest.raises(AssertionError, match="second time" if fault == "another time" else name):
        operators.agrees(name, args, torch.device("cpu"))


@needs_kernels
def test_networks_that_are_off_in_the_ninth_digit_are_wrong(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from bench.gpu import networks
    from bench.gpu.stage import Check

    figures = networks.figures

    def off(iteration, order):
        found = figures(iteration, order)
        return [t * (1 + 1e-9 * (iteration.model.backend == "cpu")) for t in found]

    workloads = {"rnn": networks.WORKLOADS["rnn"]}
    monkeypatch.setattr(networks, "WORKLOADS", workloads)
    monkeypatch.setattr(networks, "ORDERS", (1,))
    check = Check(tmp_path / "right.json", rehearse=True)
    networks.run(check)
    assert not check.wrong and len(check.rows) == 4
    monkeypatch.setattr(networks, "figures", off)
    check = Check(tmp_path / "wrong.json", rehearse=True)
    networks.run(check)
    assert len(check.wrong) == 1 and check.wrong[0].startswith("rnn, order 1, float64: distance is 1e-09")
    assert json.loads((tmp_path / "wrong.json").read_text())["wrong"] == check.wrong


@needs_kernels
def test_a_replay_that_differs_in_a_bit_is_wrong(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from bench.gpu import networks
    from bench.gpu.stage import Check

    state, seen = networks.state, []

    def other(iteration):
        found = state(iteration)
        seen.append(found)
        if len(seen) == 3:  # eager, recompute, captured
            found["weights"][0, 0] = torch.nextafter(found["weights"][0, 0], torch.tensor(9.0))
        return found

    monkeypatch.setattr(networks, "state", other)
    check = Check(tmp_path / "bits.json", rehearse=True)
    with networks.playing(True):
        networks._same(check, "rnn", networks.WORKLOADS["rnn"], 1)
    assert check.wrong == ["rnn, order 1: captured equals eager not in weights and 0 more"]


def test_launches_are_told_apart_as_the_compiler_does(monkeypatch, tmp_path):
    """What was compiled without a device is what a launch finds in the cache."""
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter compiles nothing")
    from dartsfast.kernels import reduce

    from bench.gpu.launches import launched, targeting

    def launch(parts=7, size=48, at=0):
        partial = torch.zeros(parts * size + at)[at:].view(parts, size)
        reduce.ordered_sum(partial, torch.zeros(size))

    one, *others = launched(launch, 90)
    assert not others
    assert launched(lambda: launch(parts=9), 90) == [one]  # neither 1 nor a multiple of 16
    assert launched(lambda: launch(parts=16), 90) != [one]
    assert launched(lambda: launch(at=1), 90) != [one]
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with targeting(90):
        one.compile()
    hits = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda *, cache_hit, **_: hits.append(cache_hit)
    )
    run = triton.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        return run(self, *args, grid=grid, warmup=True, **options)

    monkeypatch.setattr(triton.JITFunction, "run", compile_only)
    for call in (launch, lambda: launch(parts=9), lambda: launch(parts=16)):
        reduce.sum_kernel.device_caches.clear()
        with targeting(90):
            call()
    assert hits == [True, True, False]


def test_counters_are_read_from_ncus_table():
    pytest.importorskip("triton")
    from bench.gpu.counters import parsed

    first, second = parsed(NCU)
    assert first == {
        "kernel": "branch_conv_kernel",
        "grid": "(1024, 4, 1)",
        "duration": "41.50 us",
        "read": "17.30 Mbyte",
        "registers": "96 register/thread",
    }
    assert second["kernel"] == "moments_kernel" and second["duration"] == "12.10 us"
    assert parsed("==ERROR== ERR_NVGPUCTRPERM") == []


@pytest.mark.parametrize(("errors", "wrong"), [(0, 0), (3, 2)])
def test_what_the_sanitizer_finds_is_wrong(errors, wrong, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from bench.gpu import sanitized
    from bench.gpu.stage import Check

    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!{sys.executable}\n{SANITIZER.replace('ERRORS', str(errors))}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "0")  # put back after the test
    check = Check(tmp_path / "result.json", rehearse=True)
    sanitized.run(check)
    assert [row["found"] for row in check.rows] == [errors] * 2 and len(check.wrong) == wrong


def test_tools_that_are_not_there_or_say_nothing_are_not_run(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from bench.gpu import counters, sanitized, tools
    from bench.gpu.stage import Check, NotRun

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "FOLDERS", ())
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "0")
    for stage in (counters, sanitized):
        with pytest.raises(NotRun, match="neither on PATH"):
            stage.run(Check(tmp_path / "result.json", rehearse=True))
    for name, reason in (
        ("ncu", "ncu counted nothing.*ERR_NVGPUCTRPERM"),
        ("compute-sanitizer", "did not end"),
    ):
        tool = tmp_path / name
        tool.write_text(f"#!{sys.executable}\nprint('==ERROR== ERR_NVGPUCTRPERM')\nraise SystemExit(1)")
        tool.chmod(0o755)
        stage = counters if name == "ncu" else sanitized
        with pytest.raises(NotRun, match=reason):
            stage.run(Check(tmp_path / "result.json", rehearse=True))


def test_kernels_are_set_beside_the_model_by_name():
    pytest.importorskip("triton")
    from bench.costs import Launch
    from bench.gpu.profiled import compared, measured
    from bench.model import GRAPH_SECONDS

    card = measured([{"gpu": "x"}, {"copy_gbs": 1000.0, "sgemm_gflops": 2000.0}])
    assert (card.bandwidth, card.rate) == (1e12, 2e12)
    launches = [
        Launch("sum_kernel", 10**6, 0, True),
        Launch("sum_kernel", 10**6, 0, True),
        Launch("add", 0, 0, False),
    ]
    kernels = [
        ("sum_kernel", 5.0),
        ("void at::native::vectorized_elementwise_kernel<4>", 3.0),
        ("Memset", 1.0),
    ]
    sums, stock = compared(kernels, launches, card)
    gap = 1e3 * GRAPH_SECONDS
    assert sums == {
        "kernel": "sum_kernel",
        "launches": 1,
        "counted": 2,
        "ms": 0.005,
        "model_ms": 2 * (1e-3 + gap),
    }
    assert stock == {"kernel": "stock operators", "launches": 2, "counted": 1, "ms": 0.004, "model_ms": gap}


def test_the_largest_launch_of_the_heaviest_kernels_is_looked_at():
    pytest.importorskip("triton")
    from bench.costs import Launch
    from bench.gpu.heaviest import chosen

    launches = [Launch("light", 10, 0, True), Launch("stock", 10**12, 0, False)]
    for i, name in enumerate("abcde"):
        launches += [
            Launch(name, 10**6, 0, True),
            Launch(name, 10 ** (8 + i), 0, True),
            Launch(name, 5, 0, True),
        ]
    assert chosen(launches) == dict.fromkeys("edcba", 1)


def test_the_programs_are_those_that_the_stages_run():
    pytest.importorskip("triton")
    from bench.gpu import cases, paper

    wanted = {(p.kind, *p.choice) for p in cases.programs(rehearse=False)}
    for network in ("cnn", "rnn"):
        for way in paper.ways(network, "triton").values():
            if way.peer.backend == "triton":
                peers = cases.WORKLOADS[network].peers
                name = next(name for name, peer in peers.items() if peer == way.peer)
                for order in cases.ORDERS:
                    assert ("paper", network, name, torch.float32, order) in wanted
        assert ("small", network, "triton recompute", torch.float32, 2) in wanted
        assert ("small", network, "triton store", torch.float64, 1) in wanted
    assert {("operators", "float32"), ("operators", "bfloat16"), ("selfcheck",)} <= wanted
    assert ("smallest", "float32") in wanted
