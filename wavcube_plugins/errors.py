"""What goes wrong, in one vocabulary: error classes and the exit codes of every command."""

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class InputError(ValueError):
    """A file, an option or an argument cannot be used.

    The message is one sentence that names the culprit and says what to do; commands print it and exit with `BAD_INPUT`.
    """
