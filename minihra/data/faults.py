"""What is wrong with the rows of a manifest, collected so that all of it is reported at once."""


class Faults:
    """A list of what is wrong, one line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Note a fault."""
        self.lines.append(line)

    def settle(self, *, skip: bool) -> int:
        """Return the number of bad rows, which are left out.

        Raises:
            ValueError: there are some, and they are not to be skipped; the message has a line for each.
        """
        if self.lines and not skip:
            rows = "1 bad row" if len(self.lines) == 1 else f"{len(self.lines)} bad rows"
            raise ValueError("\n".join([*self.lines, f"{rows}; --skip-bad goes on without them"]))
        return len(self.lines)
