"""Stages that end in every way, without torch: what the GPU check's runner is tried on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

name, result = sys.argv[1], Path(sys.argv[2])


def leave(rows, wrong=(), not_run=None):
    result.write_text(json.dumps({"rows": rows, "wrong": list(wrong), "not_run": not_run}))


print(f"this is {name}")
if name == "fine":
    leave([{"kernel": "a", "ms": 1.25}, {"kernel": "b|c", "ms": 2.0}, {"all": 3}])
elif name == "wrong":
    leave([{"operator": "pool3x3"}], ["pool3x3 is off by 1", "and so is another"])
elif name == "crashes":
    leave([{"found": "before"}])
    raise RuntimeError("the driver is not there")
elif name == "slow":
    leave([{"found": "before"}])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"child {child.pid}", flush=True)
    time.sleep(600)
elif name == "absent":
    leave([], not_run="ncu is not on PATH")
elif name == "reads":
    earlier = json.loads(Path(sys.argv[sys.argv.index("--earlier") + 1]).read_text())
    leave([{"read": earlier["fine"][0]["ms"]}])
elif name.endswith("served"):
    leave([{"served_by": os.environ["DARTSFAST_BACKEND"]}])
