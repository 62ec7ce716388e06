"""Checks of an untrusted ONNX file before onnxruntime opens it: no libraries, no files outside its folder."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pipeline.core.errors import UserError

# Domains of onnxruntime's built-in operators. EPContext, one of these operators, loads a compiled file.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_LOADS_FILES = ("EPContext",)


def check_onnx(path: Path) -> None:
    """Raise UserError for custom operators, and for external data outside the file's folder."""
    try:
        import onnx
    except ImportError as error:
        raise UserError("an .onnx model needs onnx, to check it: pip install 'vit-pipeline[export]'") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's classes have no public base
        raise UserError(f"{str(path)!r} can't be read ({' '.join(str(error).split())}): export it again") from error
    own = {function.domain for function in model.functions}
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "NodeProto" and (message.op_type in _LOADS_FILES or message.domain not in (*_DOMAINS, *own)):
            operator = f"{message.domain}::{message.op_type}"
            raise UserError(
                f"{str(path)!r} has operator {operator!r}, which needs a custom library "
                "and could run code: export the model with standard operators"
            )
        if kind == "TensorProto":
            for entry in message.external_data:
                if entry.key == "location":
                    _check_location(path, entry.value)


def _messages(message: Any) -> Iterator[Any]:
    """Each node and tensor of a model, including subgraphs, functions and attributes."""
    if message.DESCRIPTOR.name in ("NodeProto", "TensorProto"):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _messages(child)


def _check_location(path: Path, location: str) -> None:
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    folder = path.parent.resolve()
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    if absolute or ".." in parts or not (folder / location).resolve().is_relative_to(folder):
        raise UserError(
            f"{str(path)!r} keeps data in {location!r}, outside its own folder: choose a model with its data "
            "in the same folder"
        )
