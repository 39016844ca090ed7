# SPDX-License-Identifier: Apache-2.0
"""What of an installer's output becomes the reason that `status` shows; outputs as pip 23 and uv 0.13 print them."""

from __future__ import annotations

import pytest

from modelyard.environments.installers import explain

UNKNOWN = """\
Looking in indexes: https://me:****@pypi.example.com/simple
ERROR: Ignored the following versions that require a different python version: 3.3.0 Requires-Python >=3.12
ERROR: Could not find a version that satisfies the requirement xgboost-cpu==99 (from versions: 3.1.3, 3.2.0)
ERROR: No matching distribution found for xgboost-cpu==99
"""
CONFLICT = """\
Requirement already satisfied: xgboost-cpu in /opt/platform/lib/python3.11/site-packages (3.2.0)
INFO: pip is looking at multiple versions of scikit-learn to determine which version is compatible.
ERROR: Cannot install -r requirements.txt (line 1) and numpy>=2 because these package versions have conflicts.

The conflict is caused by:
    The user requested numpy>=2
    scikit-learn 1.4.1.post1 depends on numpy<2.0 and >=1.19.5

To fix this you could try to:
1. loosen the range of package versions you've specified
2. remove package versions to allow pip attempt to solve the dependency conflict

ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/en/latest/topics/dependency-resolution/
"""
UNREACHABLE = """\
WARNING: Retrying (Retry(total=1, connect=None)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3.\
connection.HTTPConnection object at 0x7efc>: Failed to establish a new connection: [Errno 111] Connection refused')': \
/simple/tiny/
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3.\
connection.HTTPConnection object at 0x7eff>: Failed to establish a new connection: [Errno 111] Connection refused')': \
/simple/tiny/
ERROR: Could not find a version that satisfies the requirement tiny (from versions: none)
ERROR: No matching distribution found for tiny
"""
COMPILER = (
    """\
Collecting pyemd==0.4.0
  error: subprocess-exited-with-error

  \N{MULTIPLICATION SIGN} python setup.py bdist_wheel did not run successfully.
  ╰─> [42 lines of output]
      copying pyemd/lib/emd_hat.hpp -> build/lib.linux-x86_64-cpython-311/pyemd/lib
      pyemd/emd.cpp:163:12: fatal error: longintrepr.h: No such file or directory
      error: Command '['g++', '-I/opt/platform/include']' returned non-zero exit status 1.
      [end of output]

  note: This error originates from a subprocess, and is likely not a problem with pip.
ERROR: Failed building wheel for pyemd
"""
    + "      copying something else\n" * 2
    + "\n".join(f"      copying file {number}" for number in range(100))
)
MISSING = "ERROR: Could not install packages due to an OSError: [Errno 2] No such file: '/srv/a/b/foo-1.whl'\n"
CREDENTIALS = "ERROR: HTTP error 401 while getting https://me:hunter2@pypi.example.com/simple/tiny\n"
UV = """\
Using Python 3.11.7 environment at: /srv/environments/1
error: No solution found when resolving dependencies
  cause: Because there is no version of tiny==9 and you require tiny==9, we can conclude that your requirements are \
unsatisfiable.
"""

EXPLAINED = {
    UNKNOWN: "pip: Could not find a version that satisfies the requirement xgboost-cpu==99 (from versions: 3.1.3, "
    "3.2.0); No matching distribution found for xgboost-cpu==99",
    CONFLICT: "pip: Cannot install scikit-learn==1.4.1.post1 and numpy>=2 because these package versions have "
    "conflicts; The conflict is caused by: The user requested numpy>=2; scikit-learn 1.4.1.post1 depends on numpy<2.0 "
    "and >=1.19.5",
    UNREACHABLE: "pip: Could not find a version that satisfies the requirement tiny (from versions: none); No matching "
    "distribution found for tiny; it could not reach its index: Connection refused",
    COMPILER: "pip: subprocess-exited-with-error; pyemd/emd.cpp:163:12: fatal error: longintrepr.h: No such file or "
    "directory; Failed building wheel for pyemd",
    MISSING: "pip: Could not install packages due to an OSError: [Errno 2] No such file: 'foo-1.whl'",
    CREDENTIALS: "pip: HTTP error 401 while getting https://***@pypi.example.com/simple/tiny",
    UV: "uv: No solution found when resolving dependencies; cause: Because there is no version of tiny==9 and you "
    "require tiny==9, we can conclude that your requirements are unsatisfiable.",
    "": "pip: it said nothing",
}


@pytest.mark.parametrize(("output", "reason"), EXPLAINED.items(), ids=lambda value: value[:20])
def test_the_reason_is_what_the_installer_says(output: str, reason: str) -> None:
    installer = reason.partition(":")[0]
    assert explain(installer, output, ["scikit-learn==1.4.1.post1", "numpy>=2"]) == reason


def test_a_long_reason_keeps_its_end() -> None:
    reason = explain("pip", "\n".join(f"ERROR: fault {number}" for number in range(1000)), [])
    assert len(reason) < 1100
    assert reason.endswith("fault 999")
