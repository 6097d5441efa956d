"""The user's own code, named on the command line as `module:function`."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from .recipe import SettingsError


def load_function(option: str, name: str) -> Callable[..., Any]:
    """Import a function, or a class, of a module in the current folder or among the installed ones.

    Args:
        option: Name of the option, for messages.
        name: "module:function".

    Raises:
        SettingsError: If there is no such module or function. Errors within the module itself are raised as they are.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise SettingsError(f"--{option} {name}: name your own code as module:function, such as my_code:{option}.")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the current folder; a script's path begins with the script's own
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # an import within the module
        raise SettingsError(f"--{option} {name}: there is no module {module_name!r} in this folder.") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise SettingsError(f"--{option} {name}: {module.__file__} has no function {attribute!r}.")
    return function
