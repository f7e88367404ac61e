"""The one type by which all long work reports its progress.

A [`Progress`] is called with the name of a step, how much of it is done, and how much there is to do, or `None` if
that is unknown. A step that can't be counted is announced once, by `progress(step, 0, None)`. Examples:

```python
trace(suspect, vault, progress=lambda step, done, total: logger.info("%s: %d of %s", step, done, total))

def show(step: str, done: int, total: int | None) -> None:  # with bar = tqdm() in a notebook
    bar.set_description(step, refresh=False)
    bar.total, bar.n = total, done
    bar.refresh()

lambda step, done, total: bars.update(task, description=step, completed=done, total=total)  # a task of rich
```
"""

from collections.abc import Callable


Progress = Callable[[str, int, int | None], None]


def silent(step: str, done: int, total: int | None) -> None:
    """Returns nothing and shows nothing: the [`Progress`] of a caller that gives none."""


def counting(progress: Progress | None, step: str, total: int | None, done: int = 0) -> Callable[[int], None]:
    """Returns a function that takes how much more of a step is done, and calls `progress` with the sum.

    Args:
        progress (callable or `None`): a [`Progress`]; with `None` the function does nothing.
        step (`str`): the name of the step.
        total (`int` or `None`): how much there is to do.
        done (`int`, *optional*, defaults to 0): how much was done before.
    """

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(step, done, total)

    return count


def part_of(progress: Progress | None, step: str, total: int | None, before: int = 0) -> Progress | None:
    """Returns a [`Progress`] for one of several parts of a step; what it is called with counts for the whole step.

    Args:
        progress (callable or `None`): the [`Progress`] of the whole step.
        step (`str`): the name of the step, which stands for the names of its parts.
        total (`int` or `None`): how much there is to do in all parts.
        before (`int`, *optional*, defaults to 0): how much was done in the parts before this one.
    """
    return None if progress is None else lambda _step, done, _total: progress(step, before + done, total)
