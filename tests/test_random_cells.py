"""Cells drawn at random: what is drawn, how often, and that it is the same everywhere."""

from collections import Counter

from dartsfast.candidates import draw
from dartsfast.cnn.genotypes import PRIMITIVES
from dartsfast.genotypes import CNN, RNN, as_genotype
from dartsfast.rnn.genotypes import PRIMITIVES as ACTIVATIONS


def test_every_operation_and_pair_of_states_is_drawn_as_often():
    count = 4000
    operations, pairs = Counter(), Counter()
    for seed in range(count):
        cell = as_genotype(draw.draw_cnn(seed), CNN)
        for edges in (cell.normal, cell.reduce):
            operations.update(name for name, _ in edges)
            states = [state for _, state in edges]
            pairs.update((i, *states[2 * i : 2 * i + 2]) for i in range(4))
    assert operations.keys() == set(PRIMITIVES) - {"none"}
    expected = 16 * count / 7
    assert all(abs(n - expected) < 6 * expected**0.5 for n in operations.values())
    for i in range(4):
        found = {pair: n for pair, n in pairs.items() if pair[0] == i}
        expected = 2 * count * 2 / ((2 + i) * (1 + i))
        assert all(a < b < 2 + i for _, a, b in found) and len(found) == (2 + i) * (1 + i) / 2
        assert all(abs(n - expected) < 6 * expected**0.5 for n in found.values())


def test_every_activation_and_state_is_drawn_as_often():
    count, drawn = 4000, Counter()
    for seed in range(count):
        cell = as_genotype(draw.draw_rnn(seed), RNN)
        drawn.update((i, *node) for i, node in enumerate(cell.recurrent))
    assert {name for _, name, _ in drawn} == set(ACTIVATIONS) - {"none"}
    for (i, _, state), n in drawn.items():
        expected = count / 4 / (i + 1)
        assert state <= i and abs(n - expected) < 6 * expected**0.5


def test_a_seed_draws_the_same_cell_everywhere():
    # Written down once: random() of Python's generator is promised never to change.
    assert draw.draw_cnn(-3) != draw.draw_cnn(3) and draw.draw_rnn(-3) != draw.draw_rnn(3)
    assert draw.draw_cnn(0).normal[:4] == [
        ("skip_connect", 0),
        ("avg_pool_3x3", 1),
        ("dil_conv_3x3", 0),
        ("skip_connect", 1),
    ]
    assert draw.draw_rnn(0).recurrent[:3] == [("identity", 0), ("relu", 0), ("sigmoid", 1)]
