"""The ordered oracles: each operator in plain torch, to the bit, one module each."""
