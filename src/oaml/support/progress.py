"""A progress bar on stderr for work that takes seconds or longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str | None, count: int, done: int = 0) -> Iterator[Callable[[int], object]]:
    """A progress bar, as a function to be called with the number of items that were finished since the last call.

    Args:
        label: shown beside the bar; None shows no bar.
        count: of all items.
        done: number of items that were finished before.
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
