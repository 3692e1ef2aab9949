"""What old scripts that train and test a found cell do with its networks and their files."""

import pytest
import torch
from torch import nn

from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.cnn import model as cnn_model
from dartsfast.cnn import utils as cnn_utils
from dartsfast.cnn.model import NetworkCIFAR
from dartsfast.rnn import genotypes as rnn_genotypes
from dartsfast.rnn.model import RNNModel
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.rnn.utils import save_checkpoint


def test_a_cell_may_compile_its_operations_itself(monkeypatch):
    """As in the original, with its arguments."""
    calls = []

    class Mine(cnn_model.Cell):
        def _compile(self, C, op_names, indices, concat, reduction):
            calls.append((op_names, indices, list(concat)))
            super()._compile(C, ["skip_connect"] * len(op_names), indices, concat, reduction)

    monkeypatch.setattr(cnn_model, "Cell", Mine)
    model = NetworkCIFAR(4, 10, 3, False, cnn_genotypes.DARTS).eval()
    normal, reduce = cnn_genotypes.DARTS.normal, cnn_genotypes.DARTS.reduce
    assert calls[0] == (*zip(*normal, strict=True), [2, 3, 4, 5])
    assert calls[1] == (*zip(*reduce, strict=True), [2, 3, 4, 5])
    images = torch.randn(2, 12, 8, 8)
    cell = model.cells[0]
    first, second = cell.preprocess0(images), cell.preprocess1(images)
    third = first + second  # of skips, DARTS_V2's nodes are sums of their inputs
    wanted = torch.cat([third, third, second + first, first + third], 1)
    torch.testing.assert_close(cell(images, images, 0.0), wanted)


def test_a_checkpoint_of_old_pytorch_loads(tmp_path):
    """PyTorch 0.3 had no ``num_batches_tracked``, no metadata and another file format."""
    trained, model = (NetworkCIFAR(4, 10, 3, True, cnn_genotypes.DARTS) for _ in range(2))
    state = {k: v for k, v in trained.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) < len(trained.state_dict())
    torch.save(state, tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    cnn_utils.load(model, tmp_path / "weights.pt")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


RNNS = {
    "found": lambda: RNNModel(12, 8, 8, 8, 0.2, 0.1, 0.1, 0.1, 0.1, genotype=rnn_genotypes.DARTS),
    "searched": lambda: RNNModelSearch(12, 8, 8, 8, 0.2, 0.1, 0.1, 0.1, 0.1),
}


@pytest.mark.parametrize("finetune", [False, True])
@pytest.mark.parametrize("kind", RNNS)
def test_an_rnn_rolls_back_to_the_model_that_was_saved(kind, finetune, tmp_path):
    """In the words of the original's rnn/train.py: averaged SGD, evaluation of the average, a whole model."""
    model = RNNS[kind]()
    x, y = torch.randint(12, (5, 4)), torch.randint(12, (20,))
    asgd = torch.optim.ASGD(model.parameters(), lr=1.0, t0=0, lambd=0.0)
    for _ in range(2):
        asgd.zero_grad()
        nn.functional.nll_loss(model(x, model.init_hidden(4))[0].view(20, -1), y).backward()
        asgd.step()
    for p in model.parameters():
        p.data = asgd.state[p]["ax"].clone()
    wanted = model.eval()(x, model.init_hidden(4))[0]
    save_checkpoint(model, asgd, 3, str(tmp_path), finetune=finetune)

    prefix = "finetune_" if finetune else ""
    assert torch.load(tmp_path / "misc.pt") == {"epoch": 4}
    rolled_back = torch.load(tmp_path / f"{prefix}model.pt", weights_only=False)
    assert torch.equal(rolled_back(x, rolled_back.init_hidden(4))[0], wanted)
    assert rolled_back.decoder.weight is rolled_back.encoder.weight
    if kind == "searched":
        assert rolled_back.rnns[0].weights is rolled_back.arch_parameters()[0]
    state = torch.load(tmp_path / f"{prefix}optimizer.pt")
    assert "t0" in state["param_groups"][0]
    torch.optim.ASGD(rolled_back.parameters(), lr=1.0, t0=0, lambd=0.0).load_state_dict(state)


def test_an_rnn_has_the_attributes_of_the_original_and_no_others():
    """So that the published model, a pickle of objects, computes when it is read as these classes."""
    model = RNNS["found"]()
    names = ["ninp", "nhid", "nhidlast", "dropout", "dropouti", "dropoute", "ntoken", "cell_cls"]
    assert vars(model).keys() - vars(nn.Module()).keys() == set(names)
    assert {name for name, _ in model.named_children()} == {"lockdrop", "encoder", "rnns", "decoder"}
    cell = model.rnns[0]
    assert vars(cell).keys() - vars(nn.Module()).keys() == {"nhid", "dropouth", "dropoutx", "genotype"}
    assert [name for name, _ in cell.named_parameters()] == ["_W0", *(f"_Ws.{i}" for i in range(8))]
