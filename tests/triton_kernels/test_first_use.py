"""The check of Triton kernels before their first use, through the dispatcher."""

import pytest
import torch
from checks import DEVICE, MARKS

from dartsfast.backends import selfcheck
from dartsfast.cnn.model_search import Cell
from dartsfast.errors import BackendError
from dartsfast.fused import check
from dartsfast.oracle import alpha_softmax as oracle

KERNELS = ("alpha_softmax",)
pytestmark = MARKS


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    monkeypatch.delenv("DARTSFAST_SELFCHECK")
    selfcheck._require.cache_clear()
    yield
    selfcheck._require.cache_clear()


def use():
    return torch.ops.dartsfast.alpha_softmax([torch.zeros(3, 4, device=DEVICE)])


def test_an_operator_is_checked_once(launches):
    for count in (2, 1):
        launches.clear()
        use()
        assert launches == ["alpha_softmax_kernel"] * count


def test_kernels_that_disagree_are_refused(monkeypatch):
    right = oracle.alpha_softmax
    monkeypatch.setattr(oracle, "alpha_softmax", lambda alphas: [p * 1.001 for p in right(alphas)])
    with pytest.raises(BackendError, match="alpha_softmax on .* differs from its oracle by 0.001"):
        use()


def test_kernels_that_do_not_compile_are_refused_with_the_cause(monkeypatch):
    from dartsfast.kernels import alpha_softmax
    from triton.errors import TritonError

    error = TritonError("at 3:4: no such function")

    def launch(*args, **meta):
        raise error

    monkeypatch.setattr(alpha_softmax, "launch", launch)
    with pytest.raises(BackendError, match="^alpha_softmax does not run on .*: TritonError: at 3:4") as found:
        use()
    assert found.value.__cause__ is error


def test_an_interrupted_check_of_grouped_kernels_is_made_again(monkeypatch):
    def interrupted(device, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "_difference", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check.require(torch.device("meta"), None)
    assert torch.device("meta") not in check._checked


def use_cell():
    cell = Cell(1, 1, 4, 4, 4, False, False, backend="triton", primitives=("skip_connect",)).to(DEVICE)
    images = [torch.ones(1, 4, 2, 2, device=DEVICE) for _ in range(2)]
    return cell(*images, torch.ones(2, 1, device=DEVICE))


@pytest.fixture
def fresh():
    check._checked.clear()
    yield
    check._checked.clear()


def test_grouped_kernels_are_checked_once(fresh, monkeypatch):
    distances = []
    true = check._difference

    def difference(device, run):
        distances.append(true(device, run))
        return distances[-1]

    monkeypatch.setattr(check, "_difference", difference)
    for _ in range(2):
        use_cell()
    assert len(distances) == 1 and distances[0] < check.TOLERANCE / 4


def test_grouped_kernels_that_disagree_are_refused(fresh, monkeypatch):
    stock = check._stock
    monkeypatch.setattr(check, "_stock", lambda *given: stock(*given) * 1.001)
    for _ in range(2):
        with pytest.raises(BackendError, match="grouped kernels on .* differ from stock torch by 0.001"):
            use_cell()
