# SPDX-License-Identifier: Apache-2.0
"""README's commands, run against the platform."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from platform_process import ROOT, PlatformProcess

README = (ROOT / "README.md").read_text()
TABLE = [line for line in README.splitlines() if line.startswith("|")]
COLUMNS = [cell.strip() for cell in TABLE[0].strip("|").split("|")][2:]
ROWS_OF_TABLE = {
    cells[0].strip(" `"): dict(zip(COLUMNS, (cell.strip() for cell in cells[2:]), strict=True))
    for cells in (line.strip("|").split("|") for line in TABLE if line.startswith("| `"))
}
"""What the table claims of each framework; ``test_frameworks`` holds it against the platform."""
OF_LANGUAGE_MODELS = ("huggingface", "vllm")
"""Those of ``configs/llm.yaml``: ``test_llm`` holds their rows against it, and the example with ``openai``."""


def localise(text: str, platform: PlatformProcess) -> str:
    """The text with the addresses of this test's platform."""
    return text.replace("http://127.0.0.1:8000", platform.url).replace("127.0.0.1:9000", platform.grpc)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def curls() -> list[str]:
    text = "\n".join(block.replace("$ ", "") for block in blocks("console"))
    return re.findall(r"^curl .*?(?:'\{.*?\}'|\S+)$", text, re.DOTALL | re.MULTILINE)


def test_readme_has_commands_to_test() -> None:
    assert len(curls()) >= 3
    assert len(blocks("python")) >= 2
    assert {cell for row in ROWS_OF_TABLE.values() for cell in row.values()} == {"yes", "no"}


@pytest.mark.parametrize("command", curls())
def test_a_curl_command_of_the_readme_is_answered(platform: PlatformProcess, command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", localise(command, platform) + " --fail --silent"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert any(f'"{name}":[' in done.stdout for name in ("predictions", "outputs", "explanations"))


@pytest.mark.parametrize("code", [code for code in blocks("python") if "openai" not in code])
def test_a_python_example_of_the_readme_runs(platform: PlatformProcess, code: str) -> None:
    done = subprocess.run([sys.executable, "-c", localise(code, platform)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
