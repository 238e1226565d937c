"""Prompts with several turns and clips, and the chat templates of tokenizers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolm_lite.language.prompt import PromptError, PromptTemplate
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE
from tests.tiny import byte_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token + '<|im_start|>system<|im_end|>Today: ' + date_string + '<|im_end|>' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_end|>' + m.content + '<|im_end|>' }}{% endfor %}"
)
ROW = {"id": "r", "instruction": "what?", "target": "a dog"}
HISTORY = [{"instruction": "hello", "target": "hi"}, {"instruction": "who?", "target": "me"}]


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte, and the special tokens of two chat formats."""
    made = byte_tokenizer(bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def with_chat(tokenizer, chat_template):
    tokenizer.chat_template = chat_template
    return tokenizer


def spelt(tokenizer, ids):
    """Text of ids, with # for an audio token."""
    text, run = "", []
    for token in ids:
        if token == AUDIO_SLOT:
            text, run = text + tokenizer.decode(run) + "#", []
        else:
            run.append(token)
    return text + tokenizer.decode(run)


def supervised(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label != IGNORE])


def test_a_history_repeats_the_turn(tokenizer):
    template = PromptTemplate("{bos}Be kind.{turn}\nUSER: {audio}{instruction}\nASSISTANT: {answer}{eos}")
    ids, labels = template.encode(ROW | {"history": HISTORY}, tokenizer, 2)
    assert spelt(tokenizer, ids) == (
        "<s>Be kind.\nUSER: ##hello\nASSISTANT: hi</s>\nUSER: who?\nASSISTANT: me</s>\n"
        "USER: what?\nASSISTANT: a dog</s>"
    )
    assert supervised(tokenizer, labels) == "hi</s>me</s>a dog</s>"
    prompt, none = template.encode(ROW | {"history": HISTORY}, tokenizer, 2, with_answer=False)
    assert spelt(tokenizer, prompt).endswith("USER: what?\nASSISTANT: ") and set(none) == {IGNORE}
    assert ids[: len(prompt)] == prompt
    with pytest.raises(PromptError, match='row "r" has a history.*put {turn}'):
        PromptTemplate("{audio}{answer}{eos}").encode(ROW | {"history": HISTORY}, tokenizer, 2)


def test_instructions_place_several_clips(tokenizer):
    template = PromptTemplate("{bos}{turn}USER: {audio:<A>*</A>}{instruction} {answer}{eos}")
    both = ROW | {"instruction": "<audio> or <audio>?"}
    assert spelt(tokenizer, template.encode(both, tokenizer, [1, 2])[0]) == (
        "<s>USER: <A>#</A> or <A>##</A>? a dog</s>"
    )
    assert spelt(tokenizer, template.encode(ROW, tokenizer, [1, 2])[0]) == "<s>USER: <A>#</A><A>##</A>what? a dog</s>"
    spread = both | {"instruction": "and <audio>?", "history": [{"instruction": "<audio>?", "target": "no"}]}
    assert spelt(tokenizer, template.encode(spread, tokenizer, [1, 2])[0]) == (
        "<s>USER: <A>#</A>? no</s>USER: and <A>##</A>? a dog</s>"
    )
    with pytest.raises(PromptError, match="2 <audio> marks in its instructions for 1 clips"):
        template.encode(both, tokenizer, 3)


def test_chat_templates_of_tokenizers(tokenizer):
    template = PromptTemplate("{chat:Listen.}{audio}{instruction}")
    ids, labels = template.encode(ROW | {"history": HISTORY[:1]}, with_chat(tokenizer, CHATML), 1)
    assert spelt(tokenizer, ids) == (
        "<|im_start|>system\nListen.<|im_end|>\n<|im_start|>user\n#hello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>"
        "\n<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>"
    )
    assert supervised(tokenizer, labels) == "hi<|im_end|>a dog<|im_end|>"
    assert template.end_ids(tokenizer) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    # The prompt for generation equals that of the tokenizer's own chat template.
    prompt, _ = template.encode(ROW, tokenizer, 1, with_answer=False)
    messages = [{"role": "system", "content": "Listen."}, {"role": "user", "content": "#what?"}]
    own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert spelt(tokenizer, prompt) == own

    other = PromptTemplate("{chat}{instruction} {audio}")
    ids, labels = other.encode(ROW, with_chat(tokenizer, MISTRAL), 2)
    assert spelt(tokenizer, ids) == "<s>[INST] what? ## [/INST]a dog</s>"
    assert supervised(tokenizer, labels) == "a dog</s>"


@pytest.mark.parametrize(
    ("chat_template", "own", "dropped"),
    [
        # SmolLM2 and Qwen 2.5: a default system prompt, and the begin token opens every message
        (SMOLLM2, "<|im_start|>system\nYou are SmolLM<|im_end|>\n<|im_start|>user\n", "<|im_start|>user\n"),
        # Llama 3.1: the system message always has the date
        (LLAMA3, "<s><|im_start|>system<|im_end|>Today: 26 Jul 2024<|im_end|>", "<s>"),
        (CHATML, "<|im_start|>user\n", "<|im_start|>user\n"),
        (MISTRAL, "<s>[INST] ", "<s>[INST] "),
    ],
)
def test_a_default_system_prompt_can_be_dropped(tokenizer, chat_template, own, dropped):
    with_chat(tokenizer, chat_template)
    row = ROW | {"history": HISTORY[:1]}
    default, _ = PromptTemplate("{chat}{audio}{instruction}").encode(row, tokenizer, 1)
    ids, _ = PromptTemplate("{chat:}{audio}{instruction}").encode(row, tokenizer, 1)
    assert spelt(tokenizer, default).startswith(own) and spelt(tokenizer, ids).startswith(dropped)
    assert spelt(tokenizer, default).removeprefix(own) == spelt(tokenizer, ids).removeprefix(dropped)


def test_a_system_prompt_within_the_first_message_is_not_dropped(tokenizer):
    inside = MISTRAL.replace("{{ '[INST] '", "{{ '[INST] ' + ('Be nice. ' if loop.first else '')")
    with pytest.raises(PromptError, match="'<s>.INST. Be nice. ' begins the first message.*write the complete prompt"):
        PromptTemplate("{chat:}{audio}{instruction}").encode(ROW, with_chat(tokenizer, inside), 1)


@pytest.mark.parametrize(
    ("template", "refused"),
    [
        ("<|start_header_id|>user<|end_header_id|>{audio}{answer}{eos}", ["<|start_header_id|>", "<|end_header_id|>"]),
        ("<|im_start|>{audio:<s>*<eos>}{transcript:<start_of_turn>*}{answer}{eos}", ["<eos>", "<start_of_turn>"]),
        ("{turn}[INST]<<SYS>>{audio}[/INST]{answer}{eos}", ["[INST]", "<<SYS>>", "[/INST]"]),
        ("{bos}<\uff5cUser\uff5c>{audio}{answer}{eos}", ["<\uff5cUser\uff5c>"]),
        ("{chat:<|eot_id|>}{audio}{instruction}", ["<|eot_id|>"]),
        ("<|im_start|>{literal:<|eot_id|>}{audio:<Speech>*</Speech>}<b>[noise] a|b {answer}{eos}", []),
    ],
)
def test_special_tokens_of_another_llm_are_refused(tokenizer, template, refused):
    made = PromptTemplate(template)
    with_chat(tokenizer, None)
    if not refused:
        made.check_special_tokens(tokenizer)
        assert "<|eot_id|>#" in spelt(tokenizer, made.encode(ROW, tokenizer, 1)[0]).replace("<Speech>", "")
        return
    with pytest.raises(PromptError) as caught:
        made.check_special_tokens(tokenizer)
    for name in refused:
        assert f"{name} would become" in str(caught.value)
    assert "Write the template with its own (<s>, </s>, <|im_start|>, <|im_end|>)" in str(caught.value)


def test_marks_of_the_tokenizers_own_chat_template_are_text(tokenizer):
    PromptTemplate("[INST] {audio}[/INST]{answer}{eos}").check_special_tokens(with_chat(tokenizer, MISTRAL))
    with pytest.raises(PromptError, match="or begin it with {chat}"):
        PromptTemplate("<|user|>{audio}{answer}{eos}").check_special_tokens(with_chat(tokenizer, MISTRAL))


def test_chat_templates_that_cannot_be_used_are_refused(tokenizer):
    template = PromptTemplate("{chat:Listen.}{audio}{instruction} b")
    with pytest.raises(PromptError, match="no system role"):
        template.encode(ROW, with_chat(tokenizer, MISTRAL), 1)
    for chat_template, reason in (
        (None, "no chat template"),
        ("{% for m in messages %}{{ m.content }}.{% endfor %}", "without a special token"),
        ("{{ messages[0].content }}", "changes or drops messages"),
    ):
        with pytest.raises(PromptError, match=reason):
            PromptTemplate("{chat}{audio}{instruction} c").encode(ROW, with_chat(tokenizer, chat_template), 1)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{chat}{instruction}", "needs {audio} once"),
        ("{chat}{audio}{answer}", "which the chat template adds"),
        ("{bos}{chat}{audio}{answer}{eos}", "must be the first slot"),
        ("{turn}{turn}{audio}{answer}{eos}", "write it once"),
        ("{audio}{turn}{answer}{eos}", "must follow {turn}"),
        ("{audio:<a>}{answer}{eos}", "before"),
        ("{audio}{transcript:a*b*}{answer}{eos}", "with one [*]"),
        ("{audio}{transcript:{x}*}{answer}{eos}", "no braces"),
        ("{audio}{answer:a*}{eos}", "plain field name"),
    ],
)
def test_wrong_templates_are_refused(template, message):
    with pytest.raises(PromptError, match=message):
        PromptTemplate(template)


OPTIONAL = '{transcript:Heard: "*"\n}'


def test_an_optional_slot_disappears_with_its_text(tokenizer):
    template = PromptTemplate("{bos}{audio}" + OPTIONAL + "{age:(*)}{instruction} {answer}{eos}")
    with_both = template.encode(ROW | {"transcript": "a: *b*", "age": 0}, tokenizer, 1)[0]
    assert spelt(tokenizer, with_both) == '<s>#Heard: "a: *b*"\n(0)what? a dog</s>'
    without = PromptTemplate("{bos}{audio}{instruction} {answer}{eos}").encode(ROW, tokenizer, 1)
    for missing in ({}, {"transcript": None, "age": None}, {"transcript": " \n", "age": ""}):
        assert template.encode(ROW | missing, tokenizer, 1) == without
    with pytest.raises(PromptError, match=r'no field "transcript"; add it, or make.*\{transcript:text before\*'):
        PromptTemplate("{audio}{transcript}{answer}{eos}").encode(ROW, tokenizer, 1)


def test_optional_slots_in_a_history_and_in_chat_templates(tokenizer):
    row = ROW | {"transcript": "ab", "history": [HISTORY[0] | {"transcript": None}]}
    template = PromptTemplate("{bos}{turn}{audio}" + OPTIONAL + "{instruction}{answer}{eos}")
    ids, labels = template.encode(row, tokenizer, 1)
    assert spelt(tokenizer, ids) == '<s>#hellohi</s>Heard: "ab"\nwhat?a dog</s>'
    assert supervised(tokenizer, labels) == "hi</s>a dog</s>"
    chat = PromptTemplate("{chat:Listen.}{audio}" + OPTIONAL + "{instruction}")
    for transcript, text in (("ab", '#Heard: "ab"\nwhat?'), ("", "#what?")):
        ids, _ = chat.encode(ROW | {"transcript": transcript}, with_chat(tokenizer, CHATML), 1)
        assert f"<|im_start|>user\n{text}<|im_end|>" in spelt(tokenizer, ids)


def test_an_optional_field_is_cut_but_not_its_text(tokenizer):
    template = PromptTemplate("{audio}" + OPTIONAL + "{answer}{eos}")
    row = ROW | {"transcript": "abcd"}
    assert spelt(tokenizer, template.encode(row, tokenizer, 1, cut=("transcript", 3))[0]) == '#Heard: "a"\na dog</s>'
    with pytest.raises(PromptError, match='field "transcript" has only 0'):
        template.encode(ROW, tokenizer, 1, cut=("transcript", 1))


@given(text=st.text(alphabet="ab <>/\n", max_size=12), drop=st.integers(0, 12))
def test_only_the_named_field_is_cut_at_its_end(tokenizer, text, drop):
    template = PromptTemplate("{bos}{audio}{instruction} Heard: {transcript}\n{answer}{eos}")
    row = ROW | {"transcript": text}
    if drop > 0 and len(text) <= drop:
        with pytest.raises(PromptError, match=f'field "transcript" has only {len(text)}'):
            template.encode(row, tokenizer, 1, cut=("transcript", drop))
        return
    ids, labels = template.encode(row, tokenizer, 1, cut=("transcript", drop))
    assert spelt(tokenizer, ids) == f"<s>#what? Heard: {text[: len(text) - drop]}\na dog</s>"
    assert supervised(tokenizer, labels) == "a dog</s>"
