# SPDX-License-Identifier: Apache-2.0
"""Tokens become text piece by piece: whole characters, and nothing of a stop string."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modelyard_deployments._generation_text import Detokenizer, StopFinder


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


def pieces(tokenizer: Any, tokens: list[int], prompt: tuple[int, ...] = (), skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt, skip)
    return [*(detokenizer.add(token) for token in tokens), detokenizer.flush()]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufffd"), max_size=30))
def test_pieces_make_the_text_and_no_half_character(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    assume("\ufffd" not in whole)  # a character with a byte that this vocabulary does not have
    told = pieces(tokenizer, tokens)
    assert "".join(told) == whole
    assert not any("\ufffd" in piece for piece in told)


def test_a_character_of_several_tokens_comes_whole(tokenizer: Any) -> None:
    tokens = tokenizer("a🦙b", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 4
    assert [piece for piece in pieces(tokenizer, tokens) if piece] == ["a", "🦙", "b"]


def test_a_character_that_is_never_finished_is_not_told(tokenizer: Any) -> None:
    tokens = tokenizer("a🦙", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, tokens[:-1])) == "a"


def test_special_tokens_are_told_where_they_are_wanted(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    tokens = [*tokenizer("a", add_special_tokens=False)["input_ids"], end]
    assert "".join(pieces(tokenizer, tokens)) == "a"
    assert "".join(pieces(tokenizer, tokens, skip=False)) == f"a{tokenizer.eos_token}"


def test_a_space_after_the_prompt_is_told(tokenizer: Any) -> None:
    prompt = tokenizer("Hello")["input_ids"]
    tokens = tokenizer(" world", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, tokens, tuple(prompt))) == " world"


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Character by character, which no chunking can change."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.booleans(),
)
def test_chunks_do_not_matter_to_stop_strings(chunks: list[str], stops: list[str], include: bool) -> None:
    finder, shown = StopFinder(stops, include), ""
    whole, stop = expected("".join(chunks), stops, include)
    for chunk in chunks:
        shown += finder.add(chunk)
        assert whole.startswith(shown)
        if finder.found is not None:
            break
    else:
        shown += finder.flush()
    assert (shown, finder.found) == (whole, stop)


def test_what_can_be_no_stop_string_is_shown_at_once() -> None:
    finder = StopFinder(["\n\n"])
    assert [finder.add(text) for text in ("a", "b\n", "c", "\n", "\nd")] == ["a", "b", "\nc", "", ""]
    assert finder.found == "\n\n"
