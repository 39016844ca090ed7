# SPDX-License-Identifier: Apache-2.0
"""The release, once for the package, the protocols' metadata and the build."""

from typing import Final

__version__: Final = "0.1.0"
