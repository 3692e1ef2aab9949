"""Manifests of what kernels need, and what needs more than its manifest says.

A manifest is {kernel: {target: row}}; a row has registers of a thread, bytes of shared memory, occupancy
(0 to 1), and accesses to global memory of less than 16 bytes.
"""

import json

NAMES = ("registers", "bytes of shared memory", "occupancy", "narrow accesses")
REGISTER_SLACK = 8


def worse(found, known):
    """Return in what rows of ``found`` need more than those of ``known``, or are not there."""
    complaints = [f"{key} is no longer compiled" for key in known.keys() - found.keys()]
    for key, targets in found.items():
        for target, row in targets.items():
            before = known.get(key, {}).get(target)
            if before is None:
                complaints.append(f"{key} on {target} is not in the manifest")
                continue
            limits = before[0] + REGISTER_SLACK, before[1], -before[2], before[3]
            values = row[0], row[1], -row[2], row[3]
            complaints += [
                f"{key} on {target}: {name} {before[i]} before, {row[i]} now"
                for i, name in enumerate(NAMES)
                if values[i] > limits[i]
            ]
    return complaints


def read(file):
    """Return the rows of a manifest, ``None`` where there is none."""
    return json.loads(file.read_text()) if file.exists() else None


def compare(found, file, write):
    """Say what needs more than the manifest in ``file`` says; then, where asked, write it, one line a row."""
    known = read(file)
    if known is None:
        print(f"there is no manifest {file.name}")
    else:
        print("\n".join(worse(found, known)) or "nothing needs more than before")
    if write:
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found))
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{{\n{lines}\n}}\n")
