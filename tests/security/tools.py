"""Where the scanners, the hub's proxy and the like are: programs that the product never needs.

`make` installs them beside the product's environment, each in a folder of its own; what is on the
PATH serves as well. A tool that is missing fails its test: a scan that did not run found nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

FOLDERS = (".venv*/bin", ".venv-tools/*/bin", "tests/security/*/node_modules/.bin")


def tool(name: str) -> str:
    """Return the path of a program.

    Raises:
        AssertionError: it is not installed.
    """
    folders = [str(Path(sys.executable).parent)]
    folders += [str(folder) for pattern in FOLDERS for folder in REPOSITORY.glob(pattern)]
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))
    assert found, f"{name} is not installed: `make tools`"
    return found
