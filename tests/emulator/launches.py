"""What kernels do, and do wrong, in a search iteration with the paper's images: prints JSON.

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
    print(json.dumps({"kernels": kernels.by_kernel(), "findings": [text for _, text in kernels.findings()]}))
