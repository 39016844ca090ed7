# SPDX-License-Identifier: Apache-2.0
"""Modelyard: one platform for every trained model, on Ray Serve."""

__version__ = "0.1.0"
