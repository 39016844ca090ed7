# SPDX-License-Identifier: Apache-2.0
"""What happens to a platform on several nodes when parts of it die: ``python -m load_tests.drills``.

The nodes are Ray nodes as KubeRay starts them, each in a PID namespace of its own, all in one network namespace:
nothing of it is reachable from outside, and whatever happens, nothing of it is left. What runs on them is the text of
an overlay of ``kuberay/`` as it is. Needs Linux, root, ``unshare``, ``redis-server`` and PostgreSQL.
"""
