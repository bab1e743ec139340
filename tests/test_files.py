import subprocess
import sys

import pytest

from pckd_nb import files


def test_a_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("before")

    def fails(temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        files.write(file, fails)
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_two_processes_may_write_the_same_file(tmp_path):
    """Another process writes the same file between our writing and renaming."""

    def interrupted(temporary):
        temporary.write_text("ours")
        code = f"import pathlib; from pckd_nb import files; p = pathlib.Path({str(tmp_path / 'file')!r})"
        code += "; files.write(p, lambda t: t.write_text('theirs'))"
        subprocess.run([sys.executable, "-c", code], check=True)

    files.write(tmp_path / "file", interrupted)
    assert (tmp_path / "file").read_text() == "ours" and [path.name for path in tmp_path.iterdir()] == ["file"]
