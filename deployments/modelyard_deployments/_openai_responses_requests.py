# SPDX-License-Identifier: Apache-2.0
"""Bodies of ``/v1/responses``, typed: text in and out, nothing kept between calls.

Source: the OpenAI API reference, "Responses".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from modelyard_deployments._openai_requests import (
    AssistantMessage,
    Function,
    FunctionCall,
    Message,
    ObjectFormat,
    Part,
    RefusalPart,
    Sampled,
    Schema,
    SystemMessage,
    TextFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
)

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class InputMessage(Part):
    """A message of the conversation, or an earlier answer as it was given."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[tuple[TextPart | RefusalPart, ...], Field(min_length=1)]
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class InputCall(Part):
    """An earlier call."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class InputResult(Part):
    """What a function answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[tuple[TextPart, ...], Field(min_length=1)]
    id: str | None = None
    status: Status | None = None


Item: TypeAlias = InputMessage | InputCall | InputResult


class FunctionTool(Part):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.:-]+$")]
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class NamedFunctionTool(Part):
    """``tool_choice`` of one function."""

    type: Literal["function"]
    name: str


class SchemaText(Part):
    """What a JSON schema describes."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    definition: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class TextConfig(Part):
    """``text``."""

    format: Annotated[TextFormat | ObjectFormat | SchemaText, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Part):
    """``reasoning``."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class ResponsesRequest(Sampled):
    """``POST /v1/responses``. ``store`` is taken and answered with false, as vLLM does: nothing is kept."""

    input: str | Annotated[tuple[Item, ...], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextConfig | None = None
    tools: Annotated[tuple[FunctionTool, ...], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: tuple[Literal["message.output_text.logprobs"], ...] | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] | None = None
    store: bool | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None

    @model_validator(mode="after")
    def _check_tools(self) -> ResponsesRequest:
        names = [tool.name for tool in self.tools or ()]
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedFunctionTool) and self.tool_choice.name not in names:
            raise ValueError(f'tool_choice: expected one of {", ".join(names)}, got "{self.tool_choice.name}"')
        form = self.text.format if self.text is not None else None
        forms = [self.structured_outputs is not None, form is not None and form.type != "text"]
        if any(forms) and (self.tool_choice == "required" or isinstance(self.tool_choice, NamedFunctionTool)):
            raise ValueError("a tool has to be called, so the answer cannot have another form")
        if all(forms):
            raise ValueError("text.format and structured_outputs: expected one of them, got both")
        if self.n not in (None, 1):
            raise ValueError("a response is one answer, so n can only be 1")
        return self

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that the answer may call, as the chat has them."""
        if self.tool_choice == "none":
            return ()
        return tuple(
            Tool(type="function", function=Function(**tool.model_dump(exclude={"type"}))) for tool in self.tools or ()
        )

    @property
    def messages(self) -> list[Message]:
        """The conversation as the chat has it; calls that follow each other are one message."""
        messages: list[Message] = []
        if self.instructions is not None:
            messages.append(SystemMessage(role="system", content=self.instructions))
        if isinstance(self.input, str):
            return [*messages, UserMessage(role="user", content=self.input)]
        for item in self.input:
            if isinstance(item, InputCall):
                _add_call(messages, item)
            elif isinstance(item, InputResult):
                messages.append(ToolMessage(role="tool", content=item.output, tool_call_id=item.call_id))
            else:
                messages.append(_to_message(item))
        return messages

    @property
    def wants_logprobs(self) -> bool:
        """``include`` names them, or ``top_logprobs`` asks for some."""
        return bool(self.include) or bool(self.top_logprobs)


def _add_call(messages: list[Message], item: InputCall) -> None:
    call = ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments))
    last = messages[-1] if messages else None
    if isinstance(last, AssistantMessage):
        messages[-1] = last.model_copy(update={"tool_calls": (*(last.tool_calls or ()), call)})
    else:
        messages.append(AssistantMessage(role="assistant", tool_calls=(call,)))


def _to_message(item: InputMessage) -> Message:
    if item.role == "assistant":
        return AssistantMessage(role="assistant", content=item.content)
    content: Any = item.content
    if not isinstance(content, str):
        texts = [part.text if isinstance(part, TextPart) else part.refusal for part in content]
        content = "\n".join(texts)
    if item.role == "user":
        return UserMessage(role="user", content=content)
    return SystemMessage(role=item.role, content=content)
