"""Start of the container: puts passwords from files into addresses, then runs the command.

``REDIS_URL=redis://:{redis_password}@redis:6379/0`` becomes the address with what is in
``/run/secrets/redis_password``, so that no password stands in a compose file or in ``docker
inspect``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

SECRETS: Final = Path("/run/secrets")
FILLED: Final = ("DATABASE_URL", "FLOWER_BASIC_AUTH", "OWL_API_TOKEN", "REDIS_URL")


def fill(environment: Mapping[str, str], folder: Path = SECRETS) -> dict[str, str]:
    """Replace ``{name}`` by the content of the file ``name``, quoted in an address.

    Raises
    ------
    OSError
        When a file cannot be read.

    """
    filled = dict(environment)
    for variable in FILLED:
        value = filled.get(variable, "")

        def content(match: re.Match[str], is_address: bool = "://" in value) -> str:
            text = (folder / match[1]).read_text().strip()
            return quote(text, safe="") if is_address else text

        if value:
            filled[variable] = re.sub(r"\{(\w+)\}", content, value)
    return filled


def main() -> None:
    """Replace this process by the command."""
    try:
        environment = fill(os.environ)
    except OSError as error:
        sys.exit(f"The secret {error.filename} cannot be read: {error.strerror}. Run make secrets.")
    os.execvpe(sys.argv[1], sys.argv[1:], environment)


if __name__ == "__main__":
    main()
