"""Chat templates of the real kinds: those of known models, and those that go wrong."""

from scripts.benchmarks.models import CHATML

ALTERNATE = "Conversation roles must alternate user/assistant/user/assistant/..."

GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    f"{{{{ raise_exception('{ALTERNATE}') }}}}{{% endif %}}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)

MISTRAL_1 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    f"{{{{ raise_exception('{ALTERNATE}') }}}}{{% endif %}}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)

# The system message stands before the last question; tools are for the last question only.
MISTRAL_3 = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results"
                or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must "
                                + "alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
"""

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    f"{{{{ raise_exception('{ALTERNATE}') }}}}{{% endif %}}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

# The first Phi-3: a system message is left out without a word.
PHI_3 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\\n' + message['content'] + '<|end|>' + '\\n' + '<|assistant|>' + '\\n'}}"
    "{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|end|>' + '\\n'}}{% endif %}{% endfor %}"
)

LLAMA_3 = """{{- bos_token }}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Plain words mark the roles, as Zephyr's and TinyLlama's template does.
ZEPHYR = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>\\n' + message['content'] + "
    "eos_token + '\\n'}}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}"
    "{% endif %}{% endfor %}"
)

NO_EMPTY_TURNS = (
    "{% for message in messages %}{% if not message['content'] %}"
    "{{ raise_exception('content is empty') }}{% endif %}{% endfor %}" + CHATML
)

# Only a first message may be the system's, as in Qwen 3's family.
SYSTEM_FIRST = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}"
    + CHATML
)

TEMPLATES = {
    "ChatML": CHATML,
    "Gemma 2": GEMMA_2,
    "Llama 2": LLAMA_2,
    "Llama 3": LLAMA_3,
    "Mistral 0.1": MISTRAL_1,
    "Mistral 0.3": MISTRAL_3,
    "Phi-3": PHI_3,
    "Zephyr": ZEPHYR,
    "no empty turns": NO_EMPTY_TURNS,
    "system first": SYSTEM_FIRST,
}

CONTROL = {
    "Gemma 2": ["<start_of_turn>", "<end_of_turn>"],
    "Llama 3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "Mistral 0.3": ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"],
    "Phi-3": ["<|user|>", "<|assistant|>", "<|end|>"],
}

# What no conversation can be written with -> a word of the reason.
UNUSABLE = {
    "a syntax error": ("{% for message in messages %}{{ message.content }", "expected"),
    "an unknown filter": ("{{ messages | no_such_filter }}", "no_such_filter"),
    "always raises": ("{{ raise_exception('for rerankers only') }}", "for rerankers only"),
    "tools that nobody gave": ("{% for tool in tools %}{{ tool }}{% endfor %}", "iterable"),
    "an undefined word": ("{{ start_word + messages[0].content }}", "start_word"),
    "the last message alone": ("{{ messages[-1].content }}", "left out 2 of 3"),
    "upper case": (CHATML.replace("message['content']", "message['content'] | upper"), "left out"),
    "nothing at all": ("{{ '' }}", "left out"),
    "other fields": ("{% for m in messages %}{{ m.value + '' }}{% endfor %}", "value"),
}
