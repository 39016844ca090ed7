# SPDX-License-Identifier: Apache-2.0
"""From texts and messages to a prompt's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelyard_deployments._openai_protocol import Refusal, read_text
from modelyard_deployments._openai_requests import AssistantMessage, Content, Message, RefusalPart, TextPart, Tool
from modelyard_deployments._openai_tools import describe_tools, explain_tools, write_call

_LONG: Final = 10_000
"""Characters; longer texts take milliseconds, so they are tokenized beside the event loop."""
_OURS: Final = frozenset({"conversation", "tools", "documents", "chat_template", "tokenize", "messages"})


class Prompts:
    """Makes prompts for one model.

    Args:
        tokenizer: A tokenizer of transformers.
        chat_template: A Jinja template instead of its own.
        vocabulary: How many tokens the model has.
        max_model_len: Most tokens of prompt and answer together.
        is_apart: The limit is for each alone, as an encoder reads the prompt.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None,
        vocabulary: int,
        max_model_len: int,
        is_apart: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._template: str | None = chat_template or _find_template(tokenizer)
        self._vocabulary = vocabulary
        self.is_apart = is_apart
        self.max_model_len = max_model_len

    @property
    def has_template(self) -> bool:
        """The model can chat."""
        return self._template is not None

    async def from_text(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The text's tokens."""
        if len(text) > _LONG:
            return await asyncio.to_thread(self._tokenize, text, add_special_tokens)
        return self._tokenize(text, add_special_tokens)

    def check_tokens(self, tokens: Sequence[int], param: str) -> None:
        """Refuses tokens that the model does not have.

        Raises:
            Refusal: With the first of them.
        """
        for token in tokens:
            if not 0 <= token < self._vocabulary:
                raise Refusal(f"{param}: expected tokens from 0 to {self._vocabulary - 1}, got {token}", param)

    async def from_messages(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        documents: Sequence[Mapping[str, str]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The tokens of a conversation, as the chat template writes it.

        Args:
            messages: In their order.
            tools: What may be called; a template that says nothing of tools gets them in the first message.
            add_generation_prompt: End with the beginning of an answer.
            continue_final_message: End inside the last message.
            add_special_tokens: What the tokenizer itself puts around texts, which templates mostly have.
            documents: For templates that know some.
            variables: Further ones for the template.

        Raises:
            Refusal: There is no template, or it refuses the messages.
        """
        if self._template is None:
            raise Refusal(
                "this model has no chat template, so it answers completions and no chat", code="no_chat_template"
            )
        if unknown := sorted(_OURS & (variables or {}).keys()):
            raise Refusal(f"chat_template_kwargs: {', '.join(unknown)} cannot be set here", "chat_template_kwargs")
        knows_tools = "tools" in self._template
        conversation = [_to_template(message, knows_tools) for message in messages]
        if tools and not knows_tools:
            conversation = _with_explanation(conversation, explain_tools(tools))
        try:
            text = self._tokenizer.apply_chat_template(
                conversation,
                tools=describe_tools(tools) if tools and knows_tools else None,
                documents=documents,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                tokenize=False,
                **(variables or {}),
            )
        except Exception as exc:  # a template is a program, which can raise whatever it likes about the messages
            raise Refusal(f"the chat template refuses the messages: {exc}", "messages") from exc
        return await self.from_text(text, add_special_tokens)

    def check_length(self, prompt: Sequence[int], max_tokens: int | None, param: str) -> int:
        """How many tokens the answer may have.

        Args:
            prompt: Its tokens.
            max_tokens: As the client asked; None where it did not.
            param: Which member of the body the prompt is.

        Raises:
            Refusal: The prompt, or the prompt and the answer, do not fit.
        """
        fits = len(prompt) <= self.max_model_len
        room = self.max_model_len - (len(prompt) if not self.is_apart or not fits else 0)
        if not prompt:
            raise Refusal(f"{param}: expected at least one token, got none", param, "empty_string")
        if room < (max_tokens or (0 if max_tokens == 0 else 1)):
            asked = f" and {max_tokens} of the answer" if max_tokens is not None else ""
            raise Refusal(
                f"This model's maximum context length is {self.max_model_len} tokens. However, the request has "
                f"{len(prompt)} tokens in the prompt{asked}. Please reduce the length of the input.",
                param,
                "context_length_exceeded",
            )
        return room if max_tokens is None else max_tokens

    def _tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return tokens


def _find_template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template


def _to_template(message: Message, knows_tools: bool) -> dict[str, Any]:
    """A message as templates take it: ``developer`` is the system, text parts are one text, arguments are objects."""
    document: dict[str, Any] = {"role": message.role, "content": _to_text(message.content)}
    if message.role == "developer":
        document["role"] = "system"
    if message.name is not None:
        document["name"] = message.name
    if message.role == "tool":
        document["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage):
        reasoning = message.reasoning or message.reasoning_content
        if reasoning is not None:
            document |= {"reasoning": reasoning, "reasoning_content": reasoning}
        if message.tool_calls and knows_tools:
            document["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": _to_function(call.function.name, call.function.arguments),
                }
                for call in message.tool_calls
            ]
        elif message.tool_calls:
            calls = [write_call(call.function.name, call.function.arguments) for call in message.tool_calls]
            document["content"] = "\n".join([*([document["content"]] if document["content"] else []), *calls])
    return document


def _to_function(name: str, arguments: str) -> dict[str, Any]:
    try:
        return {"name": name, "arguments": read_text(arguments or "{}")}
    except ValueError:
        return {"name": name, "arguments": arguments}


def _to_text(content: Content | tuple[TextPart | RefusalPart, ...] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _with_explanation(conversation: list[dict[str, Any]], words: str) -> list[dict[str, Any]]:
    if conversation[0]["role"] != "system":
        return [{"role": "system", "content": words}, *conversation]
    first = conversation[0] | {"content": f"{conversation[0]['content']}\n\n{words}"}
    return [first, *conversation[1:]]
