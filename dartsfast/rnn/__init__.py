"""Recurrent cells: the module names of the original code's ``rnn`` folder."""
