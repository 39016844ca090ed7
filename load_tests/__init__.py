# SPDX-License-Identifier: Apache-2.0
"""Load tests: `python -m load_tests` compares Modelyard with its peers, `python -m load_tests.open_loop` holds a rate.

Not part of the wheel. Run from the repository root. Nothing here is a timed test: numbers are printed, not asserted.
"""
