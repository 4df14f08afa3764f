"""Chat templates of real families, written anew from the form that each family publishes, with its marks.

Each is as short as shows how the family writes a conversation; tools, documents and pictures are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken

from conftest import byte_tokenizer


@dataclass(frozen=True)
class Family:
    """How one family of models writes a conversation.

    Attributes:
        template: Its chat template.
        marks: Its special tokens.
        eos: The tokenizer's end token.
        stops: Where generation ends besides, of the generation config.
        prompt: How the generation prompt ends.
        turn: The turn that answers "No.", written by hand.
        bos: The tokenizer's first token.
        kwargs: What the template is passed.
        plain_marks: Marks that are tokens, but not special ones.
    """

    template: str
    marks: tuple[str, ...]
    eos: str
    prompt: str
    turn: str
    stops: tuple[str, ...] = ()
    bos: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    plain_marks: tuple[str, ...] = ()

    def tokenizer(self, special_reasoning: bool = False) -> Any:
        """A byte tokenizer with the family's marks and template."""
        tokenizer = byte_tokenizer()
        special = (*self.marks, *(self.plain_marks if special_reasoning else ()))
        plain = () if special_reasoning else self.plain_marks
        tokens = [AddedToken(mark, special=True, normalized=False) for mark in special]
        tokens += [AddedToken(mark, special=False, normalized=False) for mark in plain]
        tokenizer.add_tokens(tokens)
        tokenizer.eos_token = self.eos
        if self.bos is not None:
            tokenizer.bos_token = self.bos
        tokenizer.chat_template = self.template
        return tokenizer

    def stop_ids(self, tokenizer: Any) -> list[int]:
        """Ids at which generation ends."""
        return [tokenizer.convert_tokens_to_ids(mark) for mark in (*self.stops, self.eos)]


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_LLAMA31 = _LLAMA3.replace(
    "{{ bos_token }}",
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today Date: {{ strftime_now('%d %b %Y %H:%M:%S.%f') }}\n\n<|eot_id|>",
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}{% endfor %}"
)
_LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Only the last turn has its reasoning, and has it in any case.
_QWEN3_TURNS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.reasoning_content if m.reasoning_content is string else '' %}"
    "<|im_start|>assistant\n{% if loop.last %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ text }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)
_QWEN3 = (
    _QWEN3_TURNS
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_QWEN3_THINKING = _QWEN3_TURNS + "<think>\n{% endif %}"
_QWQ = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
_DEEPSEEK31 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜></think>{{ m.content }}<｜end▁of▁sentence｜>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>"
    "{{ '<think>' if thinking is defined and thinking else '</think>' }}{% endif %}"
)
_HARMONY = (
    "<|start|>system<|message|>You are a model.\nReasoning: medium\n\n"
    "# Valid channels: analysis, commentary, final.<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
_PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
_PHI4 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
_GRANITE = (
    "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
_OLMOE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n{{ m.content }}{{ eos_token }}"
    "{{ '' if loop.last else '\n' }}{% else %}<|{{ m.role }}|>\n{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# A turn has no end: the next one's first mark ends it.
_GLM45 = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n<think></think>\n{{ m.content }}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n<think></think>' }}{% endif %}{% endif %}"
)
_COMMAND_A = (
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>{% if m.role == 'assistant' %}<|CHATBOT_TOKEN|>"
    "<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>"
    "{% else %}<|{{ m.role | upper }}_TOKEN|>{{ m.content }}{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
_KIMI = (
    "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)
_MINIMAX = (
    "]~!b[{% for m in messages %}]~b]{{ 'ai' if m.role == 'assistant' else m.role }}\n{{ m.content }}[e~[\n{% endfor %}"
    "{% if add_generation_prompt %}]~b]ai\n<think>\n{% endif %}"
)
# Opens reasoning in the prompt and closes none in its turns; every answer stands in a tag.
_ERNIE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<response>\n{{ m.content }}\n</response>\n{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
_HUNYUAN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜hy_User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜hy_Assistant｜><think>\n\n</think>\n<answer>\n{{ m.content }}\n</answer>"
    "{{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜hy_Assistant｜>{% endif %}"
)
_LING = (
    "{% for m in messages %}<role>{{ {'user': 'HUMAN', 'assistant': 'ASSISTANT', 'system': 'SYSTEM'}[m.role] }}</role>"
    "{{ m.content }}<|role_end|>{% endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
)

_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
_THINK = ("<think>", "</think>")
_HARMONY_MARKS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>")
_GLM_MARKS = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>")
_COMMAND_MARKS = (
    *("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    *("<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)

FAMILIES = {
    "chatml": Family(_CHATML, _IM, "<|im_end|>", "<|im_start|>assistant\n", "No.<|im_end|>"),
    # The tokenizer's end token is that of a document, as with many models in this format.
    "chatml-eos-of-text": Family(
        _CHATML, _IM, "<|endoftext|>", "<|im_start|>assistant\n", "No.<|im_end|>", ("<|im_end|>",)
    ),
    "llama-3": Family(
        _LLAMA3,
        _HEADERS,
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "No.<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    "llama-3.1": Family(
        _LLAMA31,
        _HEADERS,
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "No.<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    "mistral": Family(
        _MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        "Hello[/INST]",
        " No.</s>",
        bos="<s>",
    ),
    "mixtral": Family(_LLAMA2, ("<s>", "</s>"), "</s>", "Hello [/INST]", " No. </s>", bos="<s>"),
    "gemma": Family(
        _GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<start_of_turn>model\n",
        "No.<end_of_turn>",
        ("<end_of_turn>",),
        bos="<bos>",
    ),
    "qwen3": Family(
        _QWEN3,
        _IM,
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nNo.<|im_end|>",
        plain_marks=_THINK,
    ),
    "qwen3-no-thinking": Family(
        _QWEN3,
        _IM,
        "<|im_end|>",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "No.<|im_end|>",
        kwargs={"enable_thinking": False},
        plain_marks=_THINK,
    ),
    "qwen3-thinking": Family(
        _QWEN3_THINKING,
        _IM,
        "<|im_end|>",
        "<|im_start|>assistant\n<think>\n",
        "\n</think>\n\nNo.<|im_end|>",
        plain_marks=_THINK,
    ),
    "qwq": Family(
        _QWQ,
        _IM,
        "<|im_end|>",
        "<|im_start|>assistant\n<think>\n",
        "\n</think>\n\nNo.<|im_end|>",
        plain_marks=_THINK,
    ),
    "deepseek-r1": Family(
        _R1,
        _DEEPSEEK,
        "<｜end▁of▁sentence｜>",
        "<｜Assistant｜><think>\n",
        "\n</think>\n\nNo.<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        plain_marks=_THINK,
    ),
    "deepseek-3.1": Family(
        _DEEPSEEK31,
        _DEEPSEEK,
        "<｜end▁of▁sentence｜>",
        "<｜Assistant｜></think>",
        "No.<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        plain_marks=_THINK,
    ),
    "deepseek-3.1-thinking": Family(
        _DEEPSEEK31,
        _DEEPSEEK,
        "<｜end▁of▁sentence｜>",
        "<｜Assistant｜><think>",
        "</think>No.<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        kwargs={"thinking": True},
        plain_marks=_THINK,
    ),
    "gpt-oss": Family(
        _HARMONY,
        (*_HARMONY_MARKS, "<|endoftext|>"),
        "<|return|>",
        "<|start|>assistant",
        "<|channel|>final<|message|>No.<|return|>",
        ("<|endoftext|>", "<|call|>"),
    ),
    "phi-3.5": Family(
        _PHI3,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|endoftext|>",
        "<|assistant|>\n",
        "No.<|end|>",
        ("<|assistant|>", "<|end|>"),
    ),
    "phi-4": Family(
        _PHI4,
        (*_IM, "<|im_sep|>"),
        "<|im_end|>",
        "<|im_start|>assistant<|im_sep|>",
        "No.<|im_end|>",
    ),
    "granite": Family(
        _GRANITE,
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "<|end_of_text|>",
        "<|start_of_role|>assistant<|end_of_role|>",
        "No.<|end_of_text|>",
    ),
    "olmoe": Family(
        _OLMOE,
        ("<|endoftext|>",),
        "<|endoftext|>",
        "<|assistant|>\n",
        "No.<|endoftext|>",
        bos="<|endoftext|>",
    ),
    "glm-4.5": Family(
        _GLM45,
        _GLM_MARKS,
        "<|endoftext|>",
        "<|assistant|>",
        "\n<think></think>\nNo.<|user|>",
        ("<|endoftext|>", "<|user|>"),
        plain_marks=_THINK,
    ),
    "glm-4.5-no-thinking": Family(
        _GLM45,
        _GLM_MARKS,
        "<|endoftext|>",
        "<|assistant|>\n<think></think>",
        "\nNo.<|user|>",
        ("<|endoftext|>", "<|user|>"),
        kwargs={"enable_thinking": False},
        plain_marks=_THINK,
    ),
    "command-a": Family(
        _COMMAND_A,
        _COMMAND_MARKS,
        "<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|START_RESPONSE|>No.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
    ),
    "kimi-k2": Family(
        _KIMI,
        (
            "<|im_user|>",
            "<|im_assistant|>",
            "<|im_system|>",
            "<|im_middle|>",
            "<|im_end|>",
            "[EOS]",
        ),
        "[EOS]",
        "<|im_assistant|>assistant<|im_middle|>",
        "No.<|im_end|>",
        ("<|im_end|>",),
    ),
    "minimax-m2": Family(
        _MINIMAX,
        ("]~!b[", "]~b]", "[e~["),
        "[e~[",
        "]~b]ai\n<think>\n",
        "\n</think>\n\nNo.[e~[",
        plain_marks=_THINK,
    ),
    "ernie-4.5-thinking": Family(
        _ERNIE,
        ("<|im_start|>", "<|im_end|>", "</s>"),
        "</s>",
        "<|im_start|>assistant\n<think>\n",
        "\n</think>\n\n<response>\nNo.\n</response>\n<|im_end|>",
        ("<|im_end|>",),
        plain_marks=_THINK,
    ),
    "hunyuan": Family(
        _HUNYUAN,
        ("<｜hy_begin▁of▁sentence｜>", "<｜hy_User｜>", "<｜hy_Assistant｜>", "<｜hy_end｜>"),
        "<｜hy_end｜>",
        "<｜hy_Assistant｜>",
        "<think>\n\n</think>\n<answer>\nNo.\n</answer><｜hy_end｜>",
        bos="<｜hy_begin▁of▁sentence｜>",
        plain_marks=_THINK,
    ),
    "ling": Family(
        _LING,
        ("<role>", "</role>", "<|role_end|>", "<|endoftext|>"),
        "<|endoftext|>",
        "<role>ASSISTANT</role>",
        "No.<|role_end|>",
        ("<|role_end|>",),
    ),
}
