"""hardware.py: which device a process takes, and what its memory holds."""

import pytest
import torch

import hardware
from configs.read import TrainConfig
from conftest import TOGGLES
from data.files import BadInput
from model import GPT, GPTConfig


@pytest.mark.parametrize(
    "device, rank, chosen", [("auto", 1, 1), ("cuda:2", 0, 2), ("cpu", 1, None)]
)
def test_the_gpu_of_a_process_is_made_the_current_one(monkeypatch, device, rank, chosen):
    """As torch records a step on the current GPU. Of a machine with GPUs, as far as torch asks."""
    current = []
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(hardware, "probe", torch.device)
    monkeypatch.setattr(hardware, "has_triton", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    chosen_hardware = hardware.choose_hardware(TrainConfig(device=device))
    assert current == ([] if chosen is None else [torch.device("cuda", chosen)])
    assert current in ([], [chosen_hardware.device])


@pytest.mark.parametrize("toggle", ["plain", "moe_shared", "gqa"])
def test_parameters_are_counted_without_building_the_model(toggle):
    small = dict(n_embd=32, n_head=4, n_layer=5, block_size=16)
    config = GPTConfig(**small, **TOGGLES[toggle])
    assert hardware.n_parameters(config) == GPT(config).count_parameters()


@pytest.mark.parametrize(
    "error, where",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "GPU memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator"), "memory"),
    ],
)
def test_memory_that_runs_out_is_told_with_what_helps(error, where):
    with pytest.raises(BadInput) as raised, hardware.memory_errors_explained("it", "use less"):
        raise error
    assert str(raised.value) == f"it is out of {where}: use less"


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), hardware.memory_errors_explained("it"):
        raise RuntimeError("shape '[2]' is invalid")
