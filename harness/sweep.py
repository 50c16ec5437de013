"""A sweep file to cells: a union of arms, each a product of axes in Hydra's sweep grammar. No torch here."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from omegaconf import DictConfig, OmegaConf

from harness.cell import Cell, canonical
from harness.compose import composed, hydra_ready, one_line, shipped, to_cell
from harness.errors import HarnessError
from harness.methods.base import BaseModel
from harness.secrets import refuse

Axes = dict[str, str]  # key of an override -> its value or values, as typed on a command line


@dataclass
class Sweep:
    """One scientific question. `cell` holds for every arm; an arm's own axes go before it.

    `pocket` is the same question on pocket bases and data, as overrides of the kind a command line takes.
    """

    hypothesis: str = ""
    cell: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    pocket: dict[str, Any] = field(default_factory=dict)


def sweep_file(name: str, config_dir: Path | None) -> Path:
    """The file of a sweep: a path to a .yaml, or a name in the user's or the project's sweeps folder."""
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return Path(name)
    for folder in _folders(config_dir):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = ", ".join(known_sweeps(config_dir))
    raise HarnessError(f"no sweep {name!r}; known: {known}; or give the path of a .yaml file")


def known_sweeps(config_dir: Path | None) -> list[str]:
    """Names of the user's and the project's sweeps."""
    return sorted({p.stem for folder in _folders(config_dir) for p in folder.glob("*.yaml")})


def _folders(config_dir: Path | None) -> list[Path]:
    return [*([config_dir / "sweeps"] if config_dir else []), shipped("sweeps")]


def read_sweep(path: Path) -> Sweep:
    try:
        with one_line():
            config = OmegaConf.merge(OmegaConf.structured(Sweep), OmegaConf.load(path))
    except HarnessError as error:
        raise HarnessError(f"{path}: {error}") from error
    # Interpolations stay as they are: they are resolved in the cell, where e.g. subset_seed: ${seed} has its meaning.
    sweep = Sweep(**OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
    refuse(dataclasses.asdict(sweep), str(path))
    if not sweep.arms:
        raise HarnessError(f"{path} has no arms; add at least one under `arms`")
    return sweep


def sweep_cells(name: str, overrides: list[str], config_dir: Path | None = None) -> tuple[Sweep, list[Cell]]:
    """All cells of a sweep after the command line's overrides, base cells included, each once, sorted by base and size.

    ``key=values`` replaces that axis in every arm, ``arms.NAME.key=values`` in one, ``~arms.NAME`` leaves an arm out.
    ``scale=pocket`` first applies the file's `pocket`; the cells are then another sweep's, named ``NAME-pocket``.
    """
    path = sweep_file(name, config_dir)
    sweep = read_sweep(path)
    arms = {arm: {**_axes(sweep.cell), **_axes(axes)} for arm, axes in sweep.arms.items()}
    given = parse(overrides)
    scaled = [override for override in given if override.key_or_group == "scale"]
    label = path.stem
    if scaled:
        if [override.input_line for override in scaled] != ["scale=pocket"]:
            raise HarnessError(f"{scaled[0].input_line}: the only scale beside the full one is scale=pocket")
        label = f"{label}-pocket"
        _shrink(sweep, arms, path)
    for override in given:
        if override not in scaled:
            _apply(override, arms, path)
    cells: dict[Path, Cell] = {}
    with hydra_ready(config_dir):
        for arm, axes in arms.items():
            try:
                for cell in _product({"sweep": label, **axes}, config_dir):
                    _add(cells, cell)
                    _add(cells, _its_base(cell))
            except HarnessError as error:
                hint = "" if len(arms) == 1 else f" (arms.{arm}.key=value sets one arm only)"
                raise HarnessError(f"sweep {label}, arm {arm}: {error}{hint}") from error
    return sweep, sorted(
        cells.values(), key=lambda c: (c.base.name, c.size, c.data.name, c.method.name, str(c.folder()))
    )


def _shrink(sweep: Sweep, arms: dict[str, Axes], path: Path) -> None:
    """Apply the sweep's pocket form to its arms.

    Where it names another base, data or evaluations, what an arm sets inside of the old ones goes with them.
    """
    if not sweep.pocket:
        raise HarnessError(f"{path} says nothing of scale=pocket; add pocket: {{base: pocket_s, data: ..., size: ...}}")
    lines = [
        f"{key}={value}" if value or not key.startswith("~") else key for key, value in _axes(sweep.pocket).items()
    ]
    for override in parse(lines):
        group = override.key_or_group.split(".")
        another = not override.package and group[-1] in ("base", "data", "evals")
        for arm in [group[1]] if group[0] == "arms" else list(arms):
            for key in list(arms.get(arm, {})):
                if another and re.search(rf"^{group[-1]}\.|@{group[-1]}\b", key):
                    del arms[arm][key]
        _apply(override, arms, path)


def _axes(mapping: dict[str, Any]) -> Axes:
    """YAML values as they would be typed: numbers as text, lists as [a,b], null and booleans as YAML writes them."""
    return {key: _typed(value) for key, value in mapping.items()}


def _line(key: str, value: str) -> str:
    return f"{key}={value}" if value or not key.startswith("~") else key


def _typed(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return "[" + ",".join(map(_typed, value)) + "]"
        case dict():
            return "{" + ",".join(f"{k}:{_typed(v)}" for k, v in value.items()) + "}"
    return str(value)


def parse(overrides: list[str]) -> list[Override]:
    """Hydra's reading of command-line overrides."""
    parser, parsed = OverridesParser.create(), []
    for override in overrides:
        try:
            with one_line():
                parsed.append(parser.parse_override(override))
        except HarnessError as error:
            raise HarnessError(f"the override {override!r} cannot be read: {error}") from error
    return parsed


def _apply(override: Override, arms: dict[str, Axes], path: Path) -> None:
    line = override.input_line or ""
    key, _, value = line.partition("=")
    if not override.key_or_group.startswith("arms."):
        for axes in arms.values():
            axes[key] = value
        return
    _, arm, *rest = override.key_or_group.split(".", 2)
    if arm not in arms:
        raise HarnessError(f"{path} has no arm {arm!r}; it has: {', '.join(arms)}")
    if override.type is OverrideType.DEL and not rest:
        del arms[arm]
    elif override.type is OverrideType.CHANGE and rest:
        arms[arm][key.split(".", 2)[2]] = value
    else:
        raise HarnessError(f"{line}: use arms.NAME.key=values, or ~arms.NAME to leave an arm out")


def _product(axes: Axes, config_dir: Path | None) -> Iterator[Cell]:
    """The cells of an arm. Composed once per combination of groups; swept scalars are set by typed update."""
    fixed: list[str] = []
    groups: list[list[str]] = []
    scalars: list[list[tuple[str, Any]]] = []
    for key, value in axes.items():
        line = _line(key, value)
        (override,) = parse([line])
        if not override.is_sweep_override():
            fixed.append(line)
        elif override.type is not OverrideType.CHANGE or _is_group(override):
            groups.append([f"{key}={v}" for v in override.sweep_string_iterator()])
        else:
            scalars.append([(key, _value(f"{key}={v}")) for v in override.sweep_string_iterator()])
    for choice in itertools.product(*groups):
        config = composed([*fixed, *choice], config_dir)
        # What a scalar can change: the parts that hold one, and those that refer to another part.
        moving = {values[0][0].partition(".")[0] for values in scalars} | {str(k) for k in config if _refers(config, k)}
        template: Cell | None = None
        for values in itertools.product(*scalars):
            with one_line():
                for key, value in values:
                    OmegaConf.update(config, key, value)
                if template is None:
                    template = to_cell(config)
                yield canonical(dataclasses.replace(template, **{key: _part(config, key) for key in moving}))


def _refers(config: DictConfig, key: Any) -> bool:
    """Whether a part of the configuration, or anything inside it, is an interpolation."""
    return OmegaConf.is_interpolation(config, key) or (
        OmegaConf.is_config(config[key]) and "${" in OmegaConf.to_yaml(config[key])
    )


def _part(config: DictConfig, key: str) -> Any:
    part = config[key]
    return OmegaConf.to_object(part) if OmegaConf.is_config(part) else part


def _is_group(override: Override) -> bool:
    loader = GlobalHydra.instance().config_loader()
    return bool(override.package) or bool(loader.get_group_options(override.key_or_group))


def _value(line: str) -> Any:
    value = parse([line])[0].value()
    return value.text if isinstance(value, QuotedString) else value


def _its_base(cell: Cell) -> Cell:
    """The base cell that a cell's curve starts from: same base, same evaluations, nothing else."""
    return canonical(dataclasses.replace(cell, method=BaseModel()))


def _add(cells: dict[Path, Cell], cell: Cell) -> None:
    """Equal cells fall together; their evaluations are united. Two bases or datasets need two names."""
    place = cell.folder()
    if place not in cells:
        cells[place] = dataclasses.replace(cell, evals=dict(cell.evals))  # its own, as it may grow
        return
    for what in ("base", "data"):
        if (its := getattr(cell, what)) != getattr(cells[place], what):
            raise HarnessError(f"two cells differ in their {what}, both named {its.name!r}; set {what}.name beside it")
    for name, task in cell.evals.items():
        if cells[place].evals.setdefault(name, task) != task:
            raise HarnessError(f"two arms define the evaluation {name!r} differently; give one of them another name")
