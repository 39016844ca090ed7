# SPDX-License-Identifier: Apache-2.0
"""Tests that share one platform; it ends with the last of them."""
