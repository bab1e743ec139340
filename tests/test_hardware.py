"""Hardware settings of a training. Processors are simulated in this process; threads are tested in new processes."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from pckd_nb import hardware

CPU = torch.device("cpu")
OUR_SETTINGS = {"GOMP_SPINCOUNT": str(hardware.SPIN_COUNT), "KMP_BLOCKTIME": "1"}


def run_python(code: str, **settings: str) -> object:
    """Run `code` in a new process with only `settings` as thread and processor variables. Return the JSON it prints."""
    ignored = {*hardware.WAIT_VARIABLES, "OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"}
    environment = {name: value for name, value in os.environ.items() if name not in ignored}
    command = [sys.executable, "-c", f"import json, os, sys\n{code}"]
    done = subprocess.run(
        command, env={**environment, **settings}, capture_output=True, text=True, timeout=300, check=True
    )
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------------- threads

PRINT_WAIT_VARIABLES = (
    f"print(json.dumps({{name: os.environ[name] for name in {hardware.WAIT_VARIABLES} if name in os.environ}}))"
)


def test_thread_wait_variables_are_set_before_torch_is_loaded():
    assert run_python(f"import pckd_nb; assert 'torch' not in sys.modules; {PRINT_WAIT_VARIABLES}") == OUR_SETTINGS


@pytest.mark.parametrize("name", hardware.WAIT_VARIABLES)
def test_wait_variables_set_by_the_user_are_kept(name):
    assert run_python(f"import pckd_nb; {PRINT_WAIT_VARIABLES}", **{name: "7"}) == {name: "7"}


def test_wait_variables_are_not_set_after_torch_is_loaded():
    assert run_python(f"import torch, pckd_nb; {PRINT_WAIT_VARIABLES}") == {}


def test_hardware_does_not_import_torch():
    assert run_python("import pckd_nb.hardware; print(json.dumps('torch' in sys.modules))") is False


COUNT_NEW_THREADS = """
import threading, torch
torch.set_num_threads({threads})
from pckd_nb import hardware
before = set(threading.enumerate())
hardware.share_cores()
hardware.share_cores()
new = set(threading.enumerate()) - before

def processor_seconds(thread):
    fields = open(f"/proc/self/task/{{thread.native_id}}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

import time
linux = sys.platform == "linux"
begin = [processor_seconds(thread) for thread in new] if linux else []
time.sleep(0.5)
end = [processor_seconds(thread) for thread in new] if linux else []
states = [(thread.daemon, thread.is_alive()) for thread in new]
print(json.dumps([torch.get_num_threads(), states, [after - before for before, after in zip(begin, end)]]))
"""


def test_share_cores_starts_one_sleeping_thread_if_torch_was_loaded_first():
    threads, new, busy = run_python(COUNT_NEW_THREADS.format(threads=2), OMP_NUM_THREADS="2")
    assert threads == 2 and new == [[True, True]]
    assert all(seconds < 0.1 for seconds in busy)  # in half a second


@pytest.mark.parametrize(
    ("threads", "settings"), [(1, {}), (2, {"OMP_WAIT_POLICY": "passive"}), (2, {"KMP_BLOCKTIME": "200"})]
)
def test_share_cores_starts_no_thread_for_one_core_or_user_settings(threads, settings):
    assert run_python(COUNT_NEW_THREADS.format(threads=threads), OMP_NUM_THREADS="2", **settings) == [threads, [], []]


@pytest.mark.parametrize(
    ("cores", "chosen", "expected"),
    [(1, None, 1), (2, None, 2), (3, None, 3), (4, None, 3), (1, "3", 3)],
)
def test_share_cores_reduces_threads_only_to_the_number_of_cores(monkeypatch, cores, chosen, expected):
    """torch has three threads. cores: available to this process. chosen: the value of OMP_NUM_THREADS."""
    now = [3]
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # so that no sleeping thread is started
    if chosen is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    hardware.share_cores.__wrapped__()
    assert now == ([3] if expected == 3 else [3, expected])


# ----------------------------------------------------------------------------------- what the processor can do

AVX2 = {"architecture": "x86_64", "cpu_name": "Old", "sse4_2": True, "avx2": True, "avx512_f": False}
AVX512 = {**AVX2, "cpu_name": "New", "avx512_f": True, "avx512_vnni": True, "avx512_bf16": True, "avx_vnni": False}
AMX = {**AVX512, "cpu_name": "Newer", "amx_tile": True, "amx_int8": True, "amx_bf16": True}
ARM = {"architecture": "aarch64", "neon": True, "bf16": True, "i8mm": True}


@pytest.fixture
def pretend_processor(monkeypatch):
    def processor(capabilities, aten="AVX512", isa=None):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: aten)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(platform, "machine", lambda: capabilities["architecture"])
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        if isa:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)

    return processor


@pytest.mark.parametrize(
    ("capabilities", "aten", "isa", "line", "precision", "int8"),
    [
        (AVX2, "AVX2", None, "Old (AVX2), 2 threads", "32-true", True),
        (AVX512, "AVX512", None, "New (AVX-512, VNNI, bfloat16), 2 threads", "bf16-mixed", True),
        (AMX, "AVX512", None, "Newer (AVX-512, VNNI, bfloat16, AMX), 2 threads", "bf16-mixed", True),
        (AMX, "AVX2", None, "Newer (AVX2), 2 threads", "32-true", True),
        (AMX, "AVX512", "AVX2", "Newer (AVX2), 2 threads", "32-true", True),
        (AMX, "AVX512", "avx2", "Newer (AVX2), 2 threads", "32-true", True),
        (AMX, "AVX512", "AVX512_CORE", "Newer (AVX-512), 2 threads", "32-true", True),
        (AMX, "AVX512", "SSE41", "Newer (x86_64), 2 threads", "32-true", False),
        (AMX, "AVX512", "ALL", "Newer (AVX-512, VNNI, bfloat16, AMX), 2 threads", "bf16-mixed", True),
        (ARM, "DEFAULT", None, "aarch64 (aarch64), 2 threads", "32-true", False),
    ],
)
def test_precision_and_int8_depend_on_the_processor(pretend_processor, capabilities, aten, isa, line, precision, int8):
    pretend_processor(capabilities, aten, isa)
    assert hardware.describe(CPU) == line
    assert hardware.default_precision(CPU) == precision
    assert hardware.computes_in_int8(CPU) is int8


@pytest.mark.parametrize(("aten", "isa"), [("AVX2", None), ("DEFAULT", None), ("AVX512", "AVX2"), ("AVX512", "sse41")])
def test_instructions_disabled_by_the_user_are_not_reported(pretend_processor, aten, isa):
    pretend_processor(AMX, aten, isa)
    found = hardware.cpu_features()
    assert found.get("avx2", False) is (isa != "sse41")
    assert not [name for name in found if name.startswith(("avx512", "amx"))]


def test_cpu_features_respect_the_limit_of_the_user():
    code = (
        "from pckd_nb.hardware import cpu_features as f; print(json.dumps([n for n in f() if n.startswith('avx512')]))"
    )
    assert run_python(code, ATEN_CPU_CAPABILITY="avx2") == []


def test_devices_other_than_the_cpu():
    mps = torch.device("mps")
    assert (hardware.describe(mps), hardware.default_precision(mps)) == ("mps", "32-true")
    assert not hardware.computes_in_int8(mps) and not hardware.computes_in_int8(torch.device("cuda"))


# ------------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize(("took", "expected"), [(0.1, 1), (1, 1), (3, 3), (40, 40)])
def test_slowness_is_relative_to_the_reference_machine_and_at_least_one(monkeypatch, took, expected):
    """The three slow warm-up steps and a single outlier do not count."""
    times = [100, 100, 100, *[took] * 4, 1000, *[took] * 4]
    monkeypatch.setattr(hardware, "_small_training", lambda: iter([t * hardware.STEP_SECONDS for t in times]))
    assert hardware.slowness.__wrapped__() == pytest.approx(expected)
    monkeypatch.setattr(hardware, "STEP_SECONDS", hardware.STEP_SECONDS * 2)
    monkeypatch.setattr(hardware, "_small_training", lambda: iter([t * 0.025 for t in times]))
    assert hardware.slowness.__wrapped__() == pytest.approx(max(1, expected / 2))


def test_slowness_is_measured_with_shared_cores_like_trainings(monkeypatch):
    shared = []
    monkeypatch.setattr(hardware, "share_cores", lambda: shared.append(True))
    monkeypatch.setattr(hardware, "_small_training", lambda: iter([float(len(shared))] * 12))
    assert hardware.slowness.__wrapped__() == 1 / hardware.STEP_SECONDS


def test_measuring_slowness_keeps_the_random_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert hardware.slowness.__wrapped__() >= 1
    assert torch.equal(torch.rand(3), expected)
