"""Rendered prompts equal those of transformers, and templates that refuse messages say so to the client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from baton.errors import InvalidRequest, ModelFolderError
from baton.router.chat_template import ChatTemplate
from baton.router.tokenizer import TextProcessor

TEMPLATES = {
    "llama3": """{{- bos_token }}
{%- set loop_messages = messages %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

Today: {{ date_string }}
{% for message in loop_messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
        + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- ' [INST] ' + (system_message + '\\n\\n' if loop.first and system_message is defined else '')
            + message['content'] + ' [/INST]' }}
    {%- else %}
        {%- generation %}{{- ' ' + message['content'] + eos_token }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}
""",
    "qwen": """{%- if tools %}TOOLS{{ tools | tojson }}{% endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content is defined and message.reasoning_content %}
        {{- '<think>' + message.reasoning_content + '</think>' }}
    {%- endif %}
{{- message.content }}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>' + call.function.arguments | tojson(indent=2) + '</tool_call>' }}
        {%- endfor %}
    {%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
}

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "  Grüße, 東京?  "},
    {"role": "assistant", "content": "Hello there. ", "reasoning_content": "greet"},
]
TOOL_TURN: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": "<é>", "b": [1]}}}],
}


def folder_with(folder: Path, template: str, model_folder: Path) -> Path:
    (folder / "tokenizer.json").write_bytes((model_folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_bytes((model_folder / "tokenizer_config.json").read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_prompt_equals_that_of_transformers(
    name: str, add_generation_prompt: bool, turns: int, tmp_path: Path, model_folder: Path
) -> None:
    folder = folder_with(tmp_path, TEMPLATES[name], model_folder)
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = CONVERSATION[:turns]
    expected = oracle.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
    )
    assert expected == TextProcessor.from_folder(folder).render_chat(
        messages, add_generation_prompt=add_generation_prompt, variables={"enable_thinking": False}
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_continued_message_equals_that_of_transformers(name: str, tmp_path: Path, model_folder: Path) -> None:
    folder = folder_with(tmp_path, TEMPLATES[name], model_folder)
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = oracle.apply_chat_template(
        CONVERSATION, tokenize=False, add_generation_prompt=False, continue_final_message=True
    )
    assert expected == TextProcessor.from_folder(folder).render_chat(
        CONVERSATION, add_generation_prompt=False, continue_final_message=True
    )


def test_tool_calls_are_rendered_as_in_transformers(tmp_path: Path, model_folder: Path) -> None:
    folder = folder_with(tmp_path, TEMPLATES["qwen"], model_folder)
    messages = [CONVERSATION[1], TOOL_TURN, {"role": "tool", "content": "42"}]
    expected = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert "é" in expected
    assert TextProcessor.from_folder(folder).render_chat(messages) == expected


def test_template_in_the_configuration_equals_transformers(model_folder: Path, text: TextProcessor) -> None:
    oracle = PreTrainedTokenizerFast.from_pretrained(model_folder)
    rendered = text.render_chat(CONVERSATION, variables={"style": "<b>"})
    assert rendered.startswith("<|begin|><|im_start|>system")
    assert rendered.endswith('style: "<b>"\n')
    assert rendered == oracle.apply_chat_template(
        CONVERSATION, tokenize=False, add_generation_prompt=True, style="<b>"
    )


def test_default_of_several_templates_is_taken(tmp_path: Path, model_folder: Path) -> None:
    config = json.loads((model_folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain"},
    ]
    (tmp_path / "tokenizer.json").write_bytes((model_folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert TextProcessor.from_folder(tmp_path).render_chat(CONVERSATION) == "plain"


def test_what_a_template_raises_is_the_clients_error() -> None:
    template = ChatTemplate(TEMPLATES["mistral"], {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        template.render([{"role": "assistant", "content": "x"}])
    assert caught.value.field == "messages"


@pytest.mark.parametrize("source", ["{{ messages[7].role + 1 }}", "{{ 1 / 0 }}", "{{ range(10**9) }}"])
def test_a_template_that_fails_is_the_clients_error(source: str) -> None:
    with pytest.raises(InvalidRequest, match="refused"):
        ChatTemplate(source, {}).render(CONVERSATION)


def test_a_template_cannot_leave_its_sandbox() -> None:
    with pytest.raises(InvalidRequest, match="unsafe"):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}", {}).render(CONVERSATION)


def test_the_servers_variables_cannot_be_replaced() -> None:
    with pytest.raises(InvalidRequest, match="messages") as caught:
        ChatTemplate("", {}).render(CONVERSATION, variables={"messages": []})
    assert caught.value.field == "chat_template_kwargs.messages"


def test_final_message_that_the_template_drops_cannot_be_continued() -> None:
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        ChatTemplate("{{ messages[0].content }}", {}).render(CONVERSATION, continue_final_message=True)


def test_malformed_template_stops_the_server_with_its_file_and_line() -> None:
    with pytest.raises(ModelFolderError, match=r"chat_template.jinja: line 2"):
        ChatTemplate("\n{% if %}", {}, "chat_template.jinja")


def test_chat_without_a_template_names_the_other_endpoint(sentencepiece: TextProcessor) -> None:
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        sentencepiece.render_chat(CONVERSATION)
