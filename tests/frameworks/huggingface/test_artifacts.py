# SPDX-License-Identifier: Apache-2.0
"""Which folders load, and the reasons why others do not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import check_options, get_framework

FRAMEWORK = get_framework("huggingface")


@pytest.mark.parametrize(
    ("case", "task"),
    [
        ("text_classification", "TextClassification"),
        ("cross_encoder", "CrossEncoder"),
        ("entities", "TokenClassification"),
        ("masks", "FillMask"),
        ("questions", "QuestionAnswering"),
        ("minilm", "EmbeddingModel"),
        ("embeddings_of_a_bare_model", "EmbeddingModel"),
        ("images", "ImageClassification"),
        ("objects", "ObjectDetection"),
        ("speech", "SpeechModel"),
    ],
)
def test_the_task_follows_from_the_folder(case: str, task: str, load: Any) -> None:
    assert type(load(case)).__name__ == task


def test_code_runs_only_where_an_option_lets_it() -> None:
    assert not FRAMEWORK.loads_code
    assert not FRAMEWORK.runs_code({})
    assert not FRAMEWORK.runs_code({"trust_remote_code": False})
    assert FRAMEWORK.runs_code({"trust_remote_code": True})


def test_a_pickle_with_code_is_refused(copied: Any, load: Any, tmp_path: Path) -> None:
    import torch

    folder = copied("text_classification")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": _Trap(str(tmp_path / "sprung"))}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"transformers .* cannot load the model"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_weights_of_pytorch_load(copied: Any, load: Any, predict: Any) -> None:
    import torch
    from safetensors.torch import load_file

    folder = copied("text_classification")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    body = b'{"instances": ["Nice."]}'
    wanted = predict(load("text_classification"), body)["score"]
    assert predict(load(folder), body)["score"] == pytest.approx(wanted, abs=1e-5)


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _damage(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _change(folder: Path, **settings: Any) -> None:
    document = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**document, **settings}))


REASONS = {
    "empty": (_empty, "expected a folder with config.json, as save_pretrained writes it; the folder holds nothing"),
    "no json": (lambda one: (one / "config.json").write_text("{"), "config.json: expected JSON, which it is not"),
    "a list": (lambda one: (one / "config.json").write_text("[]"), "config.json: expected a JSON object, got a list"),
    "no type": (lambda one: (one / "config.json").write_text("{}"), 'config.json: expected the key "model_type"'),
    "new type": (lambda one: _change(one, model_type="brain"), "does not recognize this architecture"),
    "no weights": (lambda one: (one / "model.safetensors").unlink(), "expected weights in model.safetensors or"),
    "pointer": (
        lambda one: (one / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "the file is a pointer of Git LFS; fetch the model itself with git lfs pull",
    ),
    "nothing in it": (lambda one: (one / "model.safetensors").write_bytes(b""), "model.safetensors: the file is empty"),
    "damaged": (_damage, "transformers .* cannot load the model"),
    "other shapes": (
        lambda one: _change(one, hidden_size=64),
        "in the weights have other shapes than config.json says",
    ),
    "no tokenizer": (
        lambda one: [file.unlink() for file in one.iterdir() if file.name.startswith(("token", "vocab", "special"))],
        "expected a tokenizer in vocab.txt, tokenizer.json, got none of them",
    ),
    "unknown class": (
        lambda one: _change(one, architectures=["BrainThing"]),
        "the task does not follow from the architectures BrainThing; set the option task",
    ),
    "an adapter": (
        lambda one: (one / "config.json").rename(one / "adapter_config.json"),
        "got an adapter .LoRA. without its model",
    ),
    "its own code": (
        lambda one: _change(one, model_type="brain", auto_map={"AutoConfig": "brain.BrainConfig"}),
        "allow them with the option trust_remote_code: true",
    ),
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_folder_that_does_not_load_says_why(kind: str, copied: Any, load: Any) -> None:
    folder = copied("text_classification")
    break_it, reason = REASONS[kind]
    break_it(folder)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load(folder)
    assert str(folder.parent) not in str(caught.value)


def test_a_file_is_no_model(tmp_path: Path, load: Any) -> None:
    (tmp_path / "model.txt").write_text("weights")
    with pytest.raises(
        ModelLoadError, match=r"model\.txt: expected the folder that save_pretrained writes, got a file"
    ):
        load(tmp_path / "model.txt")


@pytest.mark.parametrize("task", ["text-classification", "question-answering", "fill-mask"])
def test_weights_that_would_be_made_up_are_refused(task: str, load: Any) -> None:
    with pytest.raises(ModelLoadError, match=r"the weights lack .*: the folder is that of another task"):
        load("embeddings_of_a_bare_model", task=task)


def test_a_model_of_another_kind_is_refused(load: Any) -> None:
    with pytest.raises(
        ModelLoadError, match=r'task summarization: transformers .* has no such model of the type "bert"'
    ):
        load("text_classification", task="summarization")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"task": "sing"}, 'expected one of text-classification, .*, got "sing"'),
        ({"top_k": 0}, "options.top_k"),
        ({"dtype": "int8"}, "options.dtype"),
        ({"hypothesis_template": "none"}, "options.hypothesis_template"),
        ({"nosuch": 1}, "options.nosuch"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfig, match=problem):
        check_options(FRAMEWORK, options)


@pytest.mark.parametrize(
    ("written", "meant"), [("ner", "token-classification"), ("text_embedding", "feature-extraction")]
)
def test_tasks_have_other_names_too(written: str, meant: str) -> None:
    assert check_options(FRAMEWORK, {"task": written}).task == meant  # type: ignore[attr-defined]


def test_options_of_another_task_are_refused(load: Any) -> None:
    with pytest.raises(ModelLoadError, match="options normalize, pooling: the task text-classification has none"):
        load("text_classification", pooling="cls", normalize=False)
    with pytest.raises(ModelLoadError, match="option max_length: the model has 64 positions, got 65"):
        load("text_classification", max_length=65)


def test_numbers_are_float32_on_a_cpu_however_they_were_saved(copied: Any, load: Any, predict: Any) -> None:
    import torch
    import transformers

    folder = copied("text_classification")
    half = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float16)
    half.save_pretrained(folder)
    assert load(folder)._encoder.loaded.model.dtype == torch.float32
    model = load(folder, dtype="bfloat16")
    assert model._encoder.loaded.model.dtype == torch.bfloat16
    assert predict(model, b'{"instances": ["Nice."]}', ("logits",))["logits"].dtype == "float32"


def test_a_gpu_that_is_not_there_is_said(load: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelLoadError, match="option device: PyTorch finds no CUDA device"):
        load("text_classification", device="cuda")


PROGRAM = """
import pathlib, socket, sys, threading
from modelyard.model import load_model
from modelyard.protocol import v1

def refuse(*args):
    raise OSError("no network")

socket.socket.connect = socket.getaddrinfo = refuse
model = load_model("huggingface", pathlib.Path(sys.argv[1]), {})
request, _ = v1.decode_predict(b'{"instances": ["%s"]}' % (b"cat " * 400), model.signature)
tasks = pathlib.Path("/proc/self/task")
before = len(list(tasks.iterdir()))
model.predict(model.signature.bind(request.inputs), tuple(spec.name for spec in model.signature.outputs), {})
print(len(list(tasks.iterdir())) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("case", ["minilm", "entities", "text_classification"])
def test_loading_and_predicting_print_nothing_ask_nobody_and_start_no_thread(case: str, saved: Any) -> None:
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OMP_", "TOKENIZERS"))}
    command = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, str(saved(case))]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)


OWN_CODE = """
from transformers import BertForSequenceClassification

class Mine(BertForSequenceClassification):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * 0 + 7
        return outputs
"""
LOAD = """
import json, pathlib, sys
import numpy as np
from modelyard.model import load_model

model = load_model("huggingface", pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))
rows = model.signature.bind({"text": np.array([b"Nice."], dtype=object)})
print(set(model.predict(rows, ("logits",), {})["logits"].ravel().tolist()) == {7.0})
"""


@pytest.mark.parametrize("allowed", [False, True])
def test_an_artifacts_own_class_is_used_where_it_is_allowed(allowed: bool, copied: Any, tmp_path: Path) -> None:
    folder = copied("text_classification")
    (folder / "modeling_mine.py").write_text(OWN_CODE)
    _change(folder, auto_map={"AutoModelForSequenceClassification": "modeling_mine.Mine"})
    # transformers copies the code to its cache before it imports it.
    command = [sys.executable, "-c", LOAD, str(folder), json.dumps({"trust_remote_code": allowed})]
    settings = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == (f"{allowed}\n", "")
