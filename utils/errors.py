"""Errors that list all problems at once, and hints for misspelt names."""

import difflib
from collections.abc import Iterable

FAMILIAR = {"learning_rate": "lr", "backbone": "encoder", "weights": "encoder_weights", "k_folds": "n_folds"}
"""Names that other libraries use, which a comparison of spellings would not find, and the names here."""


class Problems(ValueError):
    """Something can't be used: a title, then one line per problem. Notebooks show it without a traceback.

    problems: all of them, each once; the message lists the first `shown`.
    """

    def __init__(self, title: str, problems: Iterable[str], shown: int = 20):
        self.problems = list(dict.fromkeys(problems))
        more = [f"… and {len(self.problems) - shown} more"] if len(self.problems) > shown else []
        super().__init__("\n".join([title, *(f"  - {p}" for p in [*self.problems[:shown], *more])]))

    def _render_traceback_(self) -> list[str]:  # called by IPython: show only the message
        return [f"{type(self).__name__}: {self}"]


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that `name` was probably meant to be, the most likely first."""
    by_lower = {n.lower(): n for n in names}
    meant = FAMILIAR.get(name, name).lower()
    close = difflib.get_close_matches(meant, by_lower, n=3, cutoff=0.7)
    return [by_lower[n] for n in close or difflib.get_close_matches(meant, by_lower, n=1, cutoff=0)]


def unknown(what: str, name: str, names: Iterable[str]) -> str:
    """One line for a name that is not among `names`: what was found, the nearest names, and all names."""
    names = list(names)
    more = f" and {len(names) - 100} more" if len(names) > 100 else ""
    hint = f"did you mean {' or '.join(nearest(name, names))}? " if names else ""
    return f"unknown {what} {name!r}: {hint}There are {', '.join(names[:100]) or 'none'}{more}"
