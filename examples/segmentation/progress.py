"""Progress bars."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm


def progress_bar(*args: Any, hidden: bool = False, **kwargs: Any) -> tqdm:
    """Create tqdm's bar, which is shown in a terminal only: a log file would get hundreds of them.

    Args:
        args: Those of tqdm.
        hidden: Show none, as in all processes but the first. `TQDM_DISABLE=1` hides all.
        kwargs: Those of tqdm.
    """
    return tqdm(*args, **kwargs, **({"disable": True} if hidden or not sys.stderr.isatty() else {}))


def report(
    bar: tqdm, unit: str, done: int, every: int, values: Mapping[str, str], write: Callable[[str], object] = print
) -> None:
    """Show values behind a bar or, if the bar is not shown, in a line at every tenth of the work.

    Args:
        bar: The bar.
        unit: What is counted, such as "step".
        done: How many are done.
        every: How many were done since the last call.
        values: What to show, by name.
        write: Writes the line.
    """
    if not bar.disable:
        bar.set_postfix(values)
    elif done * 10 // bar.total > (done - every) * 10 // bar.total:
        write(f"{unit} {done} of {bar.total}: {', '.join(f'{name} {value}' for name, value in values.items())}")
