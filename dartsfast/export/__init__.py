"""Networks for use elsewhere: as programs of ``torch.export``, as ONNX, as plain Python files."""

from typing import Any

from dartsfast.export.names import FORMATS

__all__ = ["BOUND", "FORMATS", "Exported", "export_network"]


def __getattr__(name: str) -> Any:
    # The names can be read without torch.
    if name in ("BOUND", "Exported", "export_network"):
        from dartsfast.export import network

        return getattr(network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
