# SPDX-License-Identifier: Apache-2.0
"""PyTorch: exported programs (``torch.export.save``, ``.pt2``) and TorchScript (``torch.jit.save``, ``.pt``).

An exported program knows its inputs and outputs: names, datatypes, shapes, which dimensions vary. A traced TorchScript
module keeps the inputs it was traced with: their datatypes and shapes are taken, with a variable first dimension where
it answers that. A scripted one needs the option ``inputs``. What TorchScript answers is found out by a trial.

Names of outputs: the keys of a dictionary, the fields of a named tuple, ``output-0``, ``output-1`` for the places of a
tuple or list, and ``output-0`` for a single tensor. Nested ones are joined by dots: ``output-1.scores``.

Loading can run what the file's maker put in: exported programs hold pickled parts, TorchScript is a program.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._gpu import find_torch_device
from modelyard_deployments._torch_export import load_export
from modelyard_deployments._torch_files import Kind, find_kind
from modelyard_deployments._torch_program import Program
from modelyard_deployments._torch_script import load_script
from modelyard_deployments._torch_values import to_array, to_reason, warn_of_views_once
from modelyard_deployments._trial import Trial, find_batch_axis, show_example, try_out

_LOG: Final = logging.getLogger(__name__)

_NO_MEMORY: Final = "can't allocate memory"

Dimension: TypeAlias = Annotated[int, Field(ge=-1)]
DatatypeName: TypeAlias = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64",
    "BYTES",
]  # fmt: skip


class InputOption(BaseModel):
    """One input of a TorchScript program."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="The argument's name.")
    datatype: DatatypeName = Field(default="FP32", description="Its datatype.")
    shape: tuple[Dimension, ...] = Field(description="Its shape; -1 is a variable dimension.")


class OutputOption(BaseModel):
    """One output, in the order of the program's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="What clients call it.")
    datatype: DatatypeName | None = Field(default=None, description="Its datatype; found out unless given.")
    shape: tuple[Dimension, ...] | None = Field(default=None, description="Its shape; found out unless given.")


class PyTorchOptions(Options):
    """Options of a PyTorch program."""

    inputs: tuple[InputOption, ...] = Field(
        default=(), description="The arguments of a TorchScript program; needed unless it was traced."
    )
    outputs: tuple[OutputOption, ...] = Field(
        default=(), description="Names of the outputs in the program's order, and what a trial does not find out."
    )
    method: str = Field(default="forward", description="Which method of a TorchScript program answers.")
    threads: int = Field(default=1, ge=1, description="Threads of one operation; more help only large models.")
    concurrency: int = Field(default=1, ge=1, description="Batches computed at once, each in a thread of its own.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where it computes; `auto` is the GPU where the replica has one."
    )
    batch_axis: bool | None = Field(
        default=None, description="Whether requests may share a batch; found out when the model is loaded unless given."
    )


class PyTorchModel(Model):
    """A loaded program."""

    def __init__(self, program: Program, options: PyTorchOptions) -> None:
        import torch

        self._program = program
        self._no_gradients: Callable[[], torch.inference_mode] = torch.inference_mode
        self._ours = (torch.OutOfMemoryError, torch.AcceleratorError, NotImplementedError)
        self._names: tuple[str, ...] = ()
        trial, inputs = self._try_out()
        self._copies = not trial.keeps_inputs
        outputs = _to_outputs(program, trial, options.outputs)
        self._names = tuple(option.name for option in options.outputs)
        batch_axis = find_batch_axis((*inputs, *outputs), trial, options.batch_axis)
        example = show_example(inputs, trial, batch_axis)
        self._signature = Signature(inputs=inputs, outputs=outputs, batch_axis=batch_axis, example=example)
        self.concurrency = options.concurrency

    @property
    def signature(self) -> Signature:
        """As the program, the options or a trial say; whether rows may be batched as the trial says."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Runs the program without gradients; answers are views on its tensors.

        Raises:
            InvalidRequest: An index is out of range, or variable dimensions do not fit.
        """
        answers = self._run(inputs)
        return {name: to_array(answers[name]) for name in outputs}

    def _run(self, inputs: Tensors) -> dict[str, object]:
        try:
            with self._no_gradients():
                named = self._program.call(self._program.convert(inputs, self._copies))
        except (RuntimeError, IndexError, ValueError, AssertionError) as exc:
            if isinstance(exc, self._ours) or _NO_MEMORY in str(exc):
                raise
            raise InvalidRequest(f"the inputs do not fit the model: {to_reason(exc)}") from exc
        if not self._names:
            return dict(named)
        return dict(zip(self._names, [value for _, value in named], strict=True))

    def _try_out(self) -> tuple[Trial, tuple[TensorSpec, ...]]:
        """What a trial says, and of the inputs supposed and known those that the program takes."""
        program = self._program
        needed = [spec for spec in program.inputs if not spec.optional]
        # Views on arrays of the trial's own show whether the program writes to its inputs.
        self._copies = False
        trial = try_out(self._run_all, needed)
        if not trial.answers and program.fixed:
            fixed = try_out(self._run_all, program.fixed)
            if fixed.answers:
                return fixed, program.fixed
        if trial.reason:
            _LOG.warning("the program refuses made-up rows: %s", trial.reason)
        return trial, program.inputs

    def _run_all(self, inputs: Tensors) -> dict[str, Array]:
        return {name: to_array(value) for name, value in self._run(inputs).items()}


def _to_outputs(program: Program, trial: Trial, options: Sequence[OutputOption]) -> tuple[TensorSpec, ...]:
    """Names from the option, else the program's; datatypes and shapes from the option, the program or the trial.

    Raises:
        ModelLoadError: There are none, or they cannot be found out.
    """
    known = program.outputs or trial.outputs
    if options and known and len(options) != len(known):
        raise ModelLoadError(f"option outputs: expected {len(known)}, as the program answers, got {len(options)}")
    if not options:
        if not known:
            raise ModelLoadError(
                f"the program does not answer made-up rows, so its outputs are not known: {trial.reason or 'none'}; "
                "correct the option inputs, or give names, datatypes and shapes in the option outputs"
            )
        return known
    specs = []
    for place, option in enumerate(options):
        datatype: str | None = option.datatype
        shape = option.shape
        if known:
            datatype, shape = datatype or known[place].datatype, known[place].shape if shape is None else shape
        if datatype is None or shape is None:
            raise ModelLoadError(f'option outputs: "{option.name}" needs a datatype and a shape: {trial.reason}')
        specs.append(TensorSpec(option.name, datatype, shape))
    return tuple(specs)


class PyTorchFramework(Framework):
    """Loads a program; one thread is the default."""

    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pt2", ".pth", ".torchscript")
    options: ClassVar[type[Options]] = PyTorchOptions
    requires: ClassVar[str] = "pytorch"
    may_share: ClassVar[bool] = True
    distribution: ClassVar[str] = "torch"
    loads_code: ClassVar[bool] = True

    def load(self, path: Path, options: PyTorchOptions) -> PyTorchModel:
        """Loads the program, tries it on made-up rows and makes the signature.

        Raises:
            ModelLoadError: The file is no program, it is damaged, this PyTorch cannot run it, or an option does not
                fit it.
        """
        import torch

        kind = find_kind(path)
        if kind is Kind.EXPORT and (options.inputs or options.method != "forward"):
            raise ModelLoadError("options inputs and method: an exported program tells its inputs, and has one method")
        device = find_torch_device(options.device)
        torch.set_num_threads(options.threads)
        warn_of_views_once()
        try:
            if kind is Kind.EXPORT:
                return PyTorchModel(load_export(path, device), options)
            specs = [TensorSpec(option.name, option.datatype, option.shape) for option in options.inputs]
            return PyTorchModel(load_script(path, specs, options.method, device), options)
        except ModelLoadError:
            raise
        except Exception as exc:  # damaged files raise errors of many kinds
            raise ModelLoadError(
                f"{path.name}: PyTorch {torch.__version__} cannot load this {kind.value}: {to_reason(exc)}"
            ) from exc
