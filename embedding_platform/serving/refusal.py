"""What a route says no with."""


class Refusal(Exception):
    """A request cannot be answered: its HTTP status, and one line for people and programs alike."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
