"""A stand-in for an Apple GPU, which no test machine has: tensors that say they are on "mps" and
are computed on the CPU, where everything is refused that an Apple GPU refuses.

    with apple_gpu():
        model = GPT(config).to("mps")

It refuses float64; operators of which native_functions.yaml, a part of torch, names no MPS kernel;
and tensors of two devices in one operator. It says nothing of the kernels' numbers or speed.
"""

import re
from contextlib import contextmanager
from pathlib import Path

import torch
import torchgen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

YAML = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
ENTRY = re.compile(r"^- func: (\S+?)\(")
KERNEL = re.compile(r"^    ([A-Za-z, ]+):")
# A composite operator is made of others, or is the same code on every device.
RUNS_ON_MPS = {"MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd"}
RUNS_ON_MPS |= {"CompositeExplicitAutogradNonFunctional"}


def operators_of_mps():
    """Names such as "mul.Tensor" of the operators that run there. One without kernels of its own
    in the file is composite, or, if structured, has those of its out variant."""
    kernels, structured, name = {}, {}, None
    for line in YAML.read_text(encoding="utf-8").splitlines():
        if found := ENTRY.match(line):
            name = found[1]
            kernels[name] = set()
        elif found := KERNEL.match(line):
            kernels[name] |= set(found[1].split(", "))
        elif line.startswith("  structured_delegate: "):
            structured[name] = line.split(": ")[1].split()[0]
    names = {name for name, has in kernels.items() if not has or has & RUNS_ON_MPS}
    delegated = {name for name, out in structured.items() if out in names}
    return (names - structured.keys()) | delegated


MPS_OPERATORS = operators_of_mps()


MPS = torch.device("mps")


class OnAppleGPU(torch.Tensor):
    """A tensor that says it is on "mps"; its numbers are in .inner, on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            inner.stride(),
            inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",  # to torch, which here has no "mps" to compute gradients on
            requires_grad=inner.requires_grad,
        )

    @property
    def device(self):
        return MPS

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"OnAppleGPU({self.inner})"

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


CAN_SAY_MPS = (torch.device, torch._C._nn._parse_to)  # the second is of module.to


class FromPython(TorchFunctionMode):
    """torch built for other machines does not even parse a call that names "mps"."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        everything, structure = tree_flatten((args, kwargs or {}))
        if function in CAN_SAY_MPS or not any(is_mps(x) for x in everything):
            return function(*args, **(kwargs or {}))
        everything = ["cpu" if is_mps(x) else x for x in everything]
        args, kwargs = tree_unflatten(everything, structure)
        if function is torch.Tensor.to and isinstance(args[0], OnAppleGPU):
            return args[0]
        return on_gpu(function(*args, **kwargs).detach())


class InTorch(TorchDispatchMode):
    """Tensors that operators make on "mps" for themselves."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


@contextmanager
def apple_gpu():
    """While open, there is a device "mps"."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FromPython(), InTorch():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def is_mps(value):
    return isinstance(value, (str, torch.device)) and str(value) in ("mps", "mps:0")


MOVES = ("_to_copy", "copy_", "_local_scalar_dense", "equal")  # from a device to another


def run(function, args, kwargs):
    name = function._schema.name.removeprefix("aten::")
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, OnAppleGPU)]
    wanted = kwargs.get("device")
    to_mps = torch.device(wanted).type == "meta" if wanted is not None else bool(there)
    inner_args, inner_kwargs = tree_map_only(OnAppleGPU, lambda x: x.inner, (args, kwargs))
    if wanted is not None and to_mps:
        inner_kwargs["device"] = "cpu"
    if there or to_mps:
        refuse_unsupported(function, name, tensors, there)
    if name == "_scaled_dot_product_attention_math_for_mps":
        function = torch.ops.aten._scaled_dot_product_attention_math.default
    out = function(*inner_args, **inner_kwargs)
    if not to_mps:
        return out
    out = tree_map_only(torch.Tensor, on_gpu, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if there else out


def on_gpu(inner):
    if inner.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    return inner if isinstance(inner, OnAppleGPU) else OnAppleGPU(inner)


def refuse_unsupported(function, name, tensors, there):
    overload = function._schema.overload_name
    full_name = f"{name}.{overload}" if overload else name
    if full_name not in MPS_OPERATORS:
        raise NotImplementedError(f"{full_name} has no MPS kernel")
    others = [x for x in tensors if not isinstance(x, OnAppleGPU) and x.dim() > 0]
    if there and others and name not in MOVES:
        raise RuntimeError(f"{full_name}: tensors on the GPU and on the CPU")
