"""The one error type for input that cannot work: what was wrong, what was got, what to do."""


class InputError(ValueError):
    """Bad input from the user (data, sizes, names, options).

    The message names the value and the remedy. The command line prints it without a traceback
    and exits with status 2; scripts can catch it as a ``ValueError``.
    """
