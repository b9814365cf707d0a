"""A GPU that is not there: tensors on "cuda:0" whose numbers lie in ordinary memory, under the rules of CUDA.

    with pretended_gpu() as gpu:
        train_autoencoder(...)        # torch.cuda.is_available() is True, and Lightning takes the GPU
    gpu.steps[1]                      # the waits of the second step of the training, each with file and line

What a program gets wrong on a GPU it gets wrong here: tensors of two devices in one operation, and a generator of the
other device, raise the errors of CUDA. Where the host would wait for all that it has queued, a `Wait` is noted: a
number that is read, a copy to the host, a copy from memory that is not pinned, an operation whose result has a size
that only the device knows. The numbers themselves are those of the CPU; speed, memory and streams are not pretended.

How: `Pretended` is a tensor subclass over a CPU tensor whose dispatch keys are those of CUDA. A dispatch mode runs each
operation on the CPU tensors within; a function mode answers what C++ would decide by the device of the memory.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import lightning.fabric.accelerators.cuda as fabric_cuda
import lightning.pytorch.accelerators.cuda as lightning_cuda
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from pretended_autocast import cast_arguments
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
FREE = 100 * 2**30  # bytes of free memory
aten = torch.ops.aten
# operations that take tensors of both devices
_COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default, aten.set_.source_Tensor}
_INDEXED = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip
# operations of which the host needs a number
_READS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.bincount.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.equal.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip
# operations that take no number [] of the other device, as those on each element do
_STRICT = {
    "cat", "stack", "index_select", "gather", "scatter", "mm", "bmm", "addmm", "convolution", "embedding",
    "_fused_adamw_", "_fused_adam_", "_fused_sgd_", "_foreach_lerp_",
}  # fmt: skip


@dataclass(frozen=True)
class Wait:
    """One wait of the host for the GPU."""

    what: str
    where: str  # file:line function, of the innermost line of Sightline

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Gpu:
    waits: list[Wait] = field(default_factory=list)
    steps: list[list[Wait]] = field(default_factory=list)  # of each step of trainings, the fetching of its batch too
    operations: int = 0  # without views: about as many kernels as a GPU would have started

    def note(self, what: str) -> None:
        self.waits.append(Wait(what, _place()))


_gpu: Gpu | None = None


def _place() -> str:
    """The innermost line of Sightline; of the loop of a training, the line of Lightning or torch within it."""
    frame, library = sys._getframe(2), ""
    while frame is not None:
        file, line = frame.f_code.co_filename, f"{frame.f_lineno} {frame.f_code.co_name}"
        if "/src/sightline/" in file:
            own = f"{file.split('/src/')[-1]}:{line}"
            return f"{own}, in {library}" if library and frame.f_code.co_name == "fit" else own
        is_plumbing = any(
            part in file for part in ("_python_dispatch", "_pytree", "overrides", "_compile", "contextlib")
        )
        if "site-packages" in file and not library and not is_plumbing:
            library = f"{file.split('site-packages/')[-1]}:{line}"
        frame = frame.f_back
    return library or "outside Sightline"


class Pretended(Tensor):
    """A tensor on the GPU; ``inner`` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        self = Tensor._make_subclass(cls, inner.detach(), False, device_for_backend_keys=CUDA)
        self.inner = inner.detach()
        return self

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to the host first."
        )

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            new: Tensor = Pretended(self.inner.clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(new, self.requires_grad) if is_parameter else new
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a CPU tensor, so that what is saved can be loaded."""
        plain = self.inner.detach()
        if isinstance(self, torch.nn.Parameter):
            plain = torch.nn.Parameter(plain, self.requires_grad)
        return plain.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendedGenerator(torch.Generator):
    """A generator of either device; both draw as the CPU's does. Operations below see a plain one of the CPU."""

    def __new__(cls, device: Any = CPU) -> "PretendedGenerator":
        self = super().__new__(cls)
        self.place = _indexed(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.place


def _check_devices(func: Any, name: str, tensors: list[Tensor]) -> None:
    """Raise as CUDA does where tensors of both devices meet."""
    others = [x for x in tensors if not isinstance(x, Pretended)]
    if func in _COPIES or not others or len(others) == len(tensors):
        return
    if func in _INDEXED and isinstance(tensors[0], Pretended):
        return  # CUDA copies the indices
    if name in _STRICT or any(x.dim() for x in others):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})")


def _note_waits(gpu: Gpu, func: Any, args: Any, kwargs: dict[str, Any], to_gpu: bool) -> None:
    if func in _READS and isinstance(args[0], Pretended):
        gpu.note(func.overloadpacket.__name__)
    elif func in _INDEXED and isinstance(args[0], Pretended):
        for index in args[1]:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                gpu.note("index by a mask")
            elif isinstance(index, Tensor) and not isinstance(index, Pretended) and index.dim():
                gpu.note("index from the host")
    elif func is aten.copy_.default and isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
        _note_copy(gpu, args[1], isinstance(args[0], Pretended), args[2] if len(args) > 2 else False)
    elif func is aten._to_copy.default and isinstance(args[0], Pretended) != to_gpu:
        _note_copy(gpu, args[0], to_gpu, kwargs.get("non_blocking", False))


def _note_copy(gpu: Gpu, source: Tensor, to_gpu: bool, non_blocking: bool) -> None:
    """A copy to the device waits unless it may overlap; Lightning's, of a batch, is staged where it is not pinned."""
    if not non_blocking:
        gpu.note(f"copy to the {'device' if to_gpu else 'host'} {list(source.shape)}")


def _run(func: Any, args: Any, kwargs: dict[str, Any], leaves: bool = False) -> Any:
    """An operation, on the CPU tensors within. ``leaves``: it is asked for another device than that of its tensor."""
    if func is torch.ops.prim.device.default:
        return CUDA if isinstance(args[0], Pretended) else args[0].device
    flat = tree_flatten((args, kwargs))[0]
    tensors = [x for x in flat if isinstance(x, Tensor)]
    name = func.overloadpacket.__name__
    _check_devices(func, name, tensors)
    wanted = kwargs.get("device")
    on_gpu = any(isinstance(x, Pretended) for x in tensors)
    if wanted is not None:  # C++ names the device of the memory; who leaves the GPU comes through `_moved`
        on_gpu = torch.device(wanted).type == "cuda" or (on_gpu and not leaves)
    if name in ("pin_memory", "_pin_memory"):
        return args[0].clone()
    if name == "is_pinned":
        return False
    if _gpu is not None:
        _gpu.operations += on_gpu and not getattr(func, "is_view", False)
        _note_waits(_gpu, func, args, kwargs, on_gpu)
    if wanted is not None:
        kwargs = {**kwargs, "device": CPU}
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, Pretended) else x, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if func is aten._to_copy.default and on_gpu and result is args[0]:
        result = result.clone()
    same = {id(x.inner): x for x in tensors if isinstance(x, Pretended)}  # what an operation changes in its place

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) not in same:
            return Pretended(x) if on_gpu else x
        if same[id(x)].shape != x.shape:
            raise NotImplementedError(f"{func} changes the shape of its argument: not pretended")
        return same[id(x)]

    return tree_map(wrapped, result)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What C++ would ask the driver, or decide by the device of the memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cpu:
            return _moved(args[0], CPU)
        if func is Tensor.cuda:
            return _moved(args[0], CUDA)
        if func is Tensor.to:
            return _to(*args, **kwargs)
        if func is Tensor.tolist and isinstance(args[0], Pretended):
            _gpu is not None and _gpu.note("tolist")
            return args[0].inner.tolist()
        if func is Tensor.__format__ and isinstance(args[0], Pretended):
            return format(args[0].item(), *args[1:])
        if func is Tensor.type and isinstance(args[0], Pretended) and len(args) == 1:
            return args[0].inner.type().replace("torch.", "torch.cuda.")
        if kwargs.get("device") is not None:
            kwargs["device"] = _indexed(kwargs["device"])
        if isinstance(generator := kwargs.get("generator"), PretendedGenerator):
            place = kwargs.get("device") or (args[0].device if args and isinstance(args[0], Tensor) else CPU)
            if generator.place != place:
                raise RuntimeError(f"Expected a '{torch.device(place).type}' device type for generator ({func})")
        if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor) and kwargs.get("device") == CUDA:
            del kwargs["device"]
            return _to(args[0], **kwargs) if isinstance(args[0], Pretended) else _moved(func(*args, **kwargs), CUDA)
        if func is Tensor.new_tensor and isinstance(args[0], Pretended):
            numbers = torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype)
            return _moved(numbers, kwargs.get("device") or CUDA)
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = cast_arguments(func, args, kwargs)
        return func(*args, **kwargs)


def _indexed(device: Any) -> torch.device:
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return CUDA if device.type == "cuda" and device.index is None else device


def _to(tensor: Tensor, *args: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False,
        copy: bool = False, memory_format: Any = None) -> Tensor:  # fmt: skip
    for x in args:
        if isinstance(x, Tensor):
            device, dtype = x.device, x.dtype
        elif isinstance(x, torch.dtype):
            dtype = x
        elif isinstance(x, bool):
            non_blocking = x
        elif x is not None:
            device = x
    if device is not None and tensor.device != _indexed(device):
        tensor = _moved(tensor, _indexed(device), non_blocking)
    options = ({"dtype": dtype} if dtype else {}) | ({"memory_format": memory_format} if memory_format else {})
    with torch._C.DisableTorchFunction():
        return Tensor.to(tensor, **options, copy=copy) if options or copy else tensor


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        ctx.source = tensor.device
        return _run(aten._to_copy.default, (tensor,), {"device": device, "non_blocking": non_blocking}, True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _run(aten._to_copy.default, (grad,), {"device": ctx.source}, True), None, None


def _moved(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
    if tensor.device == device:
        return tensor
    if tensor.requires_grad and torch.is_grad_enabled() and not tensor.is_leaf:
        return _Move.apply(tensor, device, non_blocking)
    options = {"device": device, "non_blocking": non_blocking}
    return _run(aten._to_copy.default, (tensor.detach(),), options, True)


def _by_device(lists: list[list[Any]], _: bool = False) -> dict[Any, Any]:
    """Lists of tensors, in groups of one device and type."""
    groups: dict[Any, Any] = {}
    for place, row in enumerate(zip(*lists, strict=True)):
        key = next((x.device, x.dtype) for x in row if x is not None)
        some, places = groups.setdefault(key, ([[] for _ in lists], []))
        for column, x in zip(some, row, strict=True):
            column.append(x)
        places.append(place)
    return groups


class _Event:
    record = synchronize = lambda self: None


class _Properties:
    name, major, minor, total_memory, multi_processor_count = "pretended", 9, 0, FREE, 132


@contextlib.contextmanager
def _fork_rng(*_: Any, **__: Any) -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what only a driver can do."""


def _counting(advance: Callable[..., None]) -> Callable[..., None]:
    def counted(*args: Any) -> None:
        assert _gpu is not None
        before = len(_gpu.waits)
        try:
            advance(*args)
        finally:
            _gpu.steps.append(_gpu.waits[before:])

    return counted


@contextlib.contextmanager
def pretended_gpu(free: int = FREE, capability: tuple[int, int] = (9, 0)) -> Iterator[Gpu]:
    """One GPU is there, with so many bytes of free memory; what it was asked for."""
    global _gpu
    answers: dict[str, Any] = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "mem_get_info": lambda *_: (free, free),
        "get_device_capability": lambda *_: capability, "get_device_name": lambda *_: "pretended",
        "get_device_properties": lambda *_: _Properties, "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False, "memory_stats": lambda *_: {}, "get_rng_state_all": lambda: [],
        "max_memory_allocated": lambda *_: 0, "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "Event": _Event,
    }  # fmt: skip
    answers |= dict.fromkeys((
        "_lazy_init", "set_device", "synchronize", "empty_cache", "manual_seed", "manual_seed_all", "set_rng_state",
        "set_rng_state_all", "reset_peak_memory_stats",
    ), _nothing)  # fmt: skip
    with contextlib.ExitStack() as stack:
        patch = lambda *where: stack.enter_context(mock.patch.object(*where))  # noqa: E731
        for name, answer in answers.items():
            patch(torch.cuda, name, answer)
        of_lightning = {"num_cuda_devices": lambda: 1, "is_cuda_available": lambda: True}
        of_lightning |= dict.fromkeys(("_check_cuda_matmul_precision", "_clear_cuda_memory"), _nothing)
        for module in (fabric_cuda, lightning_cuda):
            for name in of_lightning.keys() & vars(module).keys():
                patch(module, name, of_lightning[name])
        patch(fabric_cuda, "_get_all_visible_cuda_devices", lambda: [0])
        patch(torch.random, "fork_rng", _fork_rng)
        patch(torch, "Generator", PretendedGenerator)
        patch(Tensor, "pin_memory", lambda self, *_: self.clone())  # also in threads, which have no modes
        patch(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", _by_device)
        patch(_TrainingEpochLoop, "advance", _counting(_TrainingEpochLoop.advance))
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        before, _gpu = _gpu, Gpu()
        try:
            with _Functions(), _Dispatch():
                yield _gpu
        finally:
            _gpu = before
