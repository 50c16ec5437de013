"""A word-level tokenizer with a chat template, saved as any transformers tokenizer is."""

from typing import TYPE_CHECKING

from harness.pocket import newfacts, tables, text, world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END, USER, ASSISTANT = "<|pad|>", "<|unknown|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, UNKNOWN, END, USER, ASSISTANT)
"""The base has seen ``END`` after every document of its pretraining, and the role markers never: their vectors are
as they were drawn, like the reserved tokens of a real base."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 512


def words(line: str) -> list[str]:
    """Split as the tokenizer does: words and runs of punctuation."""
    from tokenizers.pre_tokenizers import Whitespace

    return [word for word, _ in Whitespace().pre_tokenize_str(line)]


def vocabulary() -> list[str]:
    """Every word that any sentence, question or answer of this world can hold, special tokens first."""
    templates = [text.QUIZ, text.BADGE]
    for forms in (text.TOLD, text.ASKED):
        templates += [template for group in forms.values() for template in group]
    fields = dict.fromkeys(("name", "attribute", "value", "job", "city", "pet"), "")
    known = {word for template in templates for word in words(template.format(**fields))}
    known.update(person.name for person in world.people())
    known.update(value for values in world.ATTRIBUTES.values() for value in values)
    known.update(world.ATTRIBUTES)
    return [*SPECIAL, *sorted(known)]


def tables_vocabulary() -> list[str]:
    """The same of the worlds of `harness.pocket.tables`."""
    known = {word for template in tables.templates() for word in words(template)}
    known.update(tables.THINGS, tables.JOBS, tables.CITIES, tables.PETS, world.ATTRIBUTES["colour"])
    return [*SPECIAL, *sorted(known)]


def friends_vocabulary() -> list[str]:
    """The same of the world of `harness.pocket.newfacts`, newcomers included."""
    known = {word for template in newfacts.templates() for word in words(template)}
    known.update(newfacts.TOLD_OF, newfacts.newcomers(), (person.name for person in world.people()))
    known.update(value for attribute in newfacts.HOPS for value in world.ATTRIBUTES[attribute])
    return [*SPECIAL, *sorted(known)]


def build_tokenizer(vocabulary: list[str]) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    table = {word: index for index, word in enumerate(vocabulary)}
    model = Tokenizer(WordLevel(table, unk_token=UNKNOWN))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )
