"""What the readers of annotations share."""

import json
from pathlib import Path
from typing import Any

from ..recipe import UserError


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: If it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from None
