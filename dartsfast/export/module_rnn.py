"""The network of a recurrent cell as a plain Python file: text of modules, put together for the cell."""

from __future__ import annotations

from dartsfast.export import module_cnn
from dartsfast.export.text import check_known, listed
from dartsfast.rnn.genotypes import Genotype

CALLABLE = "from collections.abc import Callable\n"
IMPORTS = f"{CALLABLE}\n{module_cnn.IMPORTS}"
IMPORTS_OF_TRAINED = f"{CALLABLE}{module_cnn.IMPORTS_OF_TRAINED}"

ACTIVATIONS = {"tanh": "torch.tanh", "relu": "torch.relu", "sigmoid": "torch.sigmoid", "identity": "identity"}
IDENTITY = """
def identity(x: Tensor) -> Tensor:
    return x
"""
CELL = '''
class Cell(nn.Module):
    """Inputs [T, B, ninp] after a state [1, B, nhid] to all states and the last."""

    def __init__(self, ninp: int, nhid: int) -> None:
        super().__init__()
        self.nhid = nhid
        self._W0 = nn.Parameter(torch.empty(ninp + nhid, 2 * nhid))
        self._Ws = nn.ParameterList(torch.empty(nhid, 2 * nhid) for _ in range({steps}))
        for weight in self.parameters():
            nn.init.uniform_(weight, -0.04, 0.04)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        state, states = hidden[0], []
        for x in inputs:
            state = self.step(x, state)
            states.append(state)
        outputs = torch.stack(states)
        return outputs, outputs[-1:]

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        W = self._Ws
        s0 = self.highway(torch.cat([x, h], dim=-1), h, self._W0, torch.tanh)
{nodes}
{outputs}
        return torch.stack(outputs, -1).mean(-1)

    def highway(
        self,
        x: Tensor,
        state: Tensor,
        W: Tensor,
        activation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        c, h = x.mm(W).split(self.nhid, dim=-1)
        return state + c.sigmoid() * (activation(h) - state)
'''
NETWORK = '''
class Network(nn.Module):
    """Tokens [T, B] to log-probabilities [T, B, ntoken]; the decoder is the embedding.

    ntoken: size of the vocabulary.
    nhid: features of the embedding and of the hidden state.
    """

    def __init__(self, ntoken: int, nhid: int) -> None:
        super().__init__()
        self.nhid = nhid
        self.encoder = nn.Embedding(ntoken, nhid)
        self.rnns = nn.ModuleList([Cell(nhid, nhid)])
        self.decoder = nn.Linear(nhid, ntoken)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.04, 0.04)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities and the hidden state [1, B, nhid] after them."""
        outputs, hidden = self.rnns[0](self.encoder(tokens), hidden)
        logits = self.decoder(outputs.flatten(0, 1))
        return logits.log_softmax(-1).unflatten(0, tokens.shape), hidden

    def init_hidden(self, batch: int) -> Tensor:
        return self.encoder.weight.new_zeros(1, batch, self.nhid)
'''


def classes(genotype: Genotype) -> list[str]:
    """Return the text of what the network of ``genotype`` needs, in its order in a file."""
    check_known("activation", (name for name, _ in genotype.recurrent), ACTIVATIONS)
    nodes = [
        f"        s{k + 1} = self.highway(s{source}, s{source}, W[{k}], {ACTIVATIONS[name]})"
        for k, (name, source) in enumerate(genotype.recurrent)
    ]
    outputs = listed("outputs", (f"s{i}" for i in genotype.concat), 8)
    cell = CELL.format(steps=len(nodes), nodes="\n".join(nodes), outputs=outputs)
    identity = [IDENTITY] if any(name == "identity" for name, _ in genotype.recurrent) else []
    return [*identity, cell, NETWORK]
