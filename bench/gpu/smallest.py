"""Every operator that has a Triton kernel, once, on tiny tensors: what compute-sanitizer is given to watch.

``python -m bench.gpu.smallest [--rehearse]`` ends with the line DONE.
"""

from __future__ import annotations

import argparse
import os

import torch
from op_calls import call, moved

from bench.gpu.cases import calls, operator_cases
from dartsfast.backends import triton as triton_backend


def main() -> None:
    """Call the operators."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.smallest")
    parser.add_argument("--rehearse", action="store_true")
    place = "cpu" if parser.parse_args().rehearse else "cuda"
    os.environ["DARTSFAST_SELFCHECK"] = "0"
    triton_backend.load()
    for case in operator_cases(rehearse=True):
        for name, args in calls(case, torch.float32):
            call(name, moved(args, place))
    if place == "cuda":
        torch.cuda.synchronize()
    print("DONE")


if __name__ == "__main__":
    main()
