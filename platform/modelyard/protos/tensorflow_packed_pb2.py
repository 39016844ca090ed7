# SPDX-License-Identifier: Apache-2.0
"""The messages of ``tensorflow_packed.proto``."""

from modelyard.protos import load

globals().update(load(__name__))
