"""Hydra composes: configuration files and overrides to typed cells. No torch here."""

import dataclasses
import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from harness.cell import Cell, Method, canonical
from harness.engines import engines
from harness.errors import HarnessError
from harness.judge import Judging
from harness.methods import methods
from harness.methods.recipe import Recipe, Stage
from harness.secrets import refuse


def shipped(name: str) -> Path:
    """The project's own `conf` or `sweeps` folder: in a wheel beside this file, in a clone one level up."""
    inside, beside = Path(__file__).parent / name, Path(__file__).parent.parent / name
    return inside if inside.is_dir() else beside


def users_folder(argument: str | None) -> Path | None:
    """The user's own configuration folder: ``--config-dir``, else ``$HARNESS_CONFIG_DIR``; sweeps in ``sweeps/``."""
    given = argument or os.environ.get("HARNESS_CONFIG_DIR")
    if given and not Path(given).expanduser().is_dir():
        raise HarnessError(f"the configuration folder {given} does not exist; check --config-dir or HARNESS_CONFIG_DIR")
    return Path(given).expanduser().resolve() if given else None


def register() -> None:
    """Give Hydra the schema: `cell_schema`, and each method and engine under its name."""
    store = ConfigStore.instance()
    store.store(name="cell_schema", node=Cell)
    store.store(name="judging_schema", node=Judging)
    for name, method in methods().items():
        store.store(group="method", name=name, node=method)
    for name, engine in engines().items():
        store.store(group="engine", name=name, node=engine)


@contextmanager
def hydra_ready(config_dir: Path | None) -> Iterator[None]:
    """Hydra's compose, with the user's folder searched besides the project's."""
    register()
    GlobalHydra.instance().clear()
    with one_line(), initialize_config_dir(str(shipped("conf").resolve()), version_base="1.3"):
        yield


def composed(overrides: list[str], config_dir: Path | None) -> DictConfig:
    """The configuration of one cell. Inside `hydra_ready`."""
    search = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    with one_line():
        return compose("cell", overrides=[*search, *overrides])


def to_cell(config: DictConfig) -> Cell:
    """The typed cell, in canonical form."""
    with one_line():
        missing = OmegaConf.missing_keys(config)
        if missing:
            raise HarnessError(f"no value for {', '.join(sorted(missing))}; set it, e.g. {min(missing)}=...")
        _refuse_additions(config)
        cell = OmegaConf.to_object(config)
    assert isinstance(cell, Cell)
    refuse(dataclasses.asdict(cell), "")
    return canonical(cell)


def compose_cell(overrides: list[str], config_dir: Path | None = None) -> Cell:
    with hydra_ready(config_dir):
        return to_cell(composed(overrides, config_dir))


def compose_judging(overrides: list[str], config_dir: Path | None = None) -> Judging:
    """What `harness judge` is asked to do."""
    search = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    with hydra_ready(config_dir), one_line():
        config = compose("judging", overrides=[*search, *overrides])
        _refuse_additions(config)
        judging = OmegaConf.to_object(config)
    assert isinstance(judging, Judging)
    refuse(dataclasses.asdict(judging), "")
    return judging


def from_dict(record: dict[str, Any]) -> Cell:
    """A cell as its record keeps it, typed again."""
    fields = {k: v for k, v in record.items() if k != "method"}
    with one_line():
        method = _method_from(record["method"])
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Cell(method=method)), fields))  # type: ignore[return-value]


def _method_from(record: dict[str, Any]) -> Method:
    """A method as `settings` gives it, with its name; typed again, and so are those that it is made of."""
    name, settings = record["name"], {k: v for k, v in record.items() if k != "name"}
    if name not in methods():
        raise HarnessError(f"the record's method {name!r} is not known here; known: {', '.join(sorted(methods()))}")
    blank = methods()[name]()
    if isinstance(blank, Recipe):
        blank.stages = {k: Stage(_method_from(v["method"])) for k, v in settings["stages"].items()}
        settings["stages"] = {k: {**v, "method": {}} for k, v in settings["stages"].items()}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(blank), settings))  # type: ignore[return-value]


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML raise into one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise HarnessError(_explain(error)) from error


def _explain(error: BaseException) -> str:
    text = " ".join(str(error).split()).partition(" Config search path:")[0]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and dataclasses.is_dataclass(cause.object_type):
            return _unknown(cause.full_key or str(cause.key), str(cause.key), cause.object_type)
        deeper = cause.__cause__
        if deeper is not None and str(deeper).split() and " ".join(str(deeper).split()) not in text:
            text += "; " + " ".join(str(deeper).split())
        cause = deeper
    return text


def _unknown(full: str, key: str, schema: Any) -> str:
    known = [f.name for f in dataclasses.fields(schema)]
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known) or 'nothing'}"
    return f"unknown key {full!r}; {hint}"


def _refuse_additions(node: Any, place: str = "") -> None:
    """Hydra's ``+key=value`` adds what no dataclass has; it would be dropped in silence when the cell is made."""
    schema = OmegaConf.get_type(node)
    if isinstance(node, DictConfig):
        for name in node:
            key = str(name)
            full = f"{place}.{key}" if place else key
            if dataclasses.is_dataclass(schema) and key not in schema.__dataclass_fields__:
                raise HarnessError(_unknown(full, key, schema))
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                _refuse_additions(node[key], full)
