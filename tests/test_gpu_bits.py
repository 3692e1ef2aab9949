"""The GPU check's stage for kernels in C++: that it finds what does not have the CPU's bits."""

from types import SimpleNamespace

import pytest
import torch
from op_cases import Mix

from dartsfast.backends import availability

cpu = availability("cpu")
pytestmark = pytest.mark.skipif(not cpu.available, reason=cpu.reason)
REASONS = {"off": "by rounding", "another time": "other bits the second time", "cell": "1 of"}


def next_up(t):
    """Change one number of a tensor by one in its last place."""
    t.view(-1)[0] = torch.nextafter(t.view(-1)[0], torch.tensor(9.0, dtype=t.dtype))


@pytest.mark.parametrize("fault", [None, *REASONS])
def test_a_bit_that_is_not_the_cpus_is_found(fault, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from bench.gpu import bits
    from bench.gpu.stage import Check

    passes, counts = bits.passes, []
    case = SimpleNamespace(calls=lambda dtype: Mix(2, 3, 3, 3, 2, base=True).calls(dtype)[:1])

    def call(name, args):
        z = getattr(torch.ops.dartsfast, name)(*args)
        counts.append(name)
        # The CPU's, then the device's twice.
        if fault == "off" and len(counts) % 3 != 1 or fault == "another time" and len(counts) % 3 == 0:
            next_up(z)
        return z

    def passed(cell, given):
        found = passes(cell, given)
        counts.append("cell")
        if fault == "cell" and len(counts) % 2 == 0:
            next_up(found[3])
        return found

    monkeypatch.setattr(bits, "call", call)
    monkeypatch.setattr(bits, "passes", passed)
    monkeypatch.setattr(bits, "operator_cases", lambda rehearse: [case] if fault != "cell" else [])
    if fault in ("off", "another time"):
        monkeypatch.setattr(bits, "_cells", lambda *args: None)
    check = Check(tmp_path / "bits.json", rehearse=True)
    bits.run(check)
    assert check.rows and bool(check.wrong) == (fault is not None)
    assert all(REASONS[fault] in what for what in check.wrong)
