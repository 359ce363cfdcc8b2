"""The exceptions for mistakes a user can mend, and for a training that was stopped."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something given from outside is wrong: one sentence says what was expected, what came and what to do.

    It stands on one line, whatever the messages of others that it quotes.
    """

    def __init__(self, sentence: str):
        super().__init__(" ".join(sentence.splitlines()))


class MissingPackageError(InputError):
    """An optional part was asked for, whose packages are not installed."""


class WrongPythonError(InputError, ImportError):
    """This Python, or the kernel of this notebook, lacks the packages without which nothing here works."""


class TerminatedError(SystemExit):
    """SIGTERM ended a training after it had left a resume point; the program's exit status is 143."""

    def __init__(self, message: str):
        super().__init__(143)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Stands around the imports of an optional part; an error says which extra brings a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"The package {error.name} is not installed here: run pip install 'kpc-ldm[{name}]', or, in a checkout, "
            "pip install -r requirements.txt."
        ) from error
