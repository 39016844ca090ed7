# SPDX-License-Identifier: Apache-2.0
"""Frameworks of Modelyard, one module each; found by the entry-point group ``modelyard.frameworks``."""
