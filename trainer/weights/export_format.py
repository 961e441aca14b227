"""An export: a folder with a network's weights, and reading it.

    config.json                          the network: settings, channels, scaling; and the
                                         weights files' sizes and sums
    model-00001-of-00002.safetensors     its weights by global names (model.safetensors if one)
    model.safetensors.index.json         the file of each weight (if several)
    README.md                            a model card

Plain torch reads it, and nothing in it can run. Finding and describing one imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic's wish before Python 3.12

from model.errors import UserError
from model.validation import check_content
from trainer.checkpoint.keys import BUFFERS, WEIGHTS, global_name, make_key
from trainer.checkpoint.manifest import entry
from trainer.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.checkpoint.tensor_files import Shapes


class Content(TypedDict):
    """The entries of config.json that are read."""

    step: Annotated[int, Field(ge=0)]
    settings: dict[str, Any]
    series: dict[str, Any]
    buffers: list[str]
    files: Annotated[
        dict[Annotated[str, Field(pattern=r"^[\w.-]+\.safetensors$")], tuple[int, str]],
        Field(min_length=1),
    ]


_CONTENT = TypeAdapter(Content)

MODEL_TYPE = "forescale"
"""The entry of config.json that says whose export it is."""
FORMAT = 1
"""Version of the format, which config.json holds."""

CONFIG = "config.json"
"""Name of the file that describes the network."""
ONE_FILE = "model.safetensors"
"""Name of the weights file where there is one."""
INDEX = "model.safetensors.index.json"
"""Name of the index where there are several weights files."""
MODEL_CARD = "README.md"
"""Name of the model card."""


@dataclass(frozen=True)
class Export:
    """The folder of an export."""

    path: Path

    def exists(self) -> bool:
        """Return whether the folder holds an export, of Forescale or of something else."""
        return (self.path / CONFIG).is_file()

    def description(self) -> dict[str, Any]:
        """Return the content of config.json. Raises UserError where it is of something else."""
        content = self._json(CONFIG)
        if content.get("model_type") != MODEL_TYPE:
            raise UserError(f"{self.path} is an export of something else than Forescale")
        if content.get("format") != FORMAT:
            raise UserError(
                f"{self.path} has format {content.get('format')}; this version reads {FORMAT}"
            )
        check_content(_CONTENT, content, f"{self.path} does not say what it holds: {CONFIG}")
        return content

    def shapes(self) -> Shapes:
        """Return the shapes of all tensors, by key."""
        buffers = set(self.description()["buffers"])
        shapes = {}
        for file, names in self._files():
            for name in names:
                key = make_key(BUFFERS if name in buffers else WEIGHTS, name)
                shapes[key] = tuple(file.get_slice(name).get_shape())
        return shapes

    def read(self, state: Mapping[str, Tensor]) -> None:
        """Fill tensors or partitions in place, reading no more than they hold.

        Raises UserError naming the tensors that the export lacks or holds in another shape.
        """
        from trainer.checkpoint.partitions import fill
        from trainer.checkpoint.tensor_files import check_shapes

        check_shapes(self.path, self.shapes(), {k: tuple(t.shape) for k, t in state.items()})
        wanted = {global_name(key): tensor for key, tensor in state.items()}
        for file, names in self._files():
            for name in names & wanted.keys():
                fill(wanted[name], file.get_slice(name))

    def verify(self, reader: int = 0, readers: int = 1) -> str | None:
        """Return what is wrong with a weights file, in words, or None if they are intact.

        It reads every `readers`-th file, from `reader` on: ranks share the reading.
        """
        entries = self.description()["files"]
        for name in sorted(entries)[reader::readers]:
            try:
                if list(entry(self.path / name)) != entries[name]:
                    return f"{name} does not match its sum"
            except OSError as error:
                return f"{name}: {error.strerror}"
        return None

    def _files(self) -> Iterator[tuple[Any, set[str]]]:
        """Yield each weights file, opened, and the global names of its tensors."""
        from safetensors import SafetensorError, safe_open

        for name in sorted(self.description()["files"]):
            try:
                with safe_open(self.path / name, "pt") as file:
                    yield file, set(file.keys())
            except (OSError, SafetensorError) as error:
                raise UserError(f"{self.path}: {name}: {error}") from None

    def _json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file. Raises UserError where there is none."""
        try:
            content = read_json(self.path / name)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} is no export: {name}: {error}") from None
        if not isinstance(content, dict):
            raise UserError(f"{self.path} is no export: {name} is no JSON object")
        return content
