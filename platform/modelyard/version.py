# SPDX-License-Identifier: Apache-2.0
"""The release, once for the package, the protocols' metadata and the build."""

__version__ = "0.1.0"
