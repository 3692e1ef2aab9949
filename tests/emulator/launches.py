"""How often each kernel is launched in an iteration of a search with the paper's images: prints it as JSON.

``launches.py ORDER LAYERS``; a batch is one image.
"""

import json
import sys

import torch

from bench.cnn_peers import CNN, Size
from bench.peers import Peer
from dartsfast.backends import native
from emulator import Emulated

if __name__ == "__main__":
    order, layers = map(int, sys.argv[1:])
    iteration = CNN.iteration(Peer("cpu"), Size(batch=1, layers=layers), torch.float32)
    kernels = Emulated(native.LIBRARY)
    iteration.run(order)
    assert kernels.findings() == []
    print(json.dumps({name: found["launches"] for name, found in kernels.by_kernel().items()}))
