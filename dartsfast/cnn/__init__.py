"""Convolutional cells: the module names of the original code's ``cnn`` folder."""
