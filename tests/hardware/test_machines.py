"""Detection on recorded machines: each vendor finds its own, says None elsewhere at once, and falls alone."""

import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recorded import MACHINES, NVMLError, host, machine

from node.hardware import amd, apple, cpu, intel, nvidia, qualcomm
from node.hardware.gpu import Gpu
from node.hardware.host import Cores, Host
from node.hardware.machine import VENDORS, Machine, detect
from node.hardware.rooms import rooms

GIB = 1 << 30
NAMES = sorted(path.stem for path in MACHINES.glob("*.txt"))
EMPTY = "=== memory 8589934592 4294967296\n=== cores 4 8 8\n"


def gpus(name: str, tmp_path: Path) -> list[tuple[str, str, float, float]]:
    """Vendor, name, GiB and free GiB of each GPU."""
    return [
        (g.vendor, g.name, round(g.memory_bytes / GIB, 1), round(g.free_bytes / GIB, 1))
        for g in detect(machine(name, tmp_path)).gpus
    ]


EXPECTED: dict[str, list[tuple[str, str, float, float]]] = {
    "arc-a770": [("intel", "Intel Arc A770 Graphics", 15.9, 15.9)],
    "container-cgroup1": [],
    "container-small": [],
    "desktop-rtx4090": [("nvidia", "NVIDIA GeForce RTX 4090", 24.0, 21.3)],
    "laptop-intel": [("intel", "Intel integrated GPU 46a6", 7.7, 7.7)],
    "macbook-m3-max": [("apple", "Apple M3 Max GPU", 48.0, 38.2)],
    "macmini-m2": [("apple", "Apple M2 GPU", 12.0, 8.8)],
    "phone-snapdragon": [("qualcomm", "Adreno 740 (SM8550)", 10.8, 4.8)],
    "server-a100-mig": [
        ("nvidia", "NVIDIA A100-SXM4-80GB MIG 3g.40gb", 39.2, 39.2),
        ("nvidia", "NVIDIA A100-SXM4-80GB MIG 2g.20gb", 19.5, 5.6),
    ],
    "strix-halo": [("amd", "AMD Radeon 8060S Graphics", 61.9, 61.5)],
    "strix-halo-96": [("amd", "AMD Radeon 8060S Graphics", 96.0, 95.8)],
    "workstation-mixed": [
        ("nvidia", "NVIDIA GeForce RTX 3090", 24.0, 23.6),
        ("nvidia", "NVIDIA GeForce RTX 3090", 24.0, 23.6),
        ("amd", "AMD Radeon RX 7900 XTX", 24.0, 24.0),
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_gpus_of_recorded_machines(name: str, tmp_path: Path) -> None:
    assert gpus(name, tmp_path) == EXPECTED[name]
    assert detect(machine(name, tmp_path / "again")).problems == ()


@pytest.mark.parametrize(
    ("name", "usable", "gib", "free", "level", "threads"),
    [
        ("container-small", 2.0, 4.0, 3.5, "AVX-512", 2),
        ("container-cgroup1", 4.0, 8.0, 6.0, "AVX2", 4),
        ("server-a100-mig", 8.0, 64.0, 58.0, "AVX2", 8),
        ("desktop-rtx4090", 32.0, 62.7, 48.5, "AVX-512", 16),
        ("macmini-m2", 8.0, 16.0, 8.8, "NEON", 4),
        ("phone-snapdragon", 8.0, 10.8, 4.8, "SVE", 5),
        ("laptop-intel", 16.0, 15.4, 10.4, "AVX2", 4),
    ],
)
def test_the_processor_and_its_limits(
    name: str, usable: float, gib: float, free: float, level: str, threads: int, tmp_path: Path
) -> None:
    found = cpu.detect(machine(name, tmp_path))
    assert found is not None
    assert (found.usable_cores, round(found.memory_bytes / GIB, 1), round(found.available_bytes / GIB, 1)) == (
        usable,
        gib,
        free,
    )
    assert (found.level, found.threads) == (level, threads)
    assert found.is_limited is name.startswith(("container", "server"))


def topology(*siblings: str) -> str:
    """What the kernel says of each logical core's siblings."""
    return "".join(
        f"=== file /sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list\n{each}\n"
        for i, each in enumerate(siblings)
    )


HYBRID = topology("0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7")


@pytest.mark.parametrize(
    ("text", "allowed", "threads"),
    [
        (topology("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"), tuple(range(8)), 4),
        (
            topology("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"),
            (0, 1, 4, 5),
            2,
        ),  # taskset: two cores' halves
        (HYBRID + "=== file /sys/devices/cpu_core/cpus\n0-3\n", tuple(range(8)), 2),
        (HYBRID + "=== file /sys/devices/cpu_core/cpus\n0-3\n", (1, 2, 6, 7), 2),
        (HYBRID + "=== file /sys/devices/cpu_core/cpus\n0-3\n", (4, 5, 6), 3),  # only efficient ones may be used
        (HYBRID + "=== file /sys/devices/cpu_core/cpus\n0-99999999\n", tuple(range(8)), 6),  # nonsense says nothing
        (HYBRID, tuple(range(8)), 6),
        ("", tuple(range(8)), 4),  # a container that hides it: psutil's word
    ],
)
def test_how_many_threads(text: str, allowed: tuple[int, ...], threads: int, tmp_path: Path) -> None:
    here = host(EMPTY + text, tmp_path)
    found = cpu.detect(replace(here, cores=lambda: Cores(4, 8, len(allowed), allowed)))
    assert found is not None
    assert found.threads == threads


def test_the_least_limit_of_all_groups_above_holds(tmp_path: Path) -> None:
    text = EMPTY + (
        "=== file /proc/self/cgroup\n0::/a/b\n"
        "=== file /sys/fs/cgroup/a/b/memory.max\nmax\n=== file /sys/fs/cgroup/a/b/cpu.max\n300000 100000\n"
        "=== file /sys/fs/cgroup/a/memory.max\n2147483648\n=== file /sys/fs/cgroup/a/memory.current\n1073741824\n"
        "=== file /sys/fs/cgroup/a/cpu.max\nmax 100000\n"
    )
    found = cpu.detect(host(text, tmp_path))
    assert found is not None
    assert (found.memory_bytes, found.available_bytes, found.usable_cores) == (2 * GIB, GIB, 3.0)


def test_arm_names_come_from_the_part_number(tmp_path: Path) -> None:
    found = cpu.detect(machine("phone-snapdragon", tmp_path))
    assert found is not None
    assert found.name == "Cortex-X3"


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("system", ["linux", "darwin", "android"])
def test_a_vendor_that_is_not_there_says_so_at_once(vendor: str, system: str, tmp_path: Path) -> None:
    before = time.thread_time()
    assert VENDORS[vendor](replace(host(EMPTY, tmp_path), system=system)) is None
    assert time.thread_time() - before < 1.0


@pytest.mark.parametrize("vendor", VENDORS)
def test_this_machine_answers_soon(vendor: str) -> None:
    """With its real files and commands, whatever it is: within the limit where there is nothing of the vendor's."""
    VENDORS[vendor](Host())  # the first call imports
    before = time.perf_counter()
    VENDORS[vendor](Host())
    assert time.perf_counter() - before < 20.0


def test_no_vendor_takes_another_down(tmp_path: Path) -> None:
    def broken(_: Host) -> tuple[Gpu, ...] | None:
        raise RuntimeError("driver/library version mismatch")

    def hangs(_: Host) -> tuple[Gpu, ...] | None:
        time.sleep(20.0)
        return None

    vendors: dict[str, Any] = {"A": broken, "B": hangs, "NVIDIA": nvidia.detect}
    before = time.monotonic()
    found = detect(machine("desktop-rtx4090", tmp_path), vendors, patience=1.0)
    assert time.monotonic() - before < 15.0
    assert [g.vendor for g in found.gpus] == ["nvidia"]
    assert found.cpu is not None
    assert found.problems == (
        "A: detection failed with RuntimeError('driver/library version mismatch')",
        "B: its driver does not answer within 1 s",
    )


@pytest.mark.parametrize("name", NAMES)
def test_mutilated_files_cost_at_most_their_own_vendor(name: str, tmp_path: Path) -> None:
    """Every file in turn is emptied, made nonsense, or taken away."""
    recorded = machine(name, tmp_path)
    vendors = {gpu[0] for gpu in EXPECTED[name]}
    for path in [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]:
        whole = path.read_text()
        touched = {"amd", "intel", "qualcomm"} if re.search("drm|kfd|kgsl", str(path)) else set()
        for content in ("", "nonsense nonsense\n", "-1\n", "\xff" * 64, None):
            path.unlink() if content is None else path.write_text(content)
            found = detect(recorded)
            assert vendors - touched <= {gpu.vendor for gpu in found.gpus}, path
            assert found.cpu is not None, path
            path.write_text(whole)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", [1]),
        ("1,0", [1, 0]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("GPU-bbbb", [1]),
        ("GPU-zzzz", []),
    ],
)
def test_cuda_visible_devices(visible: str, expected: list[int], tmp_path: Path) -> None:
    recorded = replace(machine("workstation-mixed", tmp_path), environ={"CUDA_VISIBLE_DEVICES": visible})
    assert [g.index for g in nvidia.detect(recorded) or ()] == expected


def test_nvidia_without_memory_of_its_own(tmp_path: Path) -> None:
    """Jetson and GB10: the driver answers "not supported" for memory."""
    text = EMPTY + '=== nvml\ndriver="580"\n[[gpu]]\nname="NVIDIA GB10"\nuuid="GPU-1"\ncapability=[12, 1]\n'
    (gpu,) = nvidia.detect(host(text, tmp_path)) or ()
    assert (gpu.is_shared, gpu.memory_bytes, gpu.free_bytes) == (True, 8 * GIB, 4 * GIB)
    assert gpu.architecture == "sm_121"


def test_a_lost_gpu_does_not_hide_the_others(tmp_path: Path) -> None:
    text = EMPTY + (
        '=== nvml\ndriver="580"\n[[gpu]]\nlost=true\n'
        '[[gpu]]\nname="B"\nuuid="GPU-2"\ntotal=8\nfree=4\ncapability=[9, 0]\n'
    )
    assert [g.name for g in nvidia.detect(host(text, tmp_path)) or ()] == ["B"]


def test_nvml_that_cannot_be_loaded(tmp_path: Path) -> None:
    def missing() -> Any:
        raise ModuleNotFoundError("pynvml")

    def no_driver() -> None:
        raise NVMLError("Driver Not Loaded")

    assert nvidia.detect(replace(host(EMPTY, tmp_path), nvml=missing)) is None
    assert nvidia.detect(replace(host(EMPTY, tmp_path), nvml=lambda: SimpleNamespace(nvmlInit=no_driver))) is None


@pytest.mark.parametrize(
    ("files", "code", "said"),
    [
        ("", 18, "NVIDIA: the driver was updated while its old part runs: restart this machine"),
        ("=== file /proc/driver/nvidia/version\nNVRM version: 570\n", 4, "NVIDIA: this user may not use"),
        (
            "=== file /proc/driver/nvidia/version\nNVRM version: 570\n",
            12,
            "NVIDIA: the driver is there, its management",
        ),
        ("=== file /dev/nvidiactl\n", 0, "NVIDIA: the driver is there, its management"),
        ("", 12, ""),
        ("", 9, ""),
    ],
)
def test_a_driver_that_cannot_be_asked(files: str, code: int, said: str, tmp_path: Path) -> None:
    """After an update without a restart, and in a container that has one half of it; not where there is none."""

    class Nvml:
        def nvmlInit(self) -> None:
            error = NVMLError("of that number")
            error.value = code  # type: ignore[attr-defined]
            raise error

    problems = detect(replace(host(EMPTY + files, tmp_path), nvml=Nvml)).problems
    assert [p.startswith(said) for p in problems] == ([True] if said else [])


def test_bytes_of_an_old_nvml(tmp_path: Path) -> None:
    recorded = machine("desktop-rtx4090", tmp_path)
    library = recorded.nvml()
    library.nvmlDeviceGetName = lambda _: b"Old name"
    (gpu,) = nvidia.detect(recorded) or ()
    assert gpu.name == "Old name"


def test_amd_asks_rocm_smi_where_drm_is_hidden(tmp_path: Path) -> None:
    text = EMPTY + (
        "=== file /sys/class/kfd/kfd/topology/nodes/1/properties\nsimd_count 440\ngfx_target_version 90010\n"
        "=== command rocm-smi\n"
        '{"card0": {"Card Series": "AMD Instinct MI250X", "VRAM Total Memory (B)": "68702699520", '
        '"VRAM Total Used Memory (B)": "10960896"}, "system": {"Driver version": "6.7"}}\n'
    )
    (gpu,) = amd.detect(host(text, tmp_path)) or ()
    assert (gpu.name, gpu.architecture) == ("AMD Instinct MI250X", "gfx90a")
    assert gpu.free_bytes == 68702699520 - 10960896


def test_amd_says_what_keeps_it_from_computing(tmp_path: Path) -> None:
    recorded = machine("workstation-mixed", tmp_path)
    (gpu,) = amd.detect(recorded) or ()
    assert (gpu.problem, gpu.build, gpu.architecture) == ("", "HIP", "gfx1100")
    (tmp_path / "dev/kfd").unlink()
    (gpu,) = amd.detect(recorded) or ()
    assert "--device /dev/kfd" in gpu.problem
    (tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties").unlink()
    (gpu,) = amd.detect(recorded) or ()
    assert (gpu.build, gpu.architecture) == ("VULKAN", "")
    assert "ROCm does not know it" in gpu.problem


@pytest.mark.parametrize(
    ("more", "total", "free"),
    [
        ("=== file /sys/class/drm/renderD128/device/tile1/physical_vram_size_bytes\n17095983104\n", 31.8, 31.8),
        (
            "=== file /sys/class/drm/renderD128/device/drm/card1/lmem_total_bytes\n17095983104\n"
            "=== file /sys/class/drm/renderD128/device/drm/card1/lmem_avail_bytes\n8589934592\n",
            15.9,
            8.0,
        ),
        (
            "=== file /sys/class/drm/renderD128/device/resource\n0x0 0x0 0x0\n0x0 0x0 0x0\n"
            "0x0000004000000000 0x00000043ffffffff 0x000000000014220c\n",
            16.0,
            16.0,
        ),
    ],
)
def test_where_intel_keeps_the_size_of_vram(more: str, total: float, free: float, tmp_path: Path) -> None:
    text = (MACHINES / "arc-a770.txt").read_text()
    if "tile1" not in more:
        text = text.replace("/tile0/physical_vram_size_bytes", "/other")
    (gpu,) = intel.detect(host(text + more, tmp_path)) or ()
    assert (round(gpu.memory_bytes / GIB, 1), round(gpu.free_bytes / GIB, 1)) == (total, free)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, [128, 129, 130]),
        ({"HIP_VISIBLE_DEVICES": "1"}, [130]),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "0"}, [130]),
        ({"HIP_VISIBLE_DEVICES": "0,7,1"}, [128]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0123456789abcdef"}, [128, 129, 130]),
    ],
)
def test_what_rocm_hides(environ: dict[str, str], expected: list[int], tmp_path: Path) -> None:
    """Of three cards, the second of which cannot compute."""
    text = EMPTY + "=== file /dev/kfd\n\n"
    for number, minor in enumerate((128, 129, 130)):
        device = f"/sys/class/drm/renderD{minor}/device"
        text += f"=== file {device}/vendor\n0x1002\n=== file {device}/product_name\n{minor}\n"
        text += f"=== file {device}/mem_info_vram_total\n17179869184\n=== file {device}/mem_info_vram_used\n0\n"
        if minor != 129:
            text += (
                f"=== file /sys/class/kfd/kfd/topology/nodes/{number}/properties\n"
                f"simd_count 80\ngfx_target_version 110000\ndrm_render_minor {minor}\n"
            )
    found = amd.detect(replace(host(text, tmp_path), environ=environ)) or ()
    assert [int(gpu.name) for gpu in found] == expected


def test_an_arc_without_resizable_bar(tmp_path: Path) -> None:
    """It is no integrated GPU: those are at 00:02.0."""
    text = (MACHINES / "laptop-intel.txt").read_text()
    for place, problem in (("0000:00:02.0", ""), ("0000:03:00.0", "turn on resizable BAR")):
        root = tmp_path / place
        here = host(text.replace("/sys/class/drm/renderD128/device/", f"/sys/devices/{place}/"), root)
        (root / "sys/class/drm/renderD128").mkdir(parents=True)
        (root / "sys/class/drm/renderD128/device").symlink_to(root / "sys/devices" / place)
        [gpu] = intel.detect(here) or ()
        assert problem in gpu.problem
        assert gpu.is_shared is not bool(problem)


def test_memory_that_the_firmware_set_aside_is_the_gpus(tmp_path: Path) -> None:
    """96 GiB of 128: the plan is for these, and not for the 32 that the system has left."""
    room, main = rooms(detect(machine("strix-halo-96", tmp_path)))
    assert room is not None
    assert main is not None
    assert (room.where, round(room.usable / GIB), round(main.total / GIB)) == ("gpu", 86, 31)


def test_an_adreno_of_a_laptop(tmp_path: Path) -> None:
    text = EMPTY + "=== file /sys/class/drm/renderD128/device/of_node/compatible\nqcom,adreno-43050a01\0qcom,adreno\n"
    (gpu,) = qualcomm.detect(host(text, tmp_path)) or ()
    assert (gpu.name, gpu.driver, gpu.is_shared) == ("Adreno", "msm", True)


def test_an_intel_mac_has_no_apple_gpu(tmp_path: Path) -> None:
    assert apple.detect(replace(machine("macmini-m2", tmp_path), machine="x86_64")) is None


def test_where_a_model_goes(tmp_path: Path) -> None:
    """The vendor with the most memory, all its GPUs; one MIG instance; the processor where llama.cpp has no GPU."""

    def room(name: str, *, has_gpu: bool = True) -> tuple[str, float]:
        found, _ = rooms(detect(machine(name, tmp_path / name)), has_gpu=has_gpu)
        assert found is not None
        return found.name, round(found.usable / GIB, 1)

    assert room("workstation-mixed") == ("NVIDIA GeForce RTX 3090 + NVIDIA GeForce RTX 3090", 43.2)
    assert room("server-a100-mig") == ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 35.3)
    assert room("strix-halo") == ("AMD Radeon 8060S Graphics", 61.5)
    assert room("macbook-m3-max") == ("Apple M3 Max GPU", 38.2)
    assert room("laptop-intel") == ("12th Gen Intel(R) Core(TM) i7-1260P", 10.4)
    assert room("container-small") == ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", 2.0)
    assert rooms(Machine(None)) == (None, None)
    gpus = detect(machine("desktop-rtx4090", tmp_path / "again"))
    assert rooms(gpus, has_gpu=False)[0] == rooms(gpus)[1]
