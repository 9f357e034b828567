"""Files that are there whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsob_pl.errors import UsageError
from dsob_pl.files import is_whole, save

FULL = """
import resource, sys, torch
from pathlib import Path
from dsob_pl.errors import RunFailed
from dsob_pl.files import save
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save({"x": torch.zeros(100_000)}, Path(sys.argv[1]))
except RunFailed as error:
    print(error)
"""


def test_what_is_saved_is_read_back_and_what_was_there_can_be_kept(tmp_path: Path) -> None:
    path, spare = tmp_path / "folder" / "a.pt", tmp_path / "folder" / "b.pt"
    for number in range(3):
        size = save({"x": torch.full((5,), float(number))}, path, keep_as=spare)
        assert size == path.stat().st_size
        assert torch.load(path, weights_only=True)["x"].tolist() == [number] * 5
        if number:
            assert torch.load(spare, weights_only=True)["x"].tolist() == [number - 1] * 5
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.pt", "b.pt"]


def test_where_there_is_no_room_the_old_file_stays_and_the_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save({"x": torch.ones(3)}, path)
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("'a.pt' needs 0.4 MB, and there is no room for it: "), done.stderr
    assert torch.load(path, weights_only=True)["x"].tolist() == [1.0, 1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@settings(max_examples=200, deadline=None)
@example(place=0.95, bit=3, cut=False)  # zlib takes the file for compressed
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_is_noticed_wherever_it_matters(
    place: float, bit: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    content = {"x": torch.arange(600), "y": {"z": 3, "w": torch.linspace(0, 1, 70)}}
    save(content, folder / "a.pt")
    assert is_whole(folder / "a.pt")
    data = bytearray((folder / "a.pt").read_bytes())
    if cut:
        data = data[: int(place * len(data))]
    else:
        data[int(place * len(data))] ^= 1 << bit
    (folder / "b.pt").write_bytes(data)
    if is_whole(folder / "b.pt"):  # padding between the tensors, or a date in the archive's own list
        assert not cut
        found = torch.load(folder / "b.pt", weights_only=True)
        assert torch.equal(found["x"], content["x"])
        assert found["y"]["z"] == 3
        assert torch.equal(found["y"]["w"], content["y"]["w"])


@pytest.mark.parametrize("entry", range(3))
def test_a_tensor_marked_as_a_folder_is_noticed(entry: int, tmp_path: Path) -> None:
    save({"x": torch.arange(600), "y": torch.ones(3)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    start = -1
    for _ in range(entry + 1):
        start = data.index(b"PK\x01\x02", start + 1)  # of the archive's own list
    data[start + 38] ^= 0x10
    (tmp_path / "b.pt").write_bytes(data)
    assert not is_whole(tmp_path / "b.pt")


def test_what_is_no_file_of_torch_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    (tmp_path / "empty").write_bytes(b"")
    assert not any(is_whole(tmp_path / name) for name in ("text", "empty", "missing", "."))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"x": torch.zeros(3)}, tmp_path / "a.pt")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("zipfile.ZipFile", refuse)  # the tests may run as somebody who may read everything
    with pytest.raises(UsageError, match=r"a\.pt' cannot be read: permission denied"):
        is_whole(tmp_path / "a.pt")
