"""Tensors to and from a folder, through torch.distributed.checkpoint, without trusting pickles."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from model.errors import UserError

_ALLOWED = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
                 "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}  # fmt: skip
"""All that a metadata file names besides torch's dtypes."""

_DTYPES = {"float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool"}


class _Unpickler(pickle.Unpickler):
    """Reads the metadata of torch.distributed.checkpoint, a pickle, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED or (module == "torch" and name in _DTYPES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint holds")


class _Reader(FileSystemReader):
    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_metadata(folder: Path) -> Metadata:
    """Raises UserError where the folder's metadata is missing or is something else."""
    try:
        metadata = _Unpickler(io.BytesIO((folder / ".metadata").read_bytes())).load()
    except Exception as error:  # whatever a broken pickle makes its reader raise
        raise UserError(f"{folder}: cannot read its metadata: {error}") from None
    if not isinstance(metadata, Metadata):
        raise UserError(f"{folder}: its metadata is a {type(metadata).__name__}")
    return metadata


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Global names of the tensors in a checkpoint, and their shapes."""
    return {
        name: tuple(entry.size)
        for name, entry in read_metadata(folder).state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta | None:
        """None: a checkpoint need not tell the path it was written at."""
        return None


def write(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Collective: each rank writes its parts, synced to disk."""
    save(dict(state), storage_writer=_Writer(folder, sync_files=True))


def read(folder: Path, state: Mapping[str, Tensor], *, alone: bool = False) -> None:
    """Fill `state` in place; `alone` needs no process group.

    Raises UserError naming the tensors that the checkpoint lacks or holds in another shape.
    """
    held = tensor_shapes(folder)
    for name, tensor in state.items():
        if held.get(name) != tuple(tensor.shape):
            found = f"has shape {held[name]} in it" if name in held else "is not in it"
            here = f"{name}, here of shape {tuple(tensor.shape)}"
            raise UserError(f"{folder} is of another model: {here}, {found}")
    with warnings.catch_warnings():
        if alone:
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(dict(state), storage_reader=_Reader(folder), no_dist=alone)
