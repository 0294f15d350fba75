"""A progress bar on stderr for what a person waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str | None, count: int, done: int = 0) -> Iterator[Callable[[int], object]]:
    """Give a function that says how many more are done.

    Args:
        label: what is counted; None shows nothing.
        count: of all.
        done: of them before this began.
    """
    if label is None:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=count, completed=done)
        yield lambda n: bar.advance(task, n)
