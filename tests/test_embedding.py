"""A base's hidden states as vectors: the mean over a text's own tokens, whatever it is computed beside."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harness import base as bases
from harness.cell import Base, Data, Source
from harness.choice import Select
from harness.compose import compose_cell
from harness.data.subset import load_dataset
from harness.embedding import HiddenStates
from tests.conftest import pair_form, pairs, write_jsonl

TEXTS = ["What is the capital of France?", "blue", "What is the colour of the sky? " * 5, "red green", ""]


def test_a_vector_is_the_mean_of_a_texts_states_less_the_mean_of_all(tiny_base: Base) -> None:
    found = HiddenStates(tiny_base, tokens=40).embed(iter(TEXTS))
    loaded, alone = bases.load(tiny_base, "cpu"), []
    for text in TEXTS:
        ids = loaded.tokenizer(text)["input_ids"][:40] or [0]
        with torch.no_grad():
            states = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        alone.append(states.mean(0).numpy())
    assert np.allclose(found, np.array(alone) - np.mean(alone, axis=0), atol=1e-5)
    assert HiddenStates(tiny_base, 40).identity() != HiddenStates(tiny_base, 41).identity()


def test_a_configuration_names_the_base_and_the_order_is_its(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(30))
    source = {"rows": Source(path=str(path), form=pair_form())}
    embed = {"_target_": "harness.embedding.HiddenStates", "base": {"name": "tiny", "path": tiny_base.path}}
    embed["base"] |= {"dtype": "float32"}  # type: ignore[operator]
    by_states = load_dataset(Data("r", source, select=Select("diversity", embed=embed))).subset(30, 0)
    by_words = load_dataset(Data("r", source, select=Select("diversity"))).subset(30, 0)
    assert by_states[0] == by_words[0]
    assert by_states != by_words
    assert set(by_states.row) == set(by_words.row)


def test_the_command_line_chooses_any_base() -> None:
    cell = compose_cell(["+embed@data.select.embed=hidden", "base@data.select.embed.base=pocket_s"])
    assert cell.data.select.embed is not None
    assert cell.data.select.embed["base"]["name"] == "pocket-s"
    assert HiddenStates(cell.data.select.embed["base"]).identity()
