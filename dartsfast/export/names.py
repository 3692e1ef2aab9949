"""What ``--help`` reads of exports: this module imports no torch."""

# The suffix of the file that each format makes.
FORMATS = {"torch": ".pt2", "onnx": ".onnx", "module": ".py"}
