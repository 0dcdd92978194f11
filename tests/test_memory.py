"""A device whose memory does not suffice: less at a time, then sums elsewhere, then one line; the numbers stay."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import run
from tiny import conv_net, explainer_of, inferer_of, scan_of, write_bundle, write_cohort

from agg2exp_core import pipeline
from agg2exp_core.attribution.attribute import Subject, attribute
from agg2exp_core.model import memory
from agg2exp_core.model.memory import OffDevice
from agg2exp_core.records import InputError, Method, Volume
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import list_cases
from agg2exp_core.volumes import write_volume

AGAIN = """
import resource, torch
from agg2exp_core.model.memory import keep_freed_memory

def faults(arrays):
    for _ in range(2):  # the first lets the heap grow
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            [torch.ones(2**21) for _ in range(arrays)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(sum(map(faults, (8, 14, 20, 28))))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is told, no other")
def test_memory_of_freed_arrays_is_used_again():
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


@pytest.mark.parametrize(("taken", "told"), [(1, [(-3, memory.LARGE), (-1, memory.KEPT)]), (0, [(-3, memory.LARGE)])])
def test_the_allocator_is_told_the_one_threshold_only_where_it_takes_the_other(taken, told, monkeypatch):
    heard = []
    library = SimpleNamespace(mallopt=lambda *words: heard.append(words) or taken)
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    memory.keep_freed_memory()
    assert heard == told


def test_an_allocator_that_cannot_be_told_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace())
    memory.keep_freed_memory()
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("not even looked for"))
    memory.keep_freed_memory()


class Tight(torch.nn.Module):
    """A network with room for so many voxels at a time."""

    def __init__(self, network: torch.nn.Module, room: int, error: type[BaseException] = torch.OutOfMemoryError):
        super().__init__()
        self.network, self.room, self.error = network, room, error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.numel() > self.room:
            raise self.error("you tried to allocate 9 GiB: can't allocate memory")
        return self.network(images)


def quiet(*_) -> None:
    pass


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    write_bundle(root)
    write_cohort(root, ("one", "two"), np.diag([4.0, 4, 4, 1]), (20, 20, 20))
    return root


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the project logged; MONAI logs too."""
    return [record.getMessage() for record in caplog.records if record.name == "root"]


def tight(root, room: int, batch: int, error=torch.OutOfMemoryError) -> pipeline.Explaining:
    explaining = pipeline.Explaining(root, pipeline.Plan("tiny", Method("gradient"), device="cpu"))
    explaining.explainer.inferer.sw_batch_size = batch
    explaining.explainer = replace(explaining.explainer, network=Tight(explaining.explainer.network, room, error))
    return explaining


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_windows_are_halved_until_they_fit_once_for_all_cases_and_it_is_said(root, caplog, error) -> None:
    one, two = list_cases(root, "c")
    plain = pipeline.Explaining(root, pipeline.Plan("tiny", Method("gradient"), device="cpu"))
    expected = results.read_importance(plain.case(one, root / "plain", quiet))
    explaining, notes = tight(root, 2 * 16**3, 8, error), []
    folder = explaining.cohort_case("c", one, lambda done, total, note: notes.append(note))
    found = results.read_importance(folder)
    assert np.allclose(found.positive, expected.positive, rtol=1e-5, equal_nan=True)
    assert [note for note in notes if "memory" in note] == [
        f"out of memory, again with windows {count} at a time from here on" for count in (4, 2)
    ]
    assert [line.partition(";")[0] for line in said(caplog)] == ["one: out of memory on cpu"] * 2
    explaining.cohort_case("c", two, quiet)
    assert len(said(caplog)) == 2  # which knows by now


def test_another_fault_is_no_lack_of_memory(root, caplog) -> None:
    explaining = tight(root, 0, 4)
    explaining.explainer = replace(explaining.explainer, network=torch.nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="shape"):
        explaining.cohort_case("c", list_cases(root, "c")[0], quiet)
    assert not said(caplog)


def test_where_no_less_will_do_the_case_fails_with_one_line_and_the_next_runs(root, monkeypatch, capsys) -> None:
    made = pipeline.explainer_of

    def with_room_for_two(bundle, device):
        explainer = made(bundle, device)
        full = explainer.network

        class Second(torch.nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                if float(images.detach().amax()) > 0.9:  # only the first scan is as bright
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return full(images)

        return replace(explainer, network=Second())

    monkeypatch.setattr(pipeline, "explainer_of", with_room_for_two)
    bright = Volume(np.full((20, 20, 20), 1000, np.int16), np.diag([4.0, 4, 4, 1]))
    write_volume(root.parent / "scans" / "one.nii.gz", bright)
    words = ("--model", "tiny", "--cohort", "c", "--method", "gradient", "--device", "cpu")
    assert run("explain", "--data", root, *words) == 2
    said = capsys.readouterr().err
    assert "one: a case must fit the memory of its device; got one on cpu" in said and "Traceback" not in said
    cases = root / "runs" / "c" / "tiny-gradient" / "cases"
    assert [path.name for path in cases.glob("[!.]*")] == ["two"] and results.verify(cases / "two") == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sums_off_the_device_are_the_same(precision) -> None:
    on = explainer_of(conv_net(), inferer_of(overlap=0.5))
    off = replace(on, network=OffDevice(on.network, torch.device("cpu")))
    subject, method = Subject(scan_of((12, 12, 12))), Method(samples=4, precision=precision)
    maps = [attribute(one, subject, ("heart", "aorta"), method, quiet).saliency for one in (on, off)]
    assert maps[0].keys() == maps[1].keys() != set()
    for name, expected in maps[0].items():
        assert torch.equal(maps[1][name], expected)


def test_a_device_of_its_own_is_left_before_a_case_fails(root, caplog) -> None:
    explaining = tight(root, 16**3, 1)
    explaining.device = torch.device("cuda", 0)  # in name only
    on = replace(explaining.explainer, device=torch.device("meta"))
    off = explaining._smaller(on, "one", quiet)
    assert isinstance(off.network, OffDevice) and (off.device.type, off.network.device.type) == ("cpu", "meta")
    with pytest.raises(InputError, match="a case must fit the memory of its device; got one on cuda:0"):
        explaining._smaller(off, "one", quiet)
    assert said(caplog) == ["one: out of memory on cuda:0; again with sums that stay off it"]
