"""Chat templates of the real kinds: those of known models, and those that go wrong."""

from scripts.benchmarks.bases.models import CHATML

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

# The system message is the beginning of the first question.
GEMMA_3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = '' -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    f"{{{{ raise_exception('{ALTERNATE}') }}}}{{%- endif -%}}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
    "{{ raise_exception('Invalid content type') }}{%- endif -%}{{ '<end_of_turn>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
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

PHI_4_MINI = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + "
    "'<|/tool|>' + '<|end|>' }}{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)

# What an assistant thought before is left out.
QWEN_3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

# The system message stands in a text of the template's own, which says how to think.
SMOLLM_3 = """{%- set mode = "/think" %}
{%- set custom = "" %}
{%- if messages[0].role == "system" %}
    {%- if "/no_think" in messages[0].content %}{%- set mode = "/no_think" %}{%- endif %}
    {%- set custom = messages[0].content.replace("/no_think", "").replace("/think", "").rstrip() %}
{%- endif %}
{{- "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\n" }}
{{- "Reasoning Mode: " + mode + "\n\n## Custom Instructions\n\n" }}
{%- if custom %}{{- custom + "\n\n" }}
{%- else %}{{- "You are a helpful AI assistant named SmolLM.\n\n" }}
{%- endif %}
{{- "<|im_end|>\n" }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- "<|im_start|>user\n" + message.content + "<|im_end|>\n" }}
    {%- elif message.role == "assistant" %}
        {{- "<|im_start|>assistant\n" + message.content.lstrip("\n") + "<|im_end|>\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{%- endif %}
"""

GRANITE_3 = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Knowledge Cutoff Date: April 2024.\nYou are Granite." %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] }}
    {{- '<|end_of_text|>\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}
"""

OLMO_2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + eos_token + ('' if loop.last else '\n') }}"
    "{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    "{% endfor %}"
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
    "Gemma 3": GEMMA_3,
    "Granite 3": GRANITE_3,
    "Llama 2": LLAMA_2,
    "Llama 3": LLAMA_3,
    "Mistral 0.1": MISTRAL_1,
    "Mistral 0.3": MISTRAL_3,
    "OLMo 2": OLMO_2,
    "Phi-3": PHI_3,
    "Phi-4-mini": PHI_4_MINI,
    "Qwen3": QWEN_3,
    "SmolLM3": SMOLLM_3,
    "Zephyr": ZEPHYR,
    "no empty turns": NO_EMPTY_TURNS,
    "system first": SYSTEM_FIRST,
}

CONTROL = {
    "Gemma 2": ["<start_of_turn>", "<end_of_turn>"],
    "Gemma 3": ["<start_of_turn>", "<end_of_turn>"],
    "Granite 3": ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
    "Llama 3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "Mistral 0.3": ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"],
    "Phi-3": ["<|user|>", "<|assistant|>", "<|end|>"],
    "Phi-4-mini": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "Qwen3": ["<|im_start|>", "<|im_end|>"],
    "SmolLM3": ["<|im_start|>", "<|im_end|>"],
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
