"""Rows and forms: every accepted layout of a file, and that what is wrong with a file is said with its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from harness import base as bases
from harness.cell import Base, Form, Source, Turn
from harness.data.form import to_messages
from harness.data.rows import read_file, read_hub
from harness.errors import HarnessError
from tests.conftest import pair_form, write_jsonl

FORMS = Path(__file__).parent.parent / "conf" / "form"


def form(name: str, **changes: Any) -> Form:
    """The form as users get it: the YAML in conf/form over the typed schema."""
    merged = OmegaConf.merge(OmegaConf.structured(Form), OmegaConf.load(FORMS / f"{name}.yaml"), changes)
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


@pytest.mark.parametrize(
    ("name", "row", "turns"),
    [
        ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, [user("Add.\n\n1 2"), assistant("3")]),
        ("alpaca", {"instruction": "Say hi.", "input": "", "output": "hi"}, [user("Say hi."), assistant("hi")]),
        ("alpaca", {"instruction": "Say hi.", "input": None, "output": "hi"}, [user("Say hi."), assistant("hi")]),
        ("alpaca", {"instruction": "Say hi.", "output": "hi"}, [user("Say hi."), assistant("hi")]),
        ("prompt_completion", {"prompt": " 1+1 \n", "completion": "2\n"}, [user(" 1+1 \n"), assistant("2\n")]),
        ("prompt_completion", {"prompt": "n", "completion": 7}, [user("n"), assistant("7")]),
        (
            "sharegpt",
            {"id": "x", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            [user("a"), assistant("b")],
        ),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "user", "value": "a"},
                    {"from": "chatgpt", "value": "b"},
                    {"from": "human", "value": "c"},
                    {"from": "assistant", "value": "d"},
                ]
            },
            [system("s"), user("a"), assistant("b"), user("c"), assistant("d")],
        ),
        ("messages", {"messages": [system("s"), user("a"), assistant("b")]}, [system("s"), user("a"), assistant("b")]),
    ],
)
def test_each_form_gives_the_turns_of_its_rows(name: str, row: dict[str, Any], turns: list[dict[str, str]]) -> None:
    assert to_messages(form(name), row, "here") == turns


def test_an_empty_system_turn_of_a_template_is_left_out_and_a_full_one_kept() -> None:
    with_system = Form(turns=[Turn("system", "{{ system }}"), *pair_form().turns])
    row = {"system": " ", "prompt": "a", "completion": "b"}
    assert to_messages(with_system, row, "here") == [user("a"), assistant("b")]
    assert to_messages(with_system, row | {"system": "be brief"}, "here")[0] == system("be brief")


def test_unwrap_cuts_the_alpaca_wrapper_of_fastchat_files_and_only_at_the_start_of_user_turns() -> None:
    """LIMA's FastChat form wraps each question in Alpaca's prompt, which is no part of the question."""
    wrapper = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
        "### Instruction: "
    )
    lima = form("sharegpt", unwrap=r"Below is an instruction[^#]*### Instruction:\s*")
    turns = [("human", wrapper + "Why? " + wrapper), ("gpt", wrapper + "Because."), ("human", "And?"), ("gpt", "So.")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    assert to_messages(lima, row, "here") == [
        user("Why? " + wrapper),
        assistant(wrapper + "Because."),
        user("And?"),
        assistant("So."),
    ]


def test_values_are_never_rendered_as_templates_and_templates_are_sandboxed() -> None:
    row = {"prompt": "{{7*7}} {% raw %}", "completion": "{{ prompt }}"}
    assert to_messages(pair_form(), row, "here") == [user("{{7*7}} {% raw %}"), assistant("{{ prompt }}")]
    escape = Form(turns=[Turn("user", "{{ prompt.__class__.__mro__ }}"), Turn("assistant", "x")])
    with pytest.raises(HarnessError, match=r"mine\.jsonl:3.*unsafe"):
        to_messages(escape, row, "mine.jsonl:3")


@pytest.mark.parametrize(
    ("name", "row", "complaint"),
    [
        ("prompt_completion", {"prompt": "a", "answer": "b"}, r"mine:7.*'completion' is undefined.*answer, prompt"),
        ("prompt_completion", {"prompt": "a", "completion": None}, r"mine:7.*completion.*null"),
        ("prompt_completion", {"prompt": "a", "completion": " \n"}, "mine:7.*empty"),
        ("prompt_completion", {"prompt": "a", "completion": "\ud83d"}, "mine:7.*Unicode"),
        ("messages", {"messages": [user("a")]}, "mine:7.*make no example"),
        ("messages", {"messages": []}, "mine:7.*make no example"),
        ("messages", {"messages": [assistant("a")]}, "mine:7.*make no example"),
        ("messages", {"messages": [assistant("a"), user("b"), assistant("c")]}, "mine:7.*make no example"),
        ("messages", {"messages": [{"role": "robot", "content": "a"}]}, "mine:7.*unknown role 'robot'"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "mine:7.*a turn needs text"),
        ("messages", {"messages": "a"}, "mine:7.*does not hold a list"),
        ("messages", {"chat": []}, "mine:7.*'messages'.*the row has: chat"),
        ("sharegpt", {"conversations": [{"from": "Human", "value": "a"}]}, "mine:7.*unknown role 'Human'"),
    ],
)
def test_a_row_that_makes_no_dialogue_is_refused_with_its_place(name: str, row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HarnessError, match=complaint):
        to_messages(form(name), row, "mine:7")


def test_a_form_is_turns_or_conversation() -> None:
    both = Form(turns=pair_form().turns, conversation="messages")
    for wrong in (Form(), both):
        with pytest.raises(HarnessError, match="either `turns` or `conversation`"):
            to_messages(wrong, {}, "here")


def test_jsonl_rows_carry_their_lines_and_blank_lines_count(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('\ufeff{"a": "é"}\r\n\r\n{"a": "\u2028"}'.encode())
    assert list(read_file(file)) == [(f"{file}:1", {"a": "é"}), (f"{file}:3", {"a": "\u2028"})]


@pytest.mark.parametrize("broken", [b'{"a": ', b'{"a": "\xff"}', b"nonsense"])
def test_a_malformed_jsonl_row_is_refused_with_file_and_line(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n\n' + broken + b'\n{"a": 2}\n')
    with pytest.raises(HarnessError, match=r"rows\.jsonl:3 is not valid JSON"):
        list(read_file(file))


def test_a_jsonl_row_must_be_an_object(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"rows\.jsonl:2 is not a JSON object but a list"):
        list(read_file(write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, ["a", 1]])))


def test_json_must_be_a_list_of_objects(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"a": 1}, {"a": 2}]))
    assert [row for _, row in read_file(file)] == [{"a": 1}, {"a": 2}]
    for content, complaint in [
        ('{"a": 1}', "JSON list .* not a dict"),
        ("[1]", "item 1 is not"),
        ("[", "not valid JSON"),
    ]:
        file.write_text(content)
        with pytest.raises(HarnessError, match=complaint):
            list(read_file(file))


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        " [ ] \n",
        '[\n {"a": [1, "]"]} ,\r\n\t{"b": {}}\n]\n',
        '[{"a": 1},]',
        '[{"a": 1} {"a": 2}]',
        '[{"a": 1}]]',
        '[{"a": 1}',
        '[{"a": 1},',
        "[,]",
        '[{"a": NaN}]',
        '\ufeff[{"a": 1}]',
        "",
        '[{"a": 1}] {}',
        '[{"a": 1},{"a',
        '{"a": 1}]',
        "\u00a0[]",
    ],
)
def test_json_read_item_by_item_is_what_json_says_it_is(content: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(content, encoding="utf-8")
    try:
        rows = json.loads(content)
    except ValueError:
        with pytest.raises(HarnessError, match=r"rows\.json is not valid JSON"):
            list(read_file(file))
    else:
        assert str([row for _, row in read_file(file)]) == str(rows)  # as text: NaN is not equal to itself


def test_parquet_gives_the_rows_that_were_written(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [user(f"{i}"), assistant("é")], "n": i} for i in range(5)]
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=2)
    assert [row for _, row in read_file(file)] == rows
    assert [place for place, _ in read_file(file)] == [f"{file}: row {n}" for n in range(1, 6)]
    assert to_messages(form("messages"), next(read_file(file))[1], "here") == rows[0]["messages"]


@pytest.mark.parametrize("harm", ["cut", "empty", "page"])
def test_a_broken_parquet_file_is_refused_by_name(tmp_path: Path, harm: str) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "rows.parquet"
    table = pyarrow.Table.from_pylist([{"a": f"some text {i * i}"} for i in range(500)])
    pyarrow.parquet.write_table(table, file, use_dictionary=False)
    content = bytearray(file.read_bytes())
    if harm == "page":
        content[60:1060] = b"\xff" * 1000
    file.write_bytes({"cut": content[:-40], "empty": b"", "page": content}[harm])
    with pytest.raises(HarnessError, match=r"rows\.parquet cannot be read as Parquet"):
        list(read_file(file))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(HarnessError, match="unknown kind of file"):
        list(read_file(tmp_path / "rows.csv"))
    with pytest.raises(HarnessError, match=r"none\.jsonl is not a file"):
        list(read_file(tmp_path / "none.jsonl"))


class UnreachableError(Exception):
    """Unrelated to OSError, as the errors of the HTTP library behind the hub's client are."""


def test_an_unreachable_hub_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client has changed its HTTP library before, and its errors are nobody's subclasses."""
    import huggingface_hub

    def fail(*arguments: Any, **named: Any) -> None:
        raise UnreachableError("connection refused")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(HarnessError, match=r"cannot be reached .*UnreachableError"):
        read_hub(Source(path="some/data"))
    with pytest.raises(HarnessError, match="cannot be reached"):
        bases.identity(Base(name="x", path="some/model"))


def test_a_hub_dataset_is_read_from_the_cache_when_the_hub_is_out_of_reach(tmp_path, monkeypatch):
    """The layout of the hub's own cache, as a download leaves it."""
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "datasets--org--rows"
    write_jsonl(repository / "snapshots" / commit / "train.jsonl", [{"prompt": "a", "completion": "b"}])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found, rows = read_hub(Source(path="org/rows"))
    assert (found, [row for _, row in rows]) == (commit, [{"prompt": "a", "completion": "b"}])
    with pytest.raises(HarnessError, match="cache has no copy"):
        read_hub(Source(path="org/other"))
