# SPDX-License-Identifier: Apache-2.0
"""Pythons of models' own: packages laid over the platform's for one model, or a Python that somebody else has made.

Ray's own way (``runtime_env`` with ``pip`` or ``uv``) copies the whole virtual environment that Ray runs in, once per
list of requirements and session. Here the platform's packages stay where they are, and only what is asked for lies in
front of them: :mod:`overlay` says where, :mod:`build` installs it, :mod:`start` is what Ray starts instead of Python.

Nothing here imports Ray or numpy: :mod:`start` runs before each replica.
"""
