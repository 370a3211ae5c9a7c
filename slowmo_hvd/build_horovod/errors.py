"""The one exception of this package."""


class BuildError(Exception):
    """A build that cannot go on; its text is one sentence that says what to do."""
