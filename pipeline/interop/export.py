"""Writing a trained model in the formats of other tools, and running the result.

Shapes: B batch, C image channels (of an image) or classes (of logits), H W pixels.
"""

import io
import logging
import math
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.files import flush, write_json
from pipeline.interop import huggingface, native, npz, timm
from pipeline.interop.load import load_weights
from pipeline.interop.onnx_file import check_onnx
from pipeline.interop.trained_model import Description, Trained, describe
from pipeline.model.vit import VisionTransformer

Format = Literal["timm", "huggingface", "npz", "safetensors", "onnx", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
Forward = Callable[[Tensor], Tensor]  # x_BCHW, normalised -> logits_BC

OPSET = 20  # ONNX's; the first with a Gelu operator
_TRACED = 2  # batch size for tracing; the graph accepts any


def write(folder: Path, form: Format, trained: Trained) -> None:
    """Write the weights and model.json into a folder that exists. Raises UserError."""
    known, weights = trained.description, trained.weights
    names = [entry.name for entry in known.classes]
    if form == "timm":
        wnids = [entry.wnid or str(index) for index, entry in enumerate(known.classes)]
        timm.write(folder, known.model, weights, wnids, descriptions=names, resize=known.resize)
    elif form == "huggingface":
        huggingface.write(folder, known.model, weights, names, loss=known.loss, resize=known.resize)
    elif form == "npz":
        npz.write(folder / "model.npz", known.model, weights)
    elif form == "safetensors":
        native.write(folder, weights)
    elif form == "onnx":
        write_onnx(folder / "model.onnx", build(trained))
    else:
        write_torch(folder / "model.pt2", build(trained))
    average = {"average": True} if trained.average else {}  # information for readers: loading ignores it
    write_json(folder / native.DESCRIPTION, describe(known, form) | average)


def build(trained: Trained) -> VisionTransformer:
    """The model in float32 on the CPU, for inference."""
    model = VisionTransformer(trained.description.model, len(trained.description.classes)).eval()
    model.load_state_dict(dict(trained.weights))
    return model


def read_back(folder: Path, form: Format, known: Description) -> Forward:
    """The exported model as a function. Checks that it states the same image geometry as the description."""
    if form == "onnx":
        return open_onnx(folder / "model.onnx", known, torch.device("cpu"))
    if form == "torch":
        return open_torch(folder / "model.pt2", known)
    config, state, facts = load_weights(folder)
    if facts.get("resize", known.resize) != known.resize:
        raise RuntimeError(f"{folder} says resize {facts['resize']!r} instead of {known.resize!r}")
    model = VisionTransformer(config, len(known.classes)).eval()
    model.load_state_dict(state)
    return model


@torch.inference_mode()
def difference(one: Forward, other: Forward, size: int) -> tuple[float, float]:
    """The largest logit difference on random input, for batches of one and of three, and the largest logit.

    Raises UserError if ``one`` gives non-finite logits. If only ``other`` does, the difference is infinite.
    """
    generator = torch.Generator().manual_seed(0)
    largest = logit = 0.0
    for batch in (1, 3):
        x_BCHW = torch.rand(batch, 3, size, size, generator=generator) * 2 - 1
        logits_BC = one(x_BCHW)
        if not logits_BC.isfinite().all():
            raise UserError("MODEL's logits are non-finite: its training has diverged, name an earlier checkpoint")
        largest = max(largest, float((logits_BC - other(x_BCHW)).abs().nan_to_num(nan=math.inf).max()))
        logit = max(logit, float(logits_BC.abs().max()))
    return largest, logit


def write_onnx(path: Path, model: VisionTransformer) -> None:
    """Write ``images`` -> ``logits``, any batch size, as one file. Raises UserError if packages are missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx needs {error.name!r}: pip install 'vit-pipeline[export]'") from error
    with warnings.catch_warnings():
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its warning that torchvision is missing
        logging.getLogger("onnxscript").setLevel(logging.ERROR)  # its warnings about constants that it doesn't fold
        warnings.simplefilter("ignore")  # torch's exporter calls functions that torch deprecates
        program = torch.onnx.export(
            model,
            (_example(model),),
            dynamo=True,
            dynamic_shapes=_any_batch(),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with the paths of this machine
        program.save(str(path), external_data=False)
    flush(path)


def open_onnx(path: Path, known: Description, device: torch.device) -> Forward:
    """The graph as a function, run by onnxruntime; on the GPU if ``device`` and the package support it.

    ``known``: the model.json beside it, whose sizes must be the graph's. Raises UserError.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("an .onnx model needs onnxruntime: pip install 'vit-pipeline[export]'") from error
    offered = onnxruntime.get_available_providers()
    wanted = ("CUDAExecutionProvider",) if device.type == "cuda" else ()
    providers = [name for name in (*wanted, "CPUExecutionProvider") if name in offered]
    check_onnx(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own classes have no public base
        raise UserError(f"{str(path)!r} can't be read ({str(error).splitlines()[0]}): export it again") from error
    inputs, outputs = (
        [(one.name, *one.shape[1:]) for one in ends()] for ends in (session.get_inputs, session.get_outputs)
    )
    size = known.model.image_size
    if (inputs, outputs) != ([("images", 3, size, size)], [("logits", len(known.classes))]):
        raise _other_sizes(path, inputs, outputs, known)

    def forward(x_BCHW: Tensor) -> Tensor:
        (logits_BC,) = session.run(["logits"], {"images": x_BCHW.float().cpu().numpy()})
        return torch.from_numpy(logits_BC)

    return forward


def write_torch(path: Path, model: VisionTransformer) -> None:
    """Write torch.export's archive, any batch size, for AOTInductor, ExecuTorch and torch's C++ runtime."""
    program = torch.export.export(model, (_example(model),), dynamic_shapes=_any_batch())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine
    archive = io.BytesIO()  # in memory: torch aborts the process if the disk is full
    torch.export.save(program, archive)
    path.write_bytes(archive.getbuffer())
    flush(path)


def open_torch(path: Path, known: Description) -> Forward:
    """The graph as a function, run by torch. ``known``: the model.json beside it, whose sizes must be the graph's.

    An archive can run code while it is loaded, which can't be detected: load only files that this program wrote or
    that the user trusts. Raises UserError if it is not a torch.export archive or has other sizes.
    """
    try:
        program = torch.export.load(path)
        module = program.module()
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{str(path)!r} can't be read ({str(error).splitlines()[0]}): export it again") from error
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature, size = program.graph_signature, known.model.image_size
    inputs, outputs = (
        [tuple(getattr(values.get(str(name)), "shape", ())[1:]) for name in names]
        for names in (signature.user_inputs, signature.user_outputs)
    )
    if (inputs, outputs) != ([(3, size, size)], [(len(known.classes),)]):
        raise _other_sizes(path, inputs, outputs, known)
    return module


def _other_sizes(path: Path, inputs: object, outputs: object, known: Description) -> UserError:
    return UserError(
        f"{str(path)!r} has inputs {inputs} and outputs {outputs}, but {native.DESCRIPTION} beside it states images "
        f"of {known.model.image_size} pixels and {len(known.classes)} classes: export the model again"
    )


def _example(model: VisionTransformer) -> Tensor:
    size = model.config.image_size
    return torch.zeros(_TRACED, 3, size, size)


def _any_batch() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch", min=1)},)
