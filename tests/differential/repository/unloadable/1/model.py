# SPDX-License-Identifier: Apache-2.0
"""Cannot be loaded."""


class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("cannot be loaded")

    def execute(self, requests):
        raise NotImplementedError
