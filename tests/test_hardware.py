"""What training chooses on a machine: in this process for pretended processors, in new ones for threads."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from pckd_nb import hardware

CPU = torch.device("cpu")
OURS = {"GOMP_SPINCOUNT": str(hardware.SPIN_COUNT), "KMP_BLOCKTIME": "1"}


def run_python(code: str, **settings: str) -> object:
    """What `code` prints as JSON in a new process in which nobody has set anything but `settings`."""
    unset = {*hardware.WAIT_VARIABLES, "OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", f"import json, os, sys\n{code}"]
    done = subprocess.run(
        command, env={**environment, **settings}, capture_output=True, text=True, timeout=300, check=True
    )
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------------- threads

WAITS = f"print(json.dumps({{name: os.environ[name] for name in {hardware.WAIT_VARIABLES} if name in os.environ}}))"


def test_how_threads_wait_is_set_before_torch_is_loaded():
    assert run_python(f"import pckd_nb; assert 'torch' not in sys.modules; {WAITS}") == OURS


@pytest.mark.parametrize("name", hardware.WAIT_VARIABLES)
def test_what_the_user_chose_stays_and_nothing_is_added(name):
    assert run_python(f"import pckd_nb; {WAITS}", **{name: "7"}) == {name: "7"}


def test_where_torch_came_first_the_environment_is_left_alone():
    assert run_python(f"import torch, pckd_nb; {WAITS}") == {}


def test_the_module_loads_no_torch():
    assert run_python("import pckd_nb.hardware; print(json.dumps('torch' in sys.modules))") is False


POOLS = """
import threading, torch
torch.set_num_threads({threads})
from pckd_nb import hardware
before = set(threading.enumerate())
hardware.share_cores()
hardware.share_cores()
new = set(threading.enumerate()) - before

def seconds_of_processor(thread):
    fields = open(f"/proc/self/task/{{thread.native_id}}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

import time
linux = sys.platform == "linux"
begin = [seconds_of_processor(thread) for thread in new] if linux else []
time.sleep(0.5)
end = [seconds_of_processor(thread) for thread in new] if linux else []
about = [(thread.daemon, thread.is_alive()) for thread in new]
print(json.dumps([torch.get_num_threads(), about, [after - before for before, after in zip(begin, end)]]))
"""


def test_a_process_that_loaded_torch_first_gets_one_thread_that_sleeps():
    threads, new, busy = run_python(POOLS.format(threads=2), OMP_NUM_THREADS="2")
    assert threads == 2 and new == [[True, True]]
    assert all(seconds < 0.1 for seconds in busy)  # in half a second


@pytest.mark.parametrize(
    ("threads", "settings"), [(1, {}), (2, {"OMP_WAIT_POLICY": "passive"}), (2, {"KMP_BLOCKTIME": "200"})]
)
def test_one_thread_or_a_choice_of_the_user_gets_none(threads, settings):
    assert run_python(POOLS.format(threads=threads), OMP_NUM_THREADS="2", **settings) == [threads, [], []]


@pytest.mark.parametrize(
    ("cores", "chosen", "expected"),
    [(1, None, 1), (2, None, 2), (3, None, 3), (4, None, 3), (1, "3", 3)],
)
def test_threads_are_as_many_as_before_unless_there_are_fewer_cores(monkeypatch, cores, chosen, expected):
    """Of three threads, with so many cores for this process and OMP_NUM_THREADS as chosen."""
    now = [3]
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # so that no pool is started
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
def pretend(monkeypatch):
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
def test_choices_follow_what_the_processor_can_do(pretend, capabilities, aten, isa, line, precision, int8):
    pretend(capabilities, aten, isa)
    assert hardware.describe(CPU) == line
    assert hardware.default_precision(CPU) == precision
    assert hardware.computes_in_int8(CPU) is int8


@pytest.mark.parametrize(("aten", "isa"), [("AVX2", None), ("DEFAULT", None), ("AVX512", "AVX2"), ("AVX512", "sse41")])
def test_denied_instructions_are_hidden(pretend, aten, isa):
    pretend(AMX, aten, isa)
    found = hardware.cpu_features()
    assert found.get("avx2", False) is (isa != "sse41")
    assert not [name for name in found if name.startswith(("avx512", "amx"))]


def test_the_users_limit_reaches_torch():
    code = (
        "from pckd_nb.hardware import cpu_features as f; print(json.dumps([n for n in f() if n.startswith('avx512')]))"
    )
    assert run_python(code, ATEN_CPU_CAPABILITY="avx2") == []


def test_other_devices():
    mps = torch.device("mps")
    assert (hardware.describe(mps), hardware.default_precision(mps)) == ("mps", "32-true")
    assert not hardware.computes_in_int8(mps) and not hardware.computes_in_int8(torch.device("cuda"))


# ------------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize(("took", "expected"), [(0.1, 1), (1, 1), (3, 3), (40, 40)])
def test_slowness_is_relative_to_the_stated_machine_and_at_least_one(monkeypatch, took, expected):
    """Three steps that are longer come first, and one in the middle is cut short or held up: neither counts."""
    times = [100, 100, 100, *[took] * 4, 1000, *[took] * 4]
    monkeypatch.setattr(hardware, "_small_training", lambda: iter([t * hardware.STEP_SECONDS for t in times]))
    assert hardware.slowness.__wrapped__() == pytest.approx(expected)
    monkeypatch.setattr(hardware, "STEP_SECONDS", hardware.STEP_SECONDS * 2)
    monkeypatch.setattr(hardware, "_small_training", lambda: iter([t * 0.025 for t in times]))
    assert hardware.slowness.__wrapped__() == pytest.approx(max(1, expected / 2))


def test_slowness_is_measured_as_trainings_run_without_threads_that_wait_for_a_core(monkeypatch):
    shared = []
    monkeypatch.setattr(hardware, "share_cores", lambda: shared.append(True))
    monkeypatch.setattr(hardware, "_small_training", lambda: iter([float(len(shared))] * 12))
    assert hardware.slowness.__wrapped__() == 1 / hardware.STEP_SECONDS


def test_a_measured_slowness_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert hardware.slowness.__wrapped__() >= 1
    assert torch.equal(torch.rand(3), expected)
