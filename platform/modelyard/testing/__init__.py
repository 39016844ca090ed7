# SPDX-License-Identifier: Apache-2.0
"""For tests of models and of what is around them: a framework without a library, and the checks every framework passes.

Third parties use it for frameworks of their own; nothing here needs a test runner.
"""

from modelyard.testing.conformance import CHECKS, Case
from modelyard.testing.fake import Call, FakeFramework, FakeModel, FakeOptions
from modelyard.testing.peers import FakePeers

__all__ = ["CHECKS", "Call", "Case", "FakeFramework", "FakeModel", "FakeOptions", "FakePeers"]
