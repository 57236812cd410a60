"""What a `.pt` file asks for, found out before torch opens it.

torch maps a record's bytes where they lie, packed or not, and makes whatever the pickle asks for. So a file is opened
where each record is stored as it is, once, and where its pickle, gone through here with nothing made of it, asks for no
more than the records hold: a look costs no more time and memory than a file of that size can be worth.

Not covered: what a model needs that is built from the description in a model file.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from kit.errors import CheckpointError

PICKLE = 8 << 20  # bytes of a pickle at most; that of yolo11x with its optimizer has half a megabyte
SIZES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2}  # bytes; others have one
SIZES |= {"ComplexFloat": 8, "ComplexDouble": 16}
TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
WRAPPERS = ("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_meta_tensor_no_storage")
MAKERS = re.compile(  # what torch would call, and what makes much of little
    r"(builtins|__builtin__)\.bytearray|collections\.Counter|torch\.([\w.]+\.)?\w*Tensor|torch\.\w+\._rebuild\w*|"
    r"torch\.nn\.modules\.rnn\.\w+"
)
NUMBERS = re.compile(r"[<>=|]?[?bfiuc]\d{0,2}")  # numpy's types of one number


def stored(file: Path | BinaryIO) -> zipfile.ZipFile:
    """Open the zip of a `.pt` file.

    Raises:
        CheckpointError: A record is packed, there twice or elsewhere than torch puts it, or it is no file.
        Exception: It cannot be read, or is no zip; each kind of damage has its own.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise CheckpointError(f"{_title(file)} is no file.")  # to open a pipe would wait for ever
    archive = zipfile.ZipFile(file)
    entries, size = archive.infolist(), os.stat(file).st_size if isinstance(file, Path) else file.seek(0, io.SEEK_END)
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(
                f"{_title(file)} was packed anew by another program: its record '{entry.filename}' is compressed, and "
                "torch would take the packed bytes for weights.",
                "Use the file as it was written.",
            )
    names, begin = {entry.filename for entry in entries}, min((entry.header_offset for entry in entries), default=0)
    if len(names) < len(entries) or begin or sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(f"{_title(file)} is no checkpoint: its records do not lie as torch writes them.")
    return archive


def verify(path: Path) -> None:
    """Read a checkpoint's bytes and compare each record with its CRC-32; it must lie there as torch takes it.

    `torch.save` writes these checksums and `torch.load` never looks at them. The padding between records, 0.3 % of a
    file, carries none.

    Raises:
        CheckpointError: The file is missing, cut off, damaged or packed anew.
    """
    try:
        with stored(path) as records:
            damaged = records.testzip()
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' does not exist.") from None
    except Exception as error:  # each kind of damage has its own
        raise CheckpointError(f"'{path}' is not a whole checkpoint: {error}.") from error
    if damaged is not None:
        raise CheckpointError(f"'{path}' is damaged: the checksum of its record '{damaged}' does not match.")


def look_through(file: Path | BinaryIO) -> Any:
    """Read the plain values of a file, and make sure that the rest of it asks for no more than there is.

    Returns:
        The values; tensors are None, and any other object is a `_Thing`.

    Raises:
        CheckpointError: It is missing, damaged or packed, or asks for more.
    """
    try:
        with stored(file) as archive:
            entries = [each for each in archive.infolist() if each.filename.endswith("/data.pkl")]
            if len(entries) != 1:
                raise pickle.UnpicklingError(f"it holds {len(entries)} pickles")
            entry = entries[0]
            if entry.file_size > PICKLE:
                raise pickle.UnpicklingError(f"its pickle has {entry.file_size / 1e6:.0f} MB")
            folder = entry.filename.removesuffix(".pkl") + "/"
            sizes = {each.filename.removeprefix(folder): each.file_size for each in archive.infolist()}
            values = _Reader(io.BytesIO(archive.read(entry)), sizes).load()
            if unfolds(values, entry.file_size):
                raise pickle.UnpicklingError("its values unfold to more than the file holds")
            return values
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{_title(file)} does not exist.") from None
    except Exception as error:  # a pickle that is damaged can raise anything
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{_title(file)} is not a checkpoint: {text}.") from error


def unfolds(value: Any, limit: int) -> bool:
    """Tell whether there are more values than that, each counted as often as it is met: lists may share lists."""
    waiting, count = [value], 0
    while waiting and count + len(waiting) <= limit:
        each, count = waiting.pop(), count + 1
        if isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, (list, tuple, set)):
            waiting += each
    return bool(waiting)


def _title(file: Path | BinaryIO) -> str:
    return f"'{file}'" if isinstance(file, Path) else "The module tree of the checkpoint"


class _Storage(NamedTuple):
    numel: int
    itemsize: int  # bytes


class _Reader(pickle._Unpickler):
    """Goes through a pickle. In Python, because the memo of the one in C is as long as the pickle says.

    Args:
        file: The pickle.
        sizes: The records: name -> bytes.
    """

    def __init__(self, file: BinaryIO, sizes: dict[str, int]) -> None:
        super().__init__(file)
        self.sizes, self.budget = sizes, 2 * sum(sizes.values())  # a tensor may be there under two names
        kinds: tuple[type[_Thing], ...] = (_Thing, _Module, _Parameter, _Type, _Text)
        self.kinds = {base: type(base.__name__, (base,), {"reader": self}) for base in kinds}

    def charge(self, count: int) -> None:
        """Take what is asked for from the budget."""
        self.budget -= count
        if self.budget < 0:
            raise pickle.UnpicklingError("its values ask for more than the file holds")

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or a function; what torch itself will refuse is a thing like any other."""
        path = f"{module}.{name}"
        if path == "collections.OrderedDict":
            return _Mapping
        if module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage"):
            return SIZES.get(name.removesuffix("Storage"), 1)
        if module == "torch._utils" and name in TENSORS:
            return self.tensor
        if MAKERS.fullmatch(path) and name not in WRAPPERS:
            raise pickle.UnpicklingError(f"it asks for '{path}'")
        if path.startswith(("torch.nn.modules.", "ultralytics.nn.")):
            return self.kinds[_Module]
        if name in WRAPPERS or name == "Parameter":
            return self.kinds[_Parameter]
        return self.kinds[_Type if path == "numpy.dtype" else _Text if path == "_codecs.encode" else _Thing]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return what stands for a storage."""
        _, itemsize, key, _, numel = pid
        if self.sizes[key] != numel * itemsize:
            raise pickle.UnpicklingError(f"its record 'data/{key}' has another size than its tensors")
        return _Storage(numel, itemsize)

    def tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> None:
        """Make nothing of a tensor that lies within its storage."""
        count = math.prod(size)
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else 0
        if min(offset, count, end, *stride, 0) < 0 or end > storage.numel:
            raise pickle.UnpicklingError("a tensor reaches beyond its record")
        self.charge(count * storage.itemsize)


class _Mapping(OrderedDict[Any, Any]):
    """Begins empty, as torch writes it: no copy of another one."""

    def __init__(self) -> None:
        super().__init__()


class _Thing:
    """Stands for an object of any class, and for what any function would return; it costs what it is made of."""

    reader: _Reader
    size = 0

    def __new__(cls, *arguments: Any, **_: Any) -> Self:
        thing = super().__new__(cls)
        thing.size = sum(map(_weight, arguments))
        cls.reader.charge(thing.size)
        return thing

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def ignore(self, *_: Any) -> None:
        pass

    __setstate__ = __setitem__ = extend = append = add = ignore


class _Module(_Thing):
    """Stands for a layer: it is filled and never built anew, which would cost whatever its arguments say."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise pickle.UnpicklingError("it builds a layer")


class _Parameter(_Thing):
    """Stands for a tensor, which is whole from the start."""

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it changes a tensor")


class _Text(_Thing):
    """Stands for bytes, written as text; other codecs may take the square of its length."""

    def __init__(self, _: str, encoding: str = "") -> None:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it asks for the codec '{encoding}'")


class _Type(_Thing):
    """Stands for one of numpy's types, which may be of any size."""

    def __init__(self, text: Any, *_: Any) -> None:
        if not NUMBERS.fullmatch(text):
            raise pickle.UnpicklingError(f"it asks for numpy's type '{text}'")


def _weight(value: Any) -> int:
    if isinstance(value, int):
        return 0 if isinstance(value, bool) else abs(value)
    return value.size if isinstance(value, _Thing) else len(value) if hasattr(value, "__len__") else 0
