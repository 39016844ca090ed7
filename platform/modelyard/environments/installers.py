# SPDX-License-Identifier: Apache-2.0
"""pip and uv: how each is run, and what of their output tells why they failed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelyard.errors import ModelLoadError

_MAX_REASON: Final = 1000
_CREDENTIALS: Final = re.compile(r"://[^/@\s]+@")
_LINE: Final = re.compile(r"-r requirements\.txt \(line (\d+)\)")
_TELLING: Final = re.compile(r"error|fail|cannot|could not|not found|no such", re.IGNORECASE)
_PATH: Final = re.compile(r"(?:(?<=-[IL])|(?<![\w:/.]))(?:file://)?/(?:[\w.+@%~-]+/)+([\w.+@%~-]*)")
_LOST: Final = re.compile(r"connection broken by '\w+\(.*?([^]:'\"]*)['\"]\)': ")
_FRAME: Final = " ─╰│\N{MULTIPLICATION SIGN}╭>▶"
"""What pip and uv draw around their messages."""
_NOISE: Final = re.compile(
    r"^(WARNING|DEPRECATION|Looking in|Collecting|Requirement already|Using cached|Downloading|Downloaded|Obtaining|"
    r"Processing|Preparing|Installing build|Getting requirements|Building wheel|Created wheel|Stored in|Installing|"
    r"INFO|To fix this|\d\. |\[notice\]|hint|Resolved|Prepared|Using Python|note: This (error|is)|"
    r"error: Command|ERROR: Ignored the following|ERROR: ResolutionImpossible|Attempting|Found existing|"
    r"Not uninstalling|Successfully)"
)


@dataclass(frozen=True, slots=True)
class Installer:
    """One program that installs packages.

    Attributes:
        command: What installs into the environment of a Python, given that Python; requirements follow.
        sees_platform: It leaves out what the platform's packages provide already.
    """

    command: Callable[[Path], list[str]]
    sees_platform: bool


def _pip(python: Path) -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError("pip is not installed where the platform is; install it, or name the packages under uv")
    return [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]


def _uv(python: Path) -> list[str]:
    found = [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else [shutil.which("uv") or ""]
    if not found[0]:
        raise ModelLoadError('uv is not installed: pip install "modelyard[uv]", or name the packages under pip')
    return [*found, "pip", "install", "--no-progress", "--color", "never", "--python", str(python)]


INSTALLERS: Final[Mapping[str, Installer]] = {
    "pip": Installer(_pip, sees_platform=True),
    "uv": Installer(_uv, sees_platform=False),
}


def explain(installer: str, output: str, requirements: Sequence[str]) -> str:
    """Why it failed, in its own words: its last lines that say something, without paths and credentials.

    Args:
        installer: Its name.
        output: Everything it has printed.
        requirements: The lines of the file that it was given.
    """
    lines = [_trim(line) for line in output.splitlines() if not _NOISE.match(line.strip())]
    said = [line for line in dict.fromkeys(lines) if line]
    if sum(map(len, said)) > _MAX_REASON:  # a compiler spoke too
        said = [line for line in said if _TELLING.search(line)] or said
    text = "; ".join(said).replace(":; ", ": ").replace(".; ", "; ") or "it said nothing"
    if lost := dict.fromkeys(_LOST.findall(output)):
        text += f"; it could not reach its index: {', '.join(map(str.strip, lost))}"
    return f"{installer}: {clean(_LINE.sub(lambda found: requirements[int(found[1]) - 1], text))}"


def clean(text: str) -> str:
    """A message as ``status`` may show it: its end, of paths the last part only, and no credentials."""
    text = _PATH.sub(r"\1", _CREDENTIALS.sub("://***@", text))
    return text if len(text) <= _MAX_REASON else "…" + text[-_MAX_REASON:]


def _trim(line: str) -> str:
    return line.strip(_FRAME).removeprefix("ERROR: ").removeprefix("error: ")
