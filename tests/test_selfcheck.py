"""The check of operators before their first use on a device."""

import contextlib
import subprocess
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from dartsfast import cli, doctor
from dartsfast.backends import availability, instruction_set, selfcheck
from dartsfast.errors import BackendError
from dartsfast.fused import check
from dartsfast.oracle import mixed_sum

cpu = availability("cpu")
DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget():
    yield
    selfcheck._require.cache_clear()


def test_every_operator_has_a_sample():
    names = {name.removeprefix("dartsfast::") for name in torch._C._dispatch_get_all_op_names()}
    aids = {"cpu_instruction_set", "cpu_instruction_sets", "set_cpu_instruction_set", "empty", "empty_cache"}
    aids |= {"run_program", *(name for name in names if name.endswith("_functional"))}  # which run the others
    assert set(selfcheck.SAMPLES) == {name for name in names if "::" not in name} - aids


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
@pytest.mark.parametrize("name", selfcheck.SAMPLES)
def test_the_cpu_kernels_have_the_bits_of_the_oracle(name):
    assert selfcheck.difference(name, DEVICE) == 0


@contextlib.contextmanager
def chosen(set_, value, before):
    set_(value)
    try:
        yield
    finally:
        set_(before)


MODES = {
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default_device": lambda: chosen(torch.set_default_device, "meta", None),
    "float64": lambda: chosen(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: chosen(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "fake": lambda: FakeTensorMode(),
}


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
@pytest.mark.parametrize("mode", MODES)
def test_a_check_is_of_itself_in_whatever_mode_it_runs(mode, monkeypatch):
    samples = []
    run = selfcheck._run
    monkeypatch.setattr(selfcheck, "_run", lambda name, args: samples.append(args) or run(name, args))
    with MODES[mode]():
        for name in selfcheck.SAMPLES:
            assert selfcheck.difference(name, DEVICE) == 0
    tensors = [t for t in tree_leaves(samples) if isinstance(t, torch.Tensor)]
    assert {t.dtype for t in tensors} == {torch.float32, torch.int64}
    assert not any(t.is_inference() for t in tensors)


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
@pytest.mark.parametrize("mode", MODES)
def test_instruction_sets_agree_in_whatever_mode_they_are_chosen(mode):
    with MODES[mode]():
        assert instruction_set.disagreement(torch.ops.dartsfast.cpu_instruction_set()) is None


def test_factors_in_tf32_are_allowed_for(monkeypatch):
    monkeypatch.setenv("DARTSFAST_TF32", "1")
    assert selfcheck.tolerance("branch_conv") == selfcheck.tolerance("branch_conv_backward") == 2e-3
    assert selfcheck.tolerance("mixed_sum") == 1e-5
    monkeypatch.delenv("DARTSFAST_TF32")
    assert selfcheck.tolerance("branch_conv") == 1e-5


class Rounded(torch.autograd.Function):
    """A product of points whose factors have 11 bits, as those of tensor cores."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.einsum("nchw,oc->nohw", eleven_bits(x), eleven_bits(w[..., 0, 0]))

    @staticmethod
    def backward(ctx, g):
        g, x, w = map(eleven_bits, (g, *ctx.saved_tensors))
        dw = torch.einsum("nohw,nchw->oc", g, x)[..., None, None]
        return torch.einsum("nohw,oc->nchw", g, w[..., 0, 0]), dw


def eleven_bits(x):
    bits = x.float().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32).to(x.dtype)


def test_grouped_kernels_may_round_factors_where_that_is_asked_for(monkeypatch):
    monkeypatch.delenv("DARTSFAST_SELFCHECK", raising=False)
    stock = F.conv2d

    def convolution(x, w, **options):
        return Rounded.apply(x, w) if w.shape[-1] == 1 else stock(x, w, **options)

    def rounded(edge, x, mixing):
        with mock.patch.object(F, "conv2d", convolution):
            return check._stock(x, mixing, *edge.tensors())

    monkeypatch.setattr(check, "_checked", set())
    with pytest.raises(BackendError, match="differ from stock torch by 0.000"):
        check.require(DEVICE, rounded)
    monkeypatch.setenv("DARTSFAST_TF32", "1")
    check.require(DEVICE, rounded)
    monkeypatch.setattr(check, "_checked", set())
    with pytest.raises(BackendError, match="differ from stock torch by 0.0"):
        check.require(DEVICE, lambda *given: 1.02 * rounded(*given))


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
def test_an_operator_that_disagrees_is_refused_by_name(monkeypatch):
    monkeypatch.delenv("DARTSFAST_SELFCHECK", raising=False)
    right = mixed_sum.mixed_sum
    monkeypatch.setattr(mixed_sum, "mixed_sum", lambda *args: right(*args) * (1 + 1e-4))
    for _ in range(2):
        with pytest.raises(BackendError, match="mixed_sum on cpu differs from its oracle by 0.0001"):
            selfcheck.require("mixed_sum", DEVICE)
    monkeypatch.setattr(mixed_sum, "mixed_sum", lambda *args: right(*args) * torch.nan)
    with pytest.raises(BackendError, match="differs from its oracle by inf"):
        selfcheck.require("mixed_sum", DEVICE)
    monkeypatch.setenv("DARTSFAST_SELFCHECK", "0")
    selfcheck.require("mixed_sum", DEVICE)


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
def test_doctor_checks_every_operator_and_fails_for_one_that_disagrees(monkeypatch, capsys):
    cli.main(["doctor", "--deep"])
    lines = dict(doctor.deep_diagnosis())
    assert lines == {f"{name} on cpu": "ok: 0.0e+00 from the oracle" for name in selfcheck.SAMPLES}
    assert capsys.readouterr().out.count("0.0e+00 from the oracle") == len(selfcheck.SAMPLES)
    right = mixed_sum.mixed_sum
    monkeypatch.setattr(mixed_sum, "mixed_sum", lambda *args: right(*args) * (1 + 1e-4))
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", "--deep"])
    (wrong,) = (
        line for line in capsys.readouterr().out.splitlines() if "oracle" in line and "ok:" not in line
    )
    assert left.value.code == 1
    assert " ".join(wrong.split()) == "mixed_sum on cpu WRONG: 1.0e-04 from the oracle"


@pytest.mark.parametrize("kind", [RuntimeError, OSError, subprocess.SubprocessError])
def test_an_operator_that_does_not_run_is_refused_by_name_with_the_cause(monkeypatch, kind):
    monkeypatch.delenv("DARTSFAST_SELFCHECK", raising=False)
    cause = kind("\nptxas exited with 255\nmore of it")
    calls = []

    def fail(name, args):
        calls.append(name)
        selfcheck.require(name, DEVICE)  # as the operator does: not checked within its check
        raise cause

    monkeypatch.setattr(selfcheck, "_run", fail)
    for _ in range(2):
        with pytest.raises(BackendError, match=f"^mixed_sum does not run on cpu: {kind.__name__}: p") as e:
            selfcheck.require("mixed_sum", DEVICE)
        assert e.value.__cause__ is cause and "more of it" not in str(e.value)
        assert "backend='reference'" in str(e.value)
    assert calls == ["mixed_sum"] * 2


def test_a_mistake_of_our_own_is_not_taken_for_a_broken_backend(monkeypatch):
    def fail(name, args):
        raise TypeError("no such argument")

    monkeypatch.setattr(selfcheck, "_run", fail)
    with pytest.raises(TypeError, match="no such argument"):
        selfcheck.difference("mixed_sum", DEVICE)


@pytest.mark.skipif(not cpu.available, reason=cpu.reason)
def test_doctor_goes_on_where_a_kernel_does_not_compile(monkeypatch):
    def fail(name, args):
        raise RuntimeError("ptxas exited with 255\nmore of it")

    monkeypatch.setattr(selfcheck, "_run", fail)
    assert doctor.deep_diagnosis() == [
        (f"{name} on cpu", f"FAILED: {name} does not run on cpu: RuntimeError: ptxas exited with 255")
        for name in selfcheck.SAMPLES
    ]
