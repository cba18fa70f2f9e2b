"""Chat templates as well-known models have them, in their essentials: roles, marks, white space, refusals, dates."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.text.tokenizers import tokenizer_of

_ROLES_ALTERNATE = (
    "{% for m in messages if m.role != 'system' %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant') }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class KnownTemplate:
    """A template, and what of it is text of its own.

    Attributes:
        control: its control tokens, which the tokenizer knows
        opening: before the words of a user, without system prompt
        after: behind them
        system: whether it takes a system prompt
        system_in_turn: the system prompt stands in the user's turn, in front of the words
        marks: what begins and ends a turn and is ordinary text for the tokenizer
    """

    template: str
    control: tuple[str, ...]
    opening: str
    after: str
    system: bool = True
    system_in_turn: bool = False
    marks: tuple[str, ...] = ()

    def tokenizer(self, kind: str = "bytes") -> PreTrainedTokenizerFast:
        """A tokenizer of this kind with the template; every control token is one token."""
        tokenizer = tokenizer_of(kind, self.control)
        tokenizer.chat_template = self.template
        return tokenizer


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_IM = ("<|im_start|>", "<|im_end|>")

TEMPLATES = {
    "chatml": KnownTemplate(_CHATML, _IM, "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "smollm": KnownTemplate(  # a system turn of its own
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}{% endif %}"
        + _CHATML,
        _IM,
        "<|im_start|>system\nYou are SmolLM<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen": KnownTemplate(  # a branch for tools, which it never gets, and thoughts that are dropped from earlier turns
        "{% if tools %}{{ '<|im_start|>system\n# Tools' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{% set text = m.content %}"
        "{% if m.role == 'assistant' and '</think>' in text %}{% set text = text.split('</think>')[-1].lstrip('\n') %}"
        "{% endif %}{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}",
        (*_IM, "<think>", "</think>"),
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "llama2": KnownTemplate(  # marks that are ordinary text for the tokenizer; the system prompt goes into the turn
        _ROLES_ALTERNATE + "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}"
        "{% if loop.first and system %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
        "{{ m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        (),
        "<bos>[INST] ",
        " [/INST]",
        system_in_turn=True,
        marks=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    "llama3": KnownTemplate(  # a date in a system turn that is always there
        "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' }}"
        "{{ date_string if date_string is defined else '26 Jul 2024' }}{{ '\n\n' }}"
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}{{ '<|eot_id|>' }}"
        "{% for m in messages if m.role != 'system' %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<bos><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": KnownTemplate(  # the system prompt stands in the last turn of the user, in front of the words
        _ROLES_ALTERNATE
        + "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' %}{{ '[INST]' }}{% if loop.last and system %}{{ system + '\n\n' }}{% endif %}"
        "{{ m.content + '[/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]"),
        "<bos>[INST]",
        "[/INST]",
        system_in_turn=True,
    ),
    "gemma": KnownTemplate(  # no system role, roles alternate, white space is trimmed
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + _ROLES_ALTERNATE
        + "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\n",
        "<end_of_turn>\n<start_of_turn>model\n",
        system=False,
    ),
    "phi": KnownTemplate(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|user|>\n",
        "<|end|>\n<|assistant|>\n",
    ),
    "zephyr": KnownTemplate(  # marks that are ordinary text, turns that end with the EOS
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        (),
        "<|user|>\n",
        "<eos>\n<|assistant|>\n",
        marks=("<|system|>", "<|user|>", "<|assistant|>"),
    ),
}
