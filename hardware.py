"""What it runs on: device, dtype, whether compiled, and memory.

choose_hardware says what a config's device, dtype and compile come to on this machine. A device
that is not there, and a model that the memory cannot hold, are refused before anything is begun.
"""

import math
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils._triton import has_triton

from data.files import BadInput, reason
from model import GPT

try:
    import fast
except ModuleNotFoundError as error:  # it is for speed alone and may be deleted
    if error.name != "fast":
        raise
    fast = None


# The device --------------------------------------------------------------------------------------

UNUSABLE = (RuntimeError, AssertionError)  # what torch raises where a device is not there


class Hardware(NamedTuple):
    device: torch.device
    dtype: torch.dtype  # of the residual stream
    compiled: bool  # whether fast.py's layers train, compiled
    note: str  # one line on what this GPU cannot do; empty: nothing


def choose_hardware(config):
    """The Hardware that a TrainConfig's device, dtype and compile come to on this machine. Raises
    BadInput for a device that is not there."""
    name = best_device() if config.device == "auto" else config.device
    try:
        device = probe(name)
    except UNUSABLE as error:
        why = reason(error).split(". ")[0]
        why = "torch knows no such device" if why.startswith("Expected one of") else why[:100]
        raise BadInput(
            f"device = {config.device} cannot be used here ({why}): give auto, cpu, cuda, cuda:N "
            "or mps"
        ) from None
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)  # whose stream a step is recorded on (fast.py)
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.dtype == "auto":
        dtype = torch.bfloat16 if has_bf16 else torch.float32
    else:
        dtype = getattr(torch, config.dtype)
    features = {"bfloat16": has_bf16, "Triton": has_triton()}
    lacking = [feature for feature, is_there in features.items() if not is_there]
    note = ""
    if on_gpu and lacking:
        note = f"this GPU has no {' and no '.join(lacking)}: training works, only slower"
    elif on_gpu and fast is None:
        note = "fast.py is not there: training works, only slower"
    elif device.type == "mps":
        note = "an Apple GPU trains uncompiled, and is scored on the CPU in what needs float64"
    compiled = config.compile and on_gpu and has_triton() and fast is not None
    return Hardware(device, dtype, compiled, note)


def best_device():
    """For device = auto: the process's own CUDA GPU, an Apple GPU that works, or the CPU."""
    if torch.cuda.is_available():
        return f"cuda:{from_environment('LOCAL_RANK', 0)}"  # torchrun's
    if torch.backends.mps.is_available():
        try:  # in a virtual machine there may be one without memory
            return str(probe("mps"))
        except UNUSABLE:
            pass
    return "cpu"


def probe(name):
    """The torch.device of that name, which only use shows to be there."""
    number = torch.zeros(1, device=name)
    number.item()
    return number.device


def from_environment(name, default):
    """torchrun's RANK and its like, whole numbers. Raises BadInput."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise BadInput(f"{name} = {text!r} in the environment must be a whole number: unset it")
    return int(text)


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# Memory ------------------------------------------------------------------------------------------

GIB = 2**30


def refuse_too_large(name, point, device):
    """Raises BadInput where a point's weights, gradients and moments, or the logits of a batch,
    exceed the device's memory. Activations are not counted, so others may not fit either."""
    batch = point.training.batch_size * point.model.block_size
    n_bytes = 16 * n_parameters(point.model) + 4 * batch * point.model.vocab_size
    there = memory_of(device)
    if n_bytes > there:
        raise BadInput(
            f"{name} needs more than {n_bytes / GIB:,.0f} GiB of memory, and {device} has "
            f"{there / GIB:,.0f}: lower n_layer, n_embd, n_expert, batch_size or their like"
        )


def n_parameters(config):
    """Of a GPT too large to build: blocks are alike, so two small ones tell. Infinite where torch
    cannot even count."""
    try:
        with torch.device("meta"):  # shapes alone
            one, two = (GPT(replace(config, n_layer=n)).count_parameters() for n in (1, 2))
    except (RuntimeError, OverflowError, TypeError):
        return math.inf
    return one + (config.n_layer - 1) * (two - one)


def memory_of(device):
    """In bytes; infinite where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf


def forget_peak_memory(device):
    """So that peak_memory says what follows; on a GPU alone."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device):
    """In GiB: on a GPU, of its tensors; on the CPU, of the whole process since it began; nan on
    Windows, which does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    if sys.platform == "win32":
        return math.nan
    import resource  # which Windows lacks

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024) / GIB  # macOS counts in bytes


SMALLER_STEPS = (
    "halve batch_size and double gradient_accumulation_steps, which gives the same result, but for "
    "experts' balance"
)


@contextmanager
def memory_errors_explained(what, cure=SMALLER_STEPS):
    """Raises BadInput, which says what to do, where memory runs out in the work inside."""
    try:
        yield
    except torch.OutOfMemoryError:
        where = "GPU memory"
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        where = "memory"
    else:
        return
    raise BadInput(f"{what} is out of {where}: {cure}")
