# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""terraced and engine-like processes whose memory the daemon copies by itself: shared host memory, and GPU memory
by the test stand-in `softcuda`. The scenarios and the engine stand in tests/gpu/e2e.

What needs NVIDIA's driver or PyTorch with a GPU is skipped without a device, and says so.
"""

import os
import sys
import zlib

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
SCENARIOS = os.path.normpath(os.path.join(HERE, "..", "gpu", "e2e"))
if SCENARIOS not in sys.path:
    sys.path.insert(0, SCENARIOS)

import layouts
import rig
import scenarios

# All of them run against region_node in ctest (region_engines_softcuda).
ON_SOFTCUDA = ["cuda:ipc", "cuda:refused"]
ON_A_GPU = ["cuda:ipc", "cuda:vmm", "torch:ipc", "torch:pieces"]


def setting(binaries, memory, driver, name):
    terraced, library = binaries
    return scenarios.Setting(terraced, library, memory, driver, tuple(layouts.NAMES), zlib.crc32(name.encode()))


def softcuda(terraced):
    folder = os.path.normpath(os.path.join(os.path.dirname(terraced), "..", "softcuda"))
    return folder if os.path.exists(os.path.join(folder, "libcuda.so.1")) else None


@pytest.mark.parametrize("scenario", scenarios.ALL, ids=lambda scenario: scenario.__name__)
def test_shared_host_memory(scenario, binaries):
    scenario(setting(binaries, "host", None, scenario.__name__))


@pytest.mark.parametrize("memory", ON_SOFTCUDA)
@pytest.mark.parametrize("scenario", scenarios.EVERY_WAY, ids=lambda scenario: scenario.__name__)
def test_gpu_memory_on_softcuda(scenario, memory, binaries):
    driver = softcuda(binaries[0])
    if driver is None:
        pytest.skip("built without CUDA: no softcuda")
    scenario(setting(binaries, memory, driver, scenario.__name__))


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ON_A_GPU)
@pytest.mark.parametrize("scenario", scenarios.ALL, ids=lambda scenario: scenario.__name__)
def test_gpu_memory(scenario, memory, binaries):
    why = rig.why_not(memory, binaries[1], None)
    if why:
        pytest.skip(why)
    scenario(setting(binaries, memory, None, scenario.__name__))
