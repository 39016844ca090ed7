# SPDX-License-Identifier: Apache-2.0
"""RayServices of KubeRay: checked as far as that goes without a cluster, and made from a Serve file.

Pure functions on what a manifest holds; nothing here talks to Kubernetes.
"""

from modelyard.kuberay.groups import Size
from modelyard.kuberay.overlays import overlay_names
from modelyard.kuberay.render import Choices, Rendered, render
from modelyard.kuberay.rules import check_rules
from modelyard.kuberay.schema import check_shape
from modelyard.kuberay.serving import check_serving, read_serve_file

__all__ = [
    "Choices",
    "Rendered",
    "Size",
    "check_rules",
    "check_serving",
    "check_shape",
    "overlay_names",
    "read_serve_file",
    "render",
]
