"""How far something is: a bar where somebody watches, else a line every so often."""

import time

from tqdm.auto import tqdm

from utils.files import interactive

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Callable (done, of): one tqdm bar in JupyterLab, a printed line at most every 20 seconds under papermill."""

    def __init__(self, title: str):
        self.title, self.bar = title, None
        self.started = self.printed = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        """Say that `done` of `of` are finished."""
        if interactive():
            self.bar = self.bar or tqdm(total=of, desc=self.title)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = now
            left = (now - self.started) / done * (of - done)
            print(f"{self.title}: {done} of {of}, {left:.0f} s left", flush=True)
