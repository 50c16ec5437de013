"""Rows to chat turns, by the templates of a `Form`. The templates are Jinja, as in lm-eval's task files."""

import functools
import re
from typing import Any

import jinja2
import jinja2.sandbox

from harness.cell import Form, Message
from harness.data.kinds import ROLES, kind_of
from harness.data.rows import Row
from harness.errors import HarnessError


def _no_null(value: Any) -> Any:
    """Jinja would write a null as the word None, and the model would learn it."""
    if value is None:
        raise jinja2.UndefinedError("null")
    return value


_jinja = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_no_null
)


@functools.cache
def _template(text: str) -> jinja2.Template:
    try:
        return _jinja.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise HarnessError(f"the template {text!r} is not valid Jinja: {error}") from error


def to_messages(form: Form, row: Row, place: str) -> list[Message]:
    """The row's turns. Raises HarnessError, naming `place`, where a column is missing or the turns make no dialogue."""
    if bool(form.turns) == bool(form.conversation):
        raise HarnessError(
            "a form needs either `turns` or `conversation`; pick one with e.g. form@data.sources.file.form=alpaca "
            "(alpaca, messages, prompt_completion, sharegpt)"
        )
    messages = _from_conversation(form, row, place) if form.conversation else _from_columns(form, row, place)
    if not kind_of(messages):
        roles = ", ".join(m["role"] for m in messages) or "nothing"
        raise HarnessError(
            f"{place}: turns of {roles} make no example. A dialogue opens with the user's turn and ends with the "
            "assistant's; a document is one turn of text; a pair ends with chosen, rejected; a prompt with reference"
        )
    try:
        "".join(m["content"] for m in messages).encode()
    except UnicodeEncodeError as error:
        raise HarnessError(f"{place}: the text is not valid Unicode ({error.reason}); mend the row") from error
    if not messages[-1]["content"].strip():
        raise HarnessError(f"{place}: the last turn ({messages[-1]['role']}) is empty; remove the row or mend it")
    return messages


def _from_columns(form: Form, row: Row, place: str) -> list[Message]:
    messages = []
    for turn in form.turns:
        try:
            content = _template(turn.content).render(row)
        except jinja2.UndefinedError as error:
            columns = ", ".join(sorted(row))
            raise HarnessError(
                f"{place}: the template {turn.content!r} needs a column that is missing ({error}); "
                f"the row has: {columns}"
            ) from error
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError) as error:
            raise HarnessError(f"{place}: the template {turn.content!r} fails on this row: {error}") from error
        messages.append({"role": _role(turn.role, {}, place), "content": content})
    return [m for m in messages if m["role"] != "system" or m["content"].strip()]


def _from_conversation(form: Form, row: Row, place: str) -> list[Message]:
    turns = row.get(form.conversation)
    if not isinstance(turns, list):
        columns = ", ".join(sorted(row))
        raise HarnessError(
            f"{place}: the column {form.conversation!r} does not hold a list of turns; the row has: {columns}"
        )
    messages = []
    for turn in turns:
        content = turn.get(form.content_key) if isinstance(turn, dict) else None
        if not isinstance(content, str) or form.role_key not in turn:
            raise HarnessError(
                f"{place}: a turn needs text under {form.role_key!r} and {form.content_key!r}: {turn!r:.80}"
            )
        role = _role(turn[form.role_key], form.roles, place)
        if form.unwrap and role == "user":
            content = re.sub(rf"\A(?:{form.unwrap})", "", content)
        messages.append({"role": role, "content": content})
    return messages


def _role(name: Any, roles: dict[str, str], place: str) -> str:
    role = roles.get(str(name), str(name))
    if role not in ROLES:
        raise HarnessError(f"{place}: unknown role {name!r}; map it to {', '.join(ROLES)} under `roles`")
    return role
