"""Sample arguments of the fused operators, with awkward sizes, layouts and options.

A case gives the calls of one operator: the forward first, then its backward with every option.
"""

from op_arguments import Alphas, Classes, Conv, Locked, Mix, Node, Norms, Pool, Product, Step, Vectors

EDGE = ((3, 1), (5, 1), (3, 2), (5, 2))  # the convolution branches of a DARTS edge
CONVS = (
    Conv(1, 1, 1, 5, 4, 1, ((3, 1),), False, True),
    Conv(2, 7, 5, 4, 12, 1, EDGE, False, True, "nchw"),
    Conv(3, 9, 1, 12, 5, 2, ((5, 2), (3, 1)), True, True, "slice"),
    Conv(2, 1, 9, 16, 16, 1, ((1, 1), (9, 1)), True, False, "shifted"),
    Conv(3, 5, 7, 36, 48, 2, (), False, True, "shifted"),
    Conv(1, 8, 6, 48, 36, 1, (), True, True),
    Conv(3, 11, 13, 5, 12, 1, EDGE, True, True, "slice"),
    Conv(2, 11, 12, 5, 12, 2, EDGE, False, True, "shifted"),
    Conv(1, 3, 70, 4, 5, 1, ((3, 1), (3, 3)), False, False, "nchw"),
    Conv(5, 17, 9, 16, 12, 1, ((7, 1), (7, 2)), True, True),
    Conv(2, 9, 10, 12, 4, 2, ((3, 2), (5, 4), (3, 6), (9, 3), (1, 1)), True, False),
    Conv(2, 6, 1, 5, 12, 1, EDGE, True, True, "transposed"),
    Conv(1, 6, 66, 4, 16, 2, ((7, 2), (15, 1), (3, 16)), False, True, "slice"),
)
# Sizes of the paper's cells, for which there are kernels of their own: an edge, and what there may be of one.
CELLS = (
    Conv(1, 16, 32, 16, 16, 1, EDGE, False, True),
    Conv(2, 8, 32, 16, 16, 1, ((5, 1),), True, True),
    Conv(1, 8, 32, 16, 16, 1, ((5, 2), (3, 2)), True, False),
    Conv(1, 16, 16, 32, 32, 1, EDGE, True, True),
    Conv(2, 8, 16, 32, 32, 1, ((3, 1),), True, True),
    Conv(1, 8, 16, 32, 32, 1, ((3, 2), (3, 2), (5, 1)), False, True),
    Conv(2, 8, 8, 64, 64, 1, EDGE, False, True),
    Conv(1, 16, 8, 64, 64, 1, ((3, 1), (5, 1)), True, True),
    Conv(2, 8, 8, 64, 64, 1, ((5, 2),), True, False),
)
POOLS = (
    Pool(1, 1, 1, 5, 2),
    Pool(2, 7, 5, 12, 1, "nchw"),
    Pool(3, 9, 1, 4, 2, "slice"),
    Pool(2, 1, 6, 48, 1, "shifted"),
    Pool(1, 5, 70, 16, 1),
    Pool(5, 17, 9, 36, 2, "shifted"),
    Pool(2, 9, 1, 5, 1, "transposed"),
)
MIXES = (
    Mix(1, 1, 1, 5, 1, False),
    Mix(2, 7, 5, 12, 3, True, "nchw"),
    Mix(3, 9, 1, 4, 2, True, "slice"),
    Mix(2, 1, 6, 48, 14, False, "shifted"),
    Mix(1, 5, 70, 16, 2, True),
    Mix(5, 17, 9, 36, 5, True, "shifted"),
    Mix(2, 9, 1, 12, 2, True, "transposed"),
)
ALPHAS = (
    Alphas(((14, 8), (14, 8))),
    Alphas(((1, 1),)),
    Alphas(((3, 5), (0, 4), (7, 3)), scale=40),
    Alphas(((64, 12),), scale=1e-3),
)
VECTORS = tuple(Vectors(n) for n in (1, 31, 33, 4095, 4097, 5 * 4096 + 17, 450_001))
NODES = (
    Node(1, 1, 3),
    Node(3, 5, 7, "transposed"),
    Node(8, 130, 75, "slice"),
    Node(2, 64, 64, "expanded"),
    Node(5, 65, 130, scale=30),
    Node(2, 2, 300),
)
STEPS = (
    Step(1, 1, 3),
    Step(1, 3, 21, "transposed"),
    Step(8, 130, 75, "slice"),
    Step(2, 65, 64, "expanded"),
    Step(3, 5, 130),
)
PRODUCTS = (
    Product(1, 1, 1),
    Product(7, 5, 3, "transposed"),
    Product(13, 321, 17),
    Product(25, 640, 33, "transposed"),
    Product(5, 9, 1100, "strided"),
    Product(130, 11, 48, "expanded"),
    Product(12, 641, 32),
)
LOCKED = (
    Locked(1, 1, 1, 1, keep=1),
    Locked(5, 3, 7, 17, layout="transposed"),
    Locked(13, 2, 40, 1100, layout="slice"),
    Locked(38, 3, 9, 530),
    Locked(6, 4, 25, 33, keep=0.01),
    Locked(73, 1, 3, 48, keep=0.9, layout="transposed"),
)
CLASSES = (
    Classes(1, 1),
    Classes(5, 7, 30),
    Classes(3, 32),
    Classes(4, 33, 200),
    Classes(2, 1007),
    Classes(300, 3),
)
NORMS = (
    Norms(1, 1),
    Norms(2, 16, None),
    Norms(4, 5, 0.3, pixels=2),
    Norms(3, 576, moved=False, pixels=1),
    Norms(9, 48, 1.0, pixels=2**25 + 1),
)
CASES = (*CONVS, *POOLS, *MIXES, *ALPHAS, *NODES)
# Few elements, every option: for checks that call an operator many times.
SMALL = (
    Conv(2, 5, 3, 3, 2, 1, ((3, 1), (5, 2)), True, True, "nchw"),
    Conv(1, 4, 5, 2, 3, 2, ((3, 2),), False, False),
    Conv(2, 3, 4, 3, 2, 2, (), True, True, "shifted"),
    Pool(2, 3, 5, 2, 1, "slice"),
    Pool(1, 4, 3, 3, 2),
    Mix(2, 3, 2, 3, 2, True, "nchw"),
    Mix(1, 1, 5, 2, 1, False),
    Alphas(((3, 4), (2, 3))),
    Node(2, 3, 2, "transposed"),
    Node(1, 4, 3),
)
