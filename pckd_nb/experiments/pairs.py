"""Pairs of a trained teacher and a student network, and the names of their folders."""

import re
from collections.abc import Sequence
from pathlib import Path

from .. import runs
from ..paths import user_path


def find_pairs(folder: str | Path, pairs: Sequence[tuple[str, str]]) -> list[tuple[Path, str]]:
    """Return the pairs of a grid, with all trained teachers of a folder.

    Parameters
    ----------
    folder : path
        A folder with runs of the teachers, such as the folder of a grid of the method supervised.
    pairs : sequence of (str, str)
        Names of the networks of teacher and student.

    Returns
    -------
    list of (Path, str)
        For every pair, each finished supervised run of the teacher's network: its folder, and the name of the student.
        The runs of a network are sorted by seed.

    Raises
    ------
    FileNotFoundError
        If there is no such run of a network, or if none of them has weights.
    ValueError
        If a run.json is damaged.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> for seed in (0, 1):
    ...     _ = pckd.fit("resnet14", data, epochs=1, seed=seed, out=f"teachers/{seed}", progress=False)
    >>> from pckd_nb.experiments import find_pairs
    >>> [(teacher.name, student) for teacher, student in find_pairs("teachers", [("resnet14", "resnet8")])]
    [('0', 'resnet8'), ('1', 'resnet8')]
    """
    folder = user_path(folder, "folder")
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise TypeError("pairs must be a list of (teacher, student), with the names of their networks")
    teachers: dict[str, list[tuple[int, Path]]] = {}
    for file in sorted(folder.rglob("run.json")):
        settings = runs.read_settings(file.parent)
        supervised = settings["method"]["name"] == "Supervised" and settings["status"] == "finished"
        if supervised and (file.parent / "student.safetensors").is_file():
            teachers.setdefault(settings["model"]["name"], []).append((settings["seed"], file.parent))
    for teacher, _ in pairs:
        if teacher not in teachers:
            found = ", ".join(sorted(filter(None, teachers))) or "none of any network"
            raise FileNotFoundError(
                f"there is no finished supervised run of {teacher} with weights below '{folder}', but of: {found}"
            )
    return [(path, student) for teacher, student in pairs for _, path in sorted(teachers[teacher])]


def name_pairs(pairs: Sequence[tuple[Path | None, str]], out: Path) -> dict[tuple[Path | None, str], str]:
    """Return the name of the folder of every pair.

    It is "resnet56-resnet20", or "resnet20" without a teacher. If the grid has several teachers of one network, their
    seeds tell them apart: "resnet56.seed1-resnet20". Runs that are already there keep their place: a teacher keeps the
    folder in which it has runs, also if teachers are added to the grid or left out later.

    Parameters
    ----------
    pairs : sequence of (Path or None, str)
        Run folder of the teacher, and name of the student network. No pair is there twice.
    out : Path
        Folder of the grid.

    Returns
    -------
    dict of (Path or None, str) to str

    Raises
    ------
    ValueError
        If two teachers have the same network and the same seed, or if two pairs have the same name.
    """
    groups: dict[tuple[str, str], list[Path | None]] = {}
    for teacher, student in pairs:
        groups.setdefault((network_name(teacher) or "network" if teacher else "", student), []).append(teacher)
    names: dict[tuple[Path | None, str], str] = {}
    for (network, student), teachers in groups.items():
        for teacher in teachers:
            names[teacher, student] = folder_name(network, student)
            if teacher is not None and _needs_seed(teacher, teachers, network, student, out):
                names[teacher, student] = folder_name(_with_seed(network, teacher), student)
    for pair, name in names.items():
        if others := [other for other in names if other != pair and names[other] == name]:
            raise ValueError(
                f"'{pair[0]}' and '{others[0][0]}' both give the pair '{name}': train teachers with different seeds, "
                "or make one grid per teacher, each with its own out=…"
            )
    return names


def _needs_seed(teacher: Path, teachers: Sequence[Path | None], network: str, student: str, out: Path) -> bool:
    """Return whether the folder of a pair is called after the teacher's seed too.

    Parameters
    ----------
    teacher : Path
    teachers : sequence of Path
        All teachers with this network in the grid.
    network, student : str
    out : Path
        Folder of the grid.

    Returns
    -------
    bool
    """
    plain, seeded = (
        _recorded_teacher(out / folder_name(name, student)) for name in (network, _with_seed(network, teacher))
    )
    if seeded is not None and (not seeded or _is_same(teacher, seeded)):
        return True  # it has runs there
    if len(teachers) == 1:
        return False
    if plain:
        return not _is_same(teacher, plain)
    first = min(filter(None, teachers), key=lambda path: int(runs.read_settings(path)["seed"]))
    return plain is None or teacher != first  # runs without a teacher belong to any of them


def _recorded_teacher(folder: Path) -> dict[str, str] | None:
    """Return fingerprint and folder of the teacher of the runs below a folder.

    Returns
    -------
    dict or None
        Empty if no run has a teacher. None if there are no runs.
    """
    found: dict[str, str] | None = None
    for file in sorted(folder.glob("*/seed*/run.json")):
        found = {}
        if teacher := runs.read_settings(file.parent)["teacher"]:
            path = file.parent / teacher["run"] if "run" in teacher else Path()
            return {"fingerprint": teacher["fingerprint"], "folder": str(path.resolve())}
    return found


def _is_same(teacher: Path, recorded: dict[str, str]) -> bool:
    """Return whether a run folder is that of a recorded teacher. The fingerprint differs if its input was adapted."""
    fingerprint = runs.read_settings(teacher)["fingerprint"]
    return recorded["fingerprint"] == fingerprint or recorded["folder"] == str(teacher.resolve())


def _with_seed(network: str, teacher: Path) -> str:
    return f"{network}.seed{runs.read_settings(teacher)['seed']}"


def folder_name(network: str, student: str) -> str:
    """Return the name of the folder of a pair.

    Parameters
    ----------
    network : str
        The teacher's network, and its seed if needed. Empty without a teacher.
    student : str

    Returns
    -------
    str
    """
    return re.sub(r"[^\w.=-]", "_", f"{network}-{student}" if network else student)


def network_name(teacher: Path | None) -> str | None:
    """Return the name of the network of a run, or None if there is no run or its network has no name.

    Parameters
    ----------
    teacher : Path or None
        A run folder.

    Returns
    -------
    str or None
    """
    name: str | None = None if teacher is None else runs.read_settings(teacher)["model"]["name"]
    return name
