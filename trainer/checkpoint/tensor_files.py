"""Writing tensors to a folder and reading them, through torch.distributed.checkpoint.

Its metadata file is a pickle, which is read without running code from it.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from model.errors import UserError
from model.sentences import shortened
from trainer.checkpoint.manifest import METADATA, Entry
from trainer.checkpoint.partitions import Partition
from trainer.checkpoint.summed_files import SummingFileSystem
from trainer.files import is_file_name

Shapes = dict[str, tuple[int, ...]]
"""Shapes of global tensors, by key."""

_ALLOWED = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}
"""Modules and names that a metadata file may have besides torch's dtypes."""

_DTYPES = {"float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool"}
"""Names of torch's dtypes that a metadata file may have."""


class _Unpickler(pickle.Unpickler):
    """Unpickles the metadata of torch.distributed.checkpoint, and refuses anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED or (module == "torch" and name in _DTYPES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint holds")


class _Reader(FileSystemReader):
    """Reads a checkpoint's files, the metadata by `read_metadata`."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_metadata(folder: Path) -> Metadata:
    """Return a folder's metadata. Raises UserError where it is missing or is something else."""
    try:
        metadata = _Unpickler(io.BytesIO((folder / METADATA).read_bytes())).load()
    except Exception as error:  # whatever a broken pickle makes its reader raise
        raise UserError(f"{folder}: cannot read its metadata: {error}") from None
    if not isinstance(metadata, Metadata):
        raise UserError(f"{folder}: its metadata is a {type(metadata).__name__}")
    if not all(map(_is_in_folder, (metadata.storage_data or {}).values())):
        raise UserError(f"{folder}: its metadata names a file that is not in the folder")
    return metadata


def _is_in_folder(info: object) -> bool:
    """Return whether a chunk's place is in a file of the checkpoint's own folder."""
    return isinstance(info, _StorageInfo) and is_file_name(str(info.relative_path))


def tensor_shapes(folder: Path) -> Shapes:
    """Return the shapes of the tensors in a checkpoint, by key."""
    return {name: tuple(entry.size) for name, entry in _tensors(read_metadata(folder)).items()}


def _tensors(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """Return the entries of the tensors, without other objects."""
    return {
        name: entry
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


class Writer(FileSystemWriter):
    """Writes a rank's files of a checkpoint, synced to disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sync_files=True)
        self.fs = self._summing = SummingFileSystem()

    def entries(self) -> dict[str, Entry]:
        """Return the manifest's entries for the files of tensors that were written, by name."""
        return {k: one for k, one in self._summing.entries.items() if not k.startswith(METADATA)}

    def storage_meta(self) -> StorageMeta | None:
        """Return None, so that a checkpoint does not hold the path that it was written at."""
        return None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files; raise a disk's error itself instead of torch's about it."""
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise (cause or error) from None


class _SavePlanner(DefaultSavePlanner):
    """Refuses a plan by which some element of the state would be written twice or not at all."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self._shapes = shapes

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = super().create_global_plan(all_plans)  # overlaps are refused there
        planned = _tensors(metadata)
        for name in sorted(self._shapes.keys() | planned.keys()):
            if name not in planned or self._shapes.get(name) != tuple(planned[name].size):
                raise RuntimeError(f"{name} is not written as a whole of {self._shapes.get(name)}")
            count = sum(math.prod(chunk.sizes) for chunk in planned[name].chunks)
            if count != math.prod(self._shapes[name]):
                raise RuntimeError(f"{name}: {count} of {self._shapes[name]} are written")
        return plans, metadata


class _LoadPlanner(DefaultLoadPlanner):
    """Refuses a checkpoint that does not hold every element of what is read, once."""

    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        read: Counter[MetadataIndex] = Counter()
        for item in plan.items:
            read[item.dest_index] += math.prod(item.lengths)
        for name, tensor in self.state_dict.items():
            for index, size in _chunks(name, tensor):
                if read[index] != math.prod(size):
                    raise RuntimeError(f"{name}: {read[index]} of {math.prod(size)} were written")
        return plan


def _chunks(name: str, tensor: Tensor) -> Iterator[tuple[MetadataIndex, Sequence[int]]]:
    """Yield the chunks that are held here of a global tensor: the index and shape of each."""
    if isinstance(tensor, Partition):
        for offsets, chunk in tensor.chunks.items():
            yield MetadataIndex(name, offsets), chunk.shape
    else:
        yield MetadataIndex(name, torch.Size([0] * tensor.ndim)), tensor.shape


class Storage:
    """Writes tensors into a folder, on a disk that may fail."""

    def write(
        self,
        folder: Path,
        state: Mapping[str, Tensor],
        shapes: Shapes,
        group: dist.ProcessGroup | None,
    ) -> dict[str, Entry]:
        """Write this rank's partitions, synced to disk: a collective over `group`.

        Returns the manifest's entries for this rank's files. `shapes` are those of all tensors of
        the whole state: every element of each is written once, or CheckpointException is raised.
        """
        writer = self.writer(folder)
        planner = _SavePlanner(shapes)
        save(dict(state), storage_writer=writer, planner=planner, process_group=group)
        return writer.entries()

    def writer(self, folder: Path) -> Writer:
        """Return the writer of this rank's files."""
        return Writer(folder)


def read(folder: Path, state: Mapping[str, Tensor], *, alone: bool = False) -> None:
    """Fill `state` in place from a checkpoint. A collective, unless `alone`.

    Raises UserError naming the tensors that the checkpoint lacks or holds in another shape. Where
    it cannot be read or lacks some elements, it raises UserError too, with `alone`; without, all
    ranks raise CheckpointException.
    """
    check_shapes(folder, tensor_shapes(folder), {k: tuple(t.shape) for k, t in state.items()})
    with warnings.catch_warnings():
        if alone:
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            load(dict(state), storage_reader=_Reader(folder), planner=_LoadPlanner(), no_dist=alone)
        except CheckpointException as error:
            if not alone or not error.failures:
                raise
            cause, _ = next(iter(error.failures.values()))
            raise UserError(f"{folder} cannot be read: {cause}") from None


def check_shapes(source: Path, held: Shapes, wanted: Shapes) -> None:
    """Raise UserError naming the wanted tensors that a source lacks or holds in another shape."""
    wrong = [
        f"{name} is {held[name]} in it and {shape} here"
        if name in held
        else f"{name} {shape} is not in it"
        for name, shape in sorted(wanted.items())
        if held.get(name) != shape
    ]
    if wrong:
        raise UserError(f"{source} is of another model: {shortened(wrong, '; ')}")
