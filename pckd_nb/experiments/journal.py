"""The journal of a search: which trials were started, with which settings, and how they ended.

OUT/journal.jsonl has one line of JSON per event. It is a journal storage of optuna, with one study per method. Several
processes write to it: each of them locks OUT/.lock first. A process that trains a trial holds the lock of this trial.
The operating system releases all locks of a process that was killed. So other processes know which trials to resume.
"""

import dataclasses
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock, Timeout

from ..files import LOCK
from ..messages import one_line
from .arms import Arm, parse_arm
from .space import contains, round_values

if TYPE_CHECKING:
    from optuna import Study  # optuna is slow to import
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL = "journal.jsonl"
ARM = "arm"  # attribute of a trial: its arm as text
STATUS = {"COMPLETE": "finished", "FAIL": "failed"}  # state of optuna → status; any other state means "running"


class Claim(NamedTuple):
    """A trial that this process trains.

    Parameters
    ----------
    method : Arm
        The method, without the settings that are searched.
    number : int
        Number of the trial, counted from 0 for each method.
    arm : Arm
        What is trained: the method with the settings of this trial.
    lock : FileLock
        It is held until the trial is released.
    """

    method: Arm
    number: int
    arm: Arm
    lock: FileLock

    def __str__(self) -> str:
        return f"{self.method} trial {self.number}"


class Ended(NamedTuple):
    """How far a trial in the journal is, and how it ended.

    Parameters
    ----------
    arm : str
        The method with the settings of this trial.
    status : {"finished", "failed", "running"}
    val_top1 : float
        Accuracy on the validation images after the last epoch, in percent. NaN if the trial is not finished.
    val_cross_entropy : float
        Cross-entropy on the same images, in nats.
    failure : str
        Why the trial failed.
    """

    arm: str
    status: str
    val_top1: float = float("nan")
    val_cross_entropy: float = float("nan")
    failure: str = ""


class Journal:
    """The journal of a search.

    Parameters
    ----------
    out : Path
        Folder of the search. It must exist.

    Raises
    ------
    ValueError
        If the journal is damaged.
    """

    def __init__(self, out: Path):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        self.path = path = out / JOURNAL
        self.lock = lock = lock_of(out)

        class SystemLock(JournalFileOpenLock):
            """Lock with the operating system, which releases the lock if the process is killed."""

            def acquire(self) -> bool:
                lock.acquire()
                _cut_unfinished_line(path)
                return True

            def release(self) -> None:
                lock.release()

        with self._damage_reported():
            self.storage = JournalStorage(JournalFileBackend(str(path), lock_obj=SystemLock(str(path))))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the journal, so that no other process writes to it during the block.

        Raises
        ------
        ValueError
            If the journal is damaged.
        """
        with self.lock, self._damage_reported():
            yield

    @contextmanager
    def _damage_reported(self) -> Iterator[None]:
        """Raise ValueError with the name of the file if optuna cannot read what the journal contains."""
        try:
            yield
        except (ValueError, KeyError, TypeError, IndexError) as error:
            reason = one_line(repr(error))
            raise ValueError(f"'{self.path}' is damaged: {reason}; search in another folder") from error

    def find_study(self, method: Arm | str) -> "Study | None":
        """Return the study of a method, or None if it does not exist."""
        import optuna

        try:
            return optuna.load_study(storage=self.storage, study_name=str(method))
        except KeyError:
            return None

    def study(self, method: Arm | str) -> "Study":
        """Return the study of a method. It is created if it does not exist."""
        import optuna

        if study := self.find_study(method):  # optuna writes a line whenever a study is created, also if it exists
            return study
        with _quiet():
            return optuna.create_study(storage=self.storage, study_name=str(method), direction="maximize")

    def trials(self, method: Arm | str) -> list[Ended]:
        """Return how far the trials of a method are.

        This only reads the journal. Nothing in the folder is written or locked.

        Parameters
        ----------
        method : Arm or str

        Returns
        -------
        list of Ended
            In the order of their numbers, from 0.

        Raises
        ------
        ValueError
            If the journal is damaged.
        """
        with self._damage_reported():
            if (study := self.find_study(method)) is None:
                return []
            return [
                Ended(
                    trial.user_attrs[ARM],
                    STATUS.get(trial.state.name, "running"),
                    **study.user_attrs.get(str(trial.number), {}),
                )
                for trial in study.get_trials()
            ]

    def claim(
        self,
        methods: Sequence[Arm],
        spaces: "Mapping[str, Mapping[str, BaseDistribution]]",
        defaults: Mapping[str, Mapping[str, Any]],
        count: int,
        seed: int,
        first: tuple[Arm, int] | None = None,
    ) -> Claim | None:
        """Return the next trial to train.

        That is a trial whose process has ended before the training was complete, or else a new trial of the method with
        the fewest trials. The first trial of a method has its default settings.

        Parameters
        ----------
        methods : sequence of Arm
        spaces : dict
            Method → setting → values.
        defaults : dict
            Method → setting → default value.
        count : int
            Number of trials per method.
        seed : int
        first : (Arm, int), optional
            Method and number of the trial to return, if it is a new one or its process has ended.

        Returns
        -------
        Claim or None
            None if all trials are finished, or trained by other processes.

        Raises
        ------
        ValueError
            If the journal is damaged.
        """
        from optuna.trial import TrialState, create_trial

        with self.locked():
            trials = {method: self.study(method).get_trials() for method in methods}
            running = [
                (method, trial) for method in methods for trial in trials[method] if trial.state == TrialState.RUNNING
            ]
            new_method = min(methods, key=lambda method: len(trials[method]))
            if first and first[1] == len(trials[first[0]]):
                running, new_method = [], first[0]
            for method, trial in sorted(running, key=lambda found: (found[0], found[1].number) != first):
                if lock := self._lock_trial(method, trial.number):
                    settings = parse_arm(trial.user_attrs[ARM]).settings
                    return Claim(method, trial.number, dataclasses.replace(method, settings=settings), lock)
            method, number = new_method, len(trials[new_method])
            if number >= count:
                return None
            if (lock := self._lock_trial(method, number)) is None:
                raise ValueError(f"trial {number} of {method} is missing")
            space, arm = spaces[str(method)], method
            if number == 0:
                # without a default that is outside its range: the sampler learns from possible values only
                known = defaults[str(method)]
                params = {name: known[name] for name in space if contains(space[name], known.get(name))}
            else:
                # one seed per trial, so that a search that was stopped continues with the same trials
                sampler_seed = random.Random(f"{seed} {method} {number}").getrandbits(32)
                params = round_values(propose(trials[method], space, sampler_seed), space)
                for name, value in params.items():
                    arm = arm.with_setting(name, value)
            self.study(method).add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=params,
                    distributions={name: space[name] for name in params},
                    user_attrs={ARM: str(arm)},
                )
            )
            return Claim(method, number, arm, lock)

    def finish(self, claim: Claim, **result: Any) -> None:
        """Record how a trial has ended.

        Parameters
        ----------
        claim : Claim
        **result
            val_top1 and val_cross_entropy, see `Ended`. Or failure, if the trial failed.
        """
        from optuna.trial import TrialState

        with self.locked():
            study = self.study(claim.method)
            study.set_user_attr(str(claim.number), result)
            if "failure" in result:
                study.tell(claim.number, state=TrialState.FAIL)
            else:
                study.tell(claim.number, result["val_top1"])

    def release(self, claim: Claim) -> None:
        """Release the lock of a trial."""
        with self.lock:  # so that no other process opens the file that is removed here
            Path(claim.lock.lock_file).unlink(missing_ok=True)
            claim.lock.release()

    def _lock_trial(self, method: Arm, number: int) -> FileLock | None:
        """Lock a trial for this process. Return None if another process has locked it."""
        name = re.sub(r"[^\w.=-]", "_", str(method))
        lock = FileLock(self.path.with_name(f".{name}.trial{number}{LOCK}"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock


def lock_of(out: Path) -> FileLock:
    """Return the lock of a search. It is one object per process, which the same thread can lock more than once."""
    return FileLock(out / LOCK, is_singleton=True)


def propose(trials: "Sequence[FrozenTrial]", space: "Mapping[str, BaseDistribution]", seed: int) -> dict[str, Any]:
    """Return the settings of the next trial.

    They are those that the tree-structured Parzen estimator (TPE) of optuna suggests. It chooses at random until ten
    trials are finished.

    Parameters
    ----------
    trials : sequence of FrozenTrial
        The trials of the same method so far.
    space : dict
        Setting → values.
    seed : int

    Returns
    -------
    dict
        Setting → value.

    References
    ----------
    Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011.
    """
    import optuna

    with _quiet():
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.add_trials(trials)
    return study.ask(dict(space)).params


@contextmanager
def _quiet() -> Iterator[None]:
    """Do not print a line for every new study."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _cut_unfinished_line(path: Path) -> None:
    """Remove the last line of a file if it has no end, because the process was killed or the disk was full."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        with open(path, "rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)
