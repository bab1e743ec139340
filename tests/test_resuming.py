import os

import pytest

import pckd_nb as pckd
from pckd_nb import files, resuming, runs


@pytest.fixture
def run(teacher, data, recipe, tmp_path):
    student = pckd.create_model("resnet8", data, seed=2)
    return pckd.distill(student, teacher, data, pckd.KD(), recipe, out=tmp_path / "run", progress=False)


def test_check_run_folder_accepts_and_refuses_folders(run, tmp_path):
    def refused(error, match, folder, **flags):
        with pytest.raises(error, match=match):
            resuming.check_run_folder(folder, **{"resume": False, "overwrite": False, **flags})

    refused(FileExistsError, "resume=True .* overwrite=True ", run.path)
    assert resuming.check_run_folder(run.path, resume=True, overwrite=False) == run.path
    assert resuming.check_run_folder(run.path, resume=False, overwrite=True) == run.path
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        refused(FileExistsError, "not a run", tmp_path / "photos", **flags)
    (tmp_path / "file").write_text("")
    refused(NotADirectoryError, "is a file", tmp_path / "file")
    refused(NotADirectoryError, "is a file", tmp_path / "file" / "run")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(FileNotFoundError, "is a link to a path that does not exist", tmp_path / "link")
    assert (
        resuming.check_run_folder(tmp_path / "new" / "run", resume=False, overwrite=False) == tmp_path / "new" / "run"
    )
    assert not (tmp_path / "new").exists()


def test_run_files_lists_all_files_of_a_run(run):
    assert {path.name for path in run.path.iterdir()} == set(runs.RUN_FILES)


def test_overwriting_removes_only_the_run(run, teacher, data, recipe):
    """Other contents of the folder stay: another run, notes, and the cache that this training uses."""
    (run.path / "notes.txt").write_text("mine")
    options = dict(out=run.path, overwrite=True, teacher_cache=run.path / "cache", progress=False)
    inner = pckd.fit(teacher, data, recipe, out=run.path / "grid" / "seed0", progress=False)
    student = pckd.create_model("resnet8", data, seed=3)
    again = pckd.distill(student, teacher, data, pckd.KD(), recipe, precision="bf16-mixed", **options)
    assert again.finished and again.fingerprint != run.fingerprint
    assert (run.path / "notes.txt").read_text() == "mine" and pckd.load_run(inner.path).finished
    assert list((run.path / "cache").rglob("epoch-*.npy"))


def test_the_run_of_the_teacher_is_not_overwritten(run, data, recipe, tmp_path):
    (tmp_path / "link").symlink_to(run.path)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    for out in (run.path, tmp_path / "link"):
        with pytest.raises(ValueError, match="' is the run folder of the teacher and would be overwritten"):
            student = pckd.create_model("resnet8", data)
            pckd.distill(student, run, data, pckd.KD(), recipe, out=out, overwrite=True, progress=False)
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_a_run_folder_may_have_a_name_that_is_not_utf8(teacher, data, recipe, tmp_path):
    out = tmp_path / os.fsdecode(b"run\xe9")
    try:
        out.mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    assert pckd.fit(teacher, data, recipe, out=out, progress=False).finished
    assert pckd.load_run(out).model() is not None


def test_a_folder_is_locked_and_files_of_a_killed_run_are_removed(tmp_path):
    folder = tmp_path / "deep" / "run"
    with files.locked(folder):
        with pytest.raises(BlockingIOError, match="another process is training in"), files.locked(folder):
            pass
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not folder.parent.exists() and tmp_path.exists()  # empty folders are removed
    folder.mkdir(parents=True)
    for name in (".lock", ".history.csv.1234.tmp"):
        (folder / name).write_text("")
    assert resuming.check_run_folder(folder, resume=False, overwrite=False) == folder
    with files.locked(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]
        resuming.start_run(folder, {"format": runs.FORMAT, "status": "new"})
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_no_checkpoint_is_written_without_the_lock_file(tmp_path):
    with files.locked(tmp_path / "run"):
        resuming.write_checkpoint(tmp_path / "run", {"a": 1})
        (tmp_path / "run" / ".lock").unlink()
        with pytest.raises(FileNotFoundError, match="is gone: it, or its file .lock, was removed or renamed") as caught:
            resuming.write_checkpoint(tmp_path / "run", {"a": 2})
        assert "\n" not in str(caught.value)
        with files.locked(tmp_path / "run"):  # by another process
            assert resuming.read_checkpoint(tmp_path / "run") == {"a": 1}


def test_the_previous_checkpoint_is_kept(tmp_path):
    for number in (1, 2, 3):
        resuming.write_checkpoint(tmp_path, {"a": number})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "previous.pt"}
    assert resuming.read_checkpoint(tmp_path) == {"a": 3}
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt' can't be read \(it is missing\): the previous checkpoint is used"
    ):
        assert resuming.read_checkpoint(tmp_path) == {"a": 2}
    assert resuming.has_checkpoint(tmp_path) and [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    resuming.remove_checkpoints(tmp_path)
    assert not resuming.has_checkpoint(tmp_path)
