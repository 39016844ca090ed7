# SPDX-License-Identifier: Apache-2.0
"""Bodies of the generating routes, typed: what is not here is refused, what is here is honoured.

Members are OpenAI's, and vLLM's additions to them, under its names.

Source: the OpenAI API reference; vLLM 0.29 ``entrypoints/openai/*/protocol.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelyard_deployments._openai_protocol import Body

_SEED = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Token: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
Tokens: TypeAlias = Annotated[tuple[Token, ...], Field(min_length=1)]
Texts: TypeAlias = Annotated[tuple[str, ...], Field(min_length=1, max_length=1024)]
Schema: TypeAlias = dict[str, Any]


class Part(BaseModel):
    """Base of everything inside a body: strict, and without unknown members."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Part):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Part):
    """``response_format.json_schema``."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    definition: Annotated[Schema, Field(alias="schema")] = {}
    strict: bool | None = None


class TextFormat(Part):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Part):
    """A JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Part):
    """What a JSON schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat: TypeAlias = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Part):
    """vLLM's ``structured_outputs``: exactly one of them."""

    json_: Annotated[Schema | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Texts | None = None
    grammar: str | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _check_one(self) -> StructuredOutputs:
        given = [
            name for name in ("json_", "regex", "choice", "grammar", "json_object") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(f"expected one of json, regex, choice, grammar and json_object, got {len(given)}")
        return self


class Sampled(Body):
    """Members that choose tokens, the same on ``chat/completions`` and ``completions``."""

    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: _SEED | None = None
    stop: str | Annotated[tuple[str, ...], Field(max_length=64)] | None = None
    stop_token_ids: tuple[Token, ...] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    skip_special_tokens: bool = True
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    allowed_token_ids: Tokens | None = None
    bad_words: tuple[str, ...] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    # Of no effect here or anywhere, with the values that say so.
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    request_id: str | None = None
    session_id: str | None = None
    priority: Literal[0] | None = None
    use_beam_search: Literal[False] | None = None
    spaces_between_special_tokens: Literal[True] | None = None

    @model_validator(mode="after")
    def _check_combinations(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        is_structured = self.structured_outputs is not None or (
            self.response_format is not None and self.response_format.type != "text"
        )
        if is_structured and (self.ignore_eos or self.min_tokens):
            raise ValueError("an answer in a given form ends where the form does: leave out ignore_eos and min_tokens")
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("expected response_format or structured_outputs, got both")
        return self

    @property
    def includes_usage(self) -> bool:
        """A stream ends with an event that has the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()


class CompletionRequest(Sampled):
    """``POST /v1/completions``."""

    prompt: str | Texts | Tokens | Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=1024)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: Literal[""] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check_best(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("best_of must not be less than n")
        if self.best_of is not None and self.best_of > (self.n or 1) and self.stream:
            raise ValueError("best_of is known only when all answers are, so it cannot be streamed")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens of 0 needs echo, as there would be no answer")
        return self


class TextPart(Part):
    """Text in a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class RefusalPart(Part):
    """A refusal that was a part of an earlier answer."""

    type: Literal["refusal"]
    refusal: str


Content: TypeAlias = str | Annotated[tuple[TextPart, ...], Field(min_length=1)]


class FunctionCall(Part):
    """A call that the model made."""

    name: str
    arguments: str


class ToolCall(Part):
    """A call with its id."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class _Named(Part):
    name: str | None = None


class SystemMessage(_Named):
    """What the model has to keep to."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(_Named):
    """What the user says."""

    role: Literal["user"]
    content: Content


class AssistantMessage(_Named):
    """An earlier answer, as it was given."""

    role: Literal["assistant"]
    content: str | tuple[TextPart | RefusalPart, ...] | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _check_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls and self.refusal is None:
            raise ValueError("expected content or tool_calls")
        return self


class ToolMessage(_Named):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message: TypeAlias = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]
Messages: TypeAlias = Annotated[tuple[Message, ...], Field(min_length=1)]


class Function(Part):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.:-]+$")]
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Part):
    """A tool; all are functions."""

    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    """The function to call."""

    name: str


class NamedTool(Part):
    """``tool_choice`` of one function."""

    type: Literal["function"] = "function"
    function: NamedFunction


class _Templated(Body):
    """Members that the chat template is given."""

    messages: Messages
    tools: Annotated[tuple[Tool, ...], Field(max_length=128)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, str]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False

    @model_validator(mode="after")
    def _check_end(self) -> _Templated:
        if (
            self.continue_final_message
            and "add_generation_prompt" in self.model_fields_set
            and self.add_generation_prompt
        ):
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        return self


class ChatRequest(Sampled, _Templated):
    """``POST /v1/chat/completions``."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    modalities: tuple[Literal["text"]] | None = None
    store: bool | None = None

    @model_validator(mode="after")
    def _check_tools(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        names = [tool.function.name for tool in self.tools or ()]
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f'tool_choice: expected one of {", ".join(names)}, got "{self.tool_choice.function.name}"')
        is_form = self.structured_outputs is not None or (
            self.response_format is not None and self.response_format.type != "text"
        )
        if is_form and (self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)):
            raise ValueError("a tool has to be called, so the answer cannot have another form")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that the answer may call."""
        return () if self.tool_choice == "none" else self.tools or ()


class TokenizeTextRequest(Body):
    """``POST /tokenize`` of a text."""

    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class TokenizeChatRequest(_Templated):
    """``POST /tokenize`` of messages."""

    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """``POST /detokenize``."""

    tokens: tuple[Token, ...]
