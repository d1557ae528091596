r"""Read the configuration file: one pipeline, or several under `pipelines:`, with common values at the top level.

checkpoint: /state/offsets.json
sinks: [loki+http://loki:3100]
pipelines:
web: {files: /var/log/nginx/*.log, stages: [{parse: {regex: '(?P<status>\d+)'}}]}
app: {files: /var/log/app/*.log, stages: [{parse: json}], multiline: '^\d'}
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidecar._errors import ConfigError
from sidecar.logs.config_references import References
from sidecar.logs.pipeline import READERS, Pipeline
from sidecar.process import config_types

if TYPE_CHECKING:
    import yaml

_MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DEFAULT_NAME = ""
"""The name of a single pipeline."""


@dataclass(frozen=True)
class Configuration:
    """A parsed configuration file."""

    pipelines: Mapping[str, Pipeline]
    files: frozenset[str]
    """The file and the files that its values refer to: a change of any is a change of the configuration."""

    @property
    def only(self) -> Pipeline:
        """Return the only pipeline.

        Raises:
            ConfigError: there are several pipelines.
        """
        if len(self.pipelines) > 1:
            raise ConfigError(f"there are several pipelines: {', '.join(self.pipelines)}")
        return next(iter(self.pipelines.values()))


def make_checkpoint_path(common: str, name: str) -> str:
    """Return the checkpoint path of one of several pipelines that share the setting.

    >>> make_checkpoint_path("/state/offsets.json", "web")
    '/state/offsets-web.json'
    """
    root, extension = os.path.splitext(common)
    return f"{root}-{name}{extension}" if name else common


def load(path: str | os.PathLike[str]) -> Configuration:
    """Read the pipelines of a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or contains an unknown name or an invalid value;
            the message names the location.
    """
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(
            "a configuration file needs PyYAML: pip install 'podsidecar[logs]'"
        ) from error
    where = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            document = file.read(_MAX_FILE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration {where}: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        found = yaml.load(document, Loader=_loader())  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = getattr(error, "problem", None) or error
        said = said if isinstance(error, yaml.constructor.ConstructorError) else f"no YAML: {said}"
        raise ConfigError(f"{where}{place}: {said}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: expected a mapping that begins with `files:` or `sinks:`")
    references = References()
    found = references.resolved(found, where)
    made = _pipelines(found, where)
    _refuse_shared(made, where)
    return Configuration(made, frozenset({where, *references.files}))


def _pipelines(found: Mapping[str, Any], where: str) -> dict[str, Pipeline]:
    """Parse the pipelines. Values of a pipeline override those at the top level."""
    if "pipelines" not in found:
        return {_DEFAULT_NAME: Pipeline(**config_types.read(found, READERS, where))}
    common = {name: value for name, value in found.items() if name != "pipelines"}
    given = found["pipelines"]
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"{where}: pipelines: expected a mapping of names to pipelines")
    config_types.read(common, READERS, where)
    made = {}
    for name, own in given.items():
        if not _NAME.fullmatch(str(name)):
            raise ConfigError(
                f"{where}: pipelines: {name!r} is no name: write small letters, digits and -"
            )
        if not isinstance(own, dict):
            raise ConfigError(f"{where}: pipelines: {name}: expected a mapping, not {own!r}")
        read = config_types.read({**common, **own}, READERS, f"{where}: pipelines: {name}")
        if "checkpoint" in common and "checkpoint" not in own:
            read["checkpoint"] = make_checkpoint_path(read["checkpoint"], str(name))
        made[str(name)] = Pipeline(**read)
    return made


def _refuse_shared(made: Mapping[str, Pipeline], where: str) -> None:
    """Refuse two pipelines with one checkpoint: each would wait for the lock of the other."""
    seen: dict[str, str] = {}
    for name, pipeline in made.items():
        if pipeline.checkpoint is None:
            continue
        other = seen.setdefault(os.path.abspath(pipeline.checkpoint), name)
        if other != name:
            raise ConfigError(
                f"{where}: the pipelines {other} and {name} have the same checkpoint: give each its own"
            )


def _loader() -> type[yaml.SafeLoader]:
    """A safe loader that rejects duplicate keys: YAML would use the second one silently."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
            names = set()
            for key, _ in node.value:
                name = (key.tag, str(key.value))
                if name in names and key.value != "<<":
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} stands here twice", problem_mark=key.start_mark
                    )
                names.add(name)
            return super().construct_mapping(node, deep)

    return Loader
