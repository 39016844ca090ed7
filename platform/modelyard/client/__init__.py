# SPDX-License-Identifier: Apache-2.0
"""The Python API: manage models and ask them, from a notebook, a pipeline or inside the cluster."""

from modelyard.client.aio import AsyncPlatform
from modelyard.client.failures import ApiError, PlatformUnreachable, RolledBack
from modelyard.client.http import HttpTransport
from modelyard.client.platform import Platform

__all__ = ["ApiError", "AsyncPlatform", "HttpTransport", "Platform", "PlatformUnreachable", "RolledBack"]
