# SPDX-License-Identifier: Apache-2.0
"""Runs the drills and prints what became of the requests: ``python -m load_tests.drills [DRILL…]``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from load_tests.drills.cluster import ROOT, Cluster, platform_text
from load_tests.drills.drills import DRILLS, MODEL, ROW, check_overlay
from load_tests.drills.load import Load
from load_tests.drills.nodes import make_bridge
from modelyard.kuberay import overlay_names

_INSIDE = "MODELYARD_DRILLS"


def main() -> int:
    """Enters namespaces of its own, then runs the drills; 1 where one has lost a request or did not end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("drills", nargs="*", choices=[*DRILLS, []], metavar="DRILL", help=", ".join(DRILLS))
    parser.add_argument("--overlay", default="ha", choices=overlay_names())
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    if os.environ.get(_INSIDE) != "1":
        if reason := check_overlay(platform_text(options.overlay)):
            parser.error(f"--overlay {options.overlay}: {reason}")
        _enter()
    make_bridge()
    folder = Path(tempfile.mkdtemp(prefix="my-"))
    folder.chmod(0o755)  # PostgreSQL's user passes through it
    lost = False
    with Cluster(folder, options.overlay, options.workers) as cluster:
        began = time.monotonic()
        cluster.start()
        print(
            f"overlay {options.overlay}: 1 head, {options.workers} workers, {time.monotonic() - began:.0f} s to start"
        )
        heads = ("requests", "sent again", "failures", "slowest", "longest gap", "took")
        print(f"{'drill':18}" + "".join(f"{head:>13}" for head in heads), flush=True)
        with Load(cluster.answering, MODEL, ROW, options.clients, may_break=cluster.may_break) as load:
            for name in options.drills or DRILLS:
                cluster.lost.clear()
                load.take()
                began, ended = time.monotonic(), ""
                try:
                    DRILLS[name](cluster)
                except Exception as exc:  # noqa: BLE001  # the next drill may do
                    ended = f"  {type(exc).__name__}: {exc}"
                took_s = time.monotonic() - began
                time.sleep(2)
                report = load.take()
                failures = report.failures.total()
                lost = lost or bool(failures or ended or not report.requests)
                numbers = f"{report.requests:>13}{report.resent:>13}{failures:>13}"
                times = f"{report.worst_s:>11.2f} s{report.gap_s:>11.2f} s{took_s:>11.0f} s"
                print(f"{name:18}{numbers}{times}{ended}", flush=True)
                for text, count in report.failures.most_common(3):
                    print(f"    {count} times {text}", flush=True)
    if lost:
        print(f"the nodes' output: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return int(lost)


def _enter() -> NoReturn:
    """The same in a network and a PID namespace of its own: when this process ends, everything in it has ended."""
    command = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m"]
    os.chdir(ROOT)
    os.execvpe(command[0], [*command, "load_tests.drills", *sys.argv[1:]], os.environ | {_INSIDE: "1"})


if __name__ == "__main__":
    sys.exit(main())
