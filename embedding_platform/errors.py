"""The two ways in which things go wrong for a user rather than for us."""


class PlatformError(Exception):
    """A mistake or a lack that the user can mend.

    The message is one line: what is wrong, where, and the mend. The command line prints it
    without a stack trace; Dagster shows it as the step's failure.
    """


class RejectedError(Exception):
    """One item cannot be used; the others go on.

    The message is the reason, written for the person who owns the file. It lands in the
    rejected table of the stage that met it.
    """
