import pytest

import pckd_nb as pckd
from pckd_nb import files, resuming, runs


@pytest.fixture
def run(teacher, data, recipe, tmp_path):
    student = pckd.create_model("resnet8", data, seed=2)
    return pckd.distill(student, teacher, data, pckd.KD(), recipe, out=tmp_path / "run", progress=False)


def test_prepare(run, tmp_path):
    def refused(error, match, folder, **flags):
        with pytest.raises(error, match=match):
            resuming.prepare(folder, **{"resume": False, "overwrite": False, **flags})

    refused(FileExistsError, "--resume.*--overwrite", run.path)
    assert resuming.prepare(run.path, resume=True, overwrite=False) == run.path
    assert resuming.prepare(run.path, resume=False, overwrite=True) == run.path
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        refused(FileExistsError, "not a run", tmp_path / "photos", **flags)
    (tmp_path / "file").write_text("")
    refused(NotADirectoryError, "is a file", tmp_path / "file")
    refused(NotADirectoryError, "is a file", tmp_path / "file" / "run")
    assert resuming.prepare(tmp_path / "new" / "run", resume=False, overwrite=False) == tmp_path / "new" / "run"
    assert not (tmp_path / "new").exists()


def test_a_folder_is_held_by_one_and_what_a_kill_left_is_swept(tmp_path):
    folder = tmp_path / "deep" / "run"
    with files.locked(folder):
        with pytest.raises(BlockingIOError, match="another process is training in"), files.locked(folder):
            pass
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not folder.exists() and folder.parent.exists()  # nothing came of it
    folder.mkdir()
    for name in (".lock", ".history.csv.1234.tmp"):
        (folder / name).write_text("")
    assert resuming.prepare(folder, resume=False, overwrite=False) == folder
    with files.locked(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]
        resuming.begin(folder, {"format": runs.FORMAT, "status": "new"})
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_a_lock_that_was_removed_stops_the_writing(tmp_path):
    with files.locked(tmp_path / "run"):
        resuming.write_checkpoint(tmp_path / "run", {"a": 1})
        (tmp_path / "run" / ".lock").unlink()
        with pytest.raises(FileNotFoundError, match="has gone: it, or its .lock, was removed or renamed") as caught:
            resuming.write_checkpoint(tmp_path / "run", {"a": 2})
        assert "\n" not in str(caught.value)
        with files.locked(tmp_path / "run"):  # by another process
            assert resuming.read_checkpoint(tmp_path / "run") == {"a": 1}


def test_the_checkpoint_before_the_last_is_kept(tmp_path):
    for number in (1, 2, 3):
        resuming.write_checkpoint(tmp_path, {"a": number})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "previous.pt"}
    assert resuming.read_checkpoint(tmp_path) == {"a": 3}
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt' can't be read \(it is missing\): the one before it is taken"
    ):
        assert resuming.read_checkpoint(tmp_path) == {"a": 2}
    assert resuming.has_checkpoint(tmp_path) and [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    resuming.remove_checkpoints(tmp_path)
    assert not resuming.has_checkpoint(tmp_path)
