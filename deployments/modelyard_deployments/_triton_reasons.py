# SPDX-License-Identifier: Apache-2.0
"""What Triton says went wrong, as others may read it."""

from __future__ import annotations

import re
from typing import Final

_NO_ID: Final = "[request id: <id_unknown>] "
_TRACEBACK: Final = re.compile(r"(\n|\\n)+At:(\n|\\n)")
"""Where the python backend's begins; in the log its lines are written as one."""
_FOLDERS: Final = re.compile(r"(?<![\w:/])/(?:[\w.@+-]+/)+")


def clean_reason(text: str) -> str:
    """Without a traceback, without the folders of this machine, and without an identifier that is none."""
    return _FOLDERS.sub("", _TRACEBACK.split(text, maxsplit=1)[0].removeprefix(_NO_ID)).strip()
