# SPDX-License-Identifier: Apache-2.0
"""The command that checks files before anybody deploys them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from modelyard.cli.session import app
from modelyard.config import ModelsFile, check_framework, parse_section
from modelyard.config.documents import read_documents
from modelyard.config.problems import nearest, shown
from modelyard.errors import InvalidConfig
from modelyard.kuberay import check_rules, check_serving, check_shape, read_serve_file
from modelyard.kuberay.rules import API_VERSION
from modelyard.kuberay.serving import PATH

_OURS: Final = "RayService"
_GROUP: Final = "ray.io/"
_RAYS: Final = (_OURS, "RayCluster", "RayCronJob", "RayJob")
"""The kinds of its group. Source: KubeRay v1.7.0 ``ray-operator/apis/ray/v1``."""
_KEYS: Final = ("applications", "kind", "models")
"""One of them tells what a document is."""
_ALIKE: Final = 0.85
"""How like ours a word is that is meant to be ours: ``Service`` is less like ``RayService``."""


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Serve files, RayServices, lists of models.")],
) -> None:
    """Check files of YAML: one line for each problem, exit status 1 where there is any."""
    found = [_check_file(path) for path in files]
    if any(found):
        raise typer.Exit(1)


def _check_file(path: Path) -> bool:
    """Whether anything is wrong with it."""
    try:
        documents = read_documents(path)
    except InvalidConfig as exc:
        return _print(exc.problems, "")
    if not documents:
        return _print(("expected a document, got none",), f"{path}: ")
    wrong, others = False, []
    for number, whole in enumerate(documents, 1):
        where = str(path) if len(documents) == 1 else f"{path}, document {number}"
        for place, document in _items(whole, where):
            if isinstance(document, Mapping) and _is_other(document):
                others.append(str(document["kind"]))
            else:
                wrong |= _print(_check_document(document), f"{place}: ")
    if others:
        typer.echo(f"{path}: not checked: {', '.join(sorted(set(others)))}")
    return wrong


def _items(document: object, where: str) -> Iterator[tuple[str, object]]:
    """A document, or those inside a list of Kubernetes, as ``kubectl get`` prints it; each with its place."""
    if isinstance(document, Mapping) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        for index, item in enumerate(document["items"]):
            yield from _items(item, f"{where}, items[{index}]")
    else:
        yield where, document


def _is_other(document: Mapping[str, Any]) -> bool:
    """Whether it is of a kind that somebody else checks. A kind that KubeRay does not have is none."""
    kind = document.get("kind", _OURS)
    return kind != _OURS and (kind in _RAYS or not _is_rays(document))


def _is_rays(document: Mapping[str, Any]) -> bool:
    """Whether it is meant for KubeRay, which a misspelt word hides from it and from everybody else."""
    version, kind = str(document.get("apiVersion")), str(document.get("kind"))
    is_like = SequenceMatcher(None, kind.lower(), _OURS.lower()).ratio() > _ALIKE
    return version.startswith(_GROUP) or is_like or bool(get_close_matches(version, (API_VERSION,), cutoff=_ALIKE))


def _check_document(document: object) -> tuple[str, ...]:
    if not isinstance(document, Mapping):
        return (f"expected a mapping, got {shown(document, '')}",)
    if "kind" in document:
        kind = document["kind"]
        if kind != _OURS:
            return (f"kind: unknown kind {shown(kind, '')} of {_GROUP[:-1]}{nearest(str(kind), _RAYS)}",)
        return check_rayservice(document)
    if "applications" in document:
        return check_serve(document)
    if "models" in document:
        return _check_models(document)
    for key in map(str, document):
        if near := get_close_matches(key, _KEYS, n=1, cutoff=_ALIKE):
            return (f'{key}: unknown key; did you mean "{near[0]}"?',)
    return ("expected one of the keys applications, kind and models",)


def check_rayservice(service: Mapping[str, Any]) -> tuple[str, ...]:
    """What is wrong with a RayService and with the Serve file in it."""
    problems = check_shape(service)
    if problems:
        return problems  # rules and files can be looked at where the shape is right
    problems = check_rules(service)
    if not service["spec"].get("serveConfigV2"):
        return problems
    try:
        document = read_serve_file(service)
    except InvalidConfig as exc:
        return (*problems, *exc.problems)
    inside = (f"{PATH}.{problem}" for problem in check_serve(document))
    return (*problems, *check_serving(service, document), *inside)


def check_serve(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What is wrong with a Serve file."""
    from modelyard.serve.files import check_serve_file  # Ray Serve, which takes seconds to import

    return check_serve_file(document)


def _check_models(document: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        models = parse_section(ModelsFile, document).models
    except InvalidConfig as exc:
        return exc.problems
    return tuple(text for index, spec in enumerate(models) for text in check_framework(spec, f"models[{index}]"))


def _print(problems: tuple[str, ...], where: str) -> bool:
    for problem in problems:
        typer.echo(f"{where}{' '.join(problem.split())}")
    return bool(problems)
