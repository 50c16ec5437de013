"""The exceptions a user is meant to read."""


class HarnessError(Exception):
    """Bad input or an unmet need: one clear line that says what is wrong and how to mend it.

    The command line prints the line and exits with status 2; nothing already on disk is touched.
    """


class DivergedError(HarnessError):
    """The training ran into a loss or gradient that is no finite number; nothing of it may be scored."""
