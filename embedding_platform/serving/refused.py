"""What a route says no with."""

from embedding_platform.errors import PlatformError


class RefusedError(PlatformError):
    """A request cannot be answered, with the HTTP status that tells what kind of reason there is."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
