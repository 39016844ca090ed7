# SPDX-License-Identifier: Apache-2.0
"""PyTorch programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelyard_deployments.examples.example import Example


def train_digits(path: Path) -> None:
    """A small convolutional net on images of handwritten digits, 8 by 8 points between 0 and 1; exported."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.export import Dim, export, save

    torch.manual_seed(7)
    torch.set_num_threads(1)
    data = load_digits()
    images = torch.from_numpy(data.images).float().div(16).unsqueeze(1)
    target = torch.from_numpy(data.target).long()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10), nn.Softmax(dim=1)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(20):
        for start in range(0, len(images), 128):
            rows = slice(start, start + 128)
            loss: Any = nn.functional.nll_loss(net(images[rows]).clamp_min(1e-9).log(), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    program = export(net.eval(), (images[:2],), dynamic_shapes=({0: Dim("images")},))
    save(program, path)


EXAMPLES: Final[Mapping[str, Example]] = {"digits-pytorch": Example("model.pt2", train_digits)}
