"""Limits come from NVIDIA's tables where there is no device, and from the driver where there is one."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from fusedrnn.kernels.gpu import limits


def test_known_architectures():
    assert [limits.of_arch(arch).sms for arch in (80, 90, 100)] == [108, 132, 148]
    assert limits.of_arch(80).shared_bytes == 166912
    assert limits.of_arch(90).shared_bytes == limits.of_arch(100).shared_bytes == 232448
    with pytest.raises(ValueError, match=r"capability 75: known are \[80, 90, 100\]"):
        limits.of_arch(75)


def test_limits_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.of_arch(90).sms = 1


def test_the_drivers_numbers_count(monkeypatch):
    driver = SimpleNamespace(
        name="NVIDIA H200",
        major=9,
        minor=0,
        multi_processor_count=131,
        shared_memory_per_block_optin=1000,
        regs_per_multiprocessor=65536,
        L2_cache_size=60 << 20,
        total_memory=1,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: driver)
    found = limits.of_device(torch.device("cuda:1"))
    assert (found.name, found.arch, found.sms, found.shared_bytes, found.l2_bytes) == ("NVIDIA H200", 90, 131, 1000, 60 << 20)


def test_only_cuda_devices_have_limits():
    with pytest.raises(ValueError, match="got cpu"):
        limits.of_device(torch.device("cpu"))
