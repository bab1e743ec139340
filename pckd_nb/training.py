"""Training: one loop for every method, on the device that Lightning Fabric finds."""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import faults, files, hardware, progress, ranks, recording, resuming, runs, views
from .cache import TeacherCache
from .compiling import compiled, compiles
from .datasets import Dataset
from .downloads import one_line
from .evaluation import make_fabric, pixel_statistics, predict
from .frozen import FrozenTeacher
from .methods import Batch, Method, Supervised, Terms, resolve
from .models import Classifier, FeatureMaps, Output
from .progress import Progress
from .recipes import Recipe, get_recipe
from .recording import Recorder
from .runs import Run

SECONDS_BETWEEN_SAVES = 10
SHARE_OF_SAVING = 0.05  # of the time, at most


def fit(model: Classifier, data: Dataset, recipe: str | Recipe = "classroom", **options: Any) -> Run:
    """Train `model` on labels alone, as a teacher or as the baseline. Options and errors: see `distill`."""
    return distill(model, None, data, Supervised(), recipe, **options)


def distill(
    student: Classifier,
    teacher: Classifier | Run | None,
    data: Dataset,
    method: Method,
    recipe: str | Recipe = "classroom",
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    accelerator: str = "auto",
    precision: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
    compile: bool | str = "auto",
    teacher_cache: str | Path | None = None,
    teacher_cache_gb: float = 20,
    progress: bool | Progress = True,
) -> Run:
    """Train `student` in place, with the help of a frozen `teacher`, and return the record of it. Both networks are
    left on the device that trained.

    teacher: a network, the run of one, or None for a method that uses none.
    method: settings its caller left open come from the recipe, then the data set, then the published values; it is
    copied, not changed. seed: order and crops of the images, and the start of the method's heads.
    out: the run folder; None keeps the run in memory. resume: go on with the run there, or start where there is none.
    accelerator, precision: Lightning Fabric's names; "auto" finds the device, and takes bf16-mixed where the hardware
    computes in bfloat16, else 32-true for the student. The teacher takes the cheapest form whose logits stay within 2 %
    of float32, see `frozen`, unless precision is given as 32-true: then nothing is approximated.
    devices, nodes: processes on each machine, and machines, see `ranks`; None takes one, or what torchrun or srun have
    started. Each gets its part of every batch of the recipe's size. Where nothing has started them, the running script
    is started once more for each. The first process writes the run folder; all return the run.
    compile: run the student through torch.compile; "auto" does so where that was measured to pay back within the run.
    teacher_cache: a folder that keeps the teacher's features for other trials with the same teacher, data, seed and
    augmentation, at most teacher_cache_gb gigabytes (10⁹ bytes) of them.
    A method that compares feature maps gets them by hooks: then the student runs uncompiled and nothing is cached.
    progress: whether to show a progress bar (lines, where stderr is a file); or what is to be told of every step.
    The first Ctrl-C (or kernel interrupt) finishes the step, saves, and returns the run so far; a second stops at once.
    Raises ValueError for settings that do not fit together, FloatingPointError for a loss that is not finite,
    OSError where the run folder can't be written, BlockingIOError where another process trains in it, ConnectionError
    where another process of this training is gone, FileExistsError and others as `resuming.prepare`.
    """
    recipe = get_recipe(recipe).for_network(student.name)
    method, settings = resolve(method, recipe.method_settings(), {"views": data.default_views})
    teacher_run = teacher if isinstance(teacher, Run) else None
    known = teacher.model() if isinstance(teacher, Run) else teacher
    if devices is None:
        if nodes != 1:
            raise ValueError("nodes needs devices: how many processes each machine runs")
        devices, nodes = ranks.started()
    _check(student, known, data, method, recipe, seed, devices, nodes)
    if out is not None and overwrite and teacher_run and teacher_run.path and same_folder(teacher_run.path, out):
        raise ValueError(f"the teacher's run lies in '{out}', which would be overwritten: choose another folder")
    writes = out is not None and ranks.is_first(devices, nodes)
    folder = resuming.prepare(out, resume=resume, overwrite=overwrite) if out is not None and writes else None

    if teacher_run and (learned := teacher_run.settings["data"])["classes"] != list(data.classes):
        raise ValueError(f"the teacher learned other categories, of {learned['name']}, than {data.name} has")

    exact = precision == "32-true"
    fabric, precision = make_fabric(accelerator, precision, devices, nodes)
    fabric.launch()
    with torch.random.fork_rng(), ExitStack() as held:  # leave the caller's random numbers alone

        def hold() -> None:
            assert folder is not None
            held.enter_context(files.locked(folder))
            resuming.prepare(folder, resume=resume, overwrite=overwrite)  # another process may have been here meanwhile

        if out is not None:
            ranks.by_first(fabric, hold)
        torch.manual_seed(seed)
        needs_maps = getattr(method, "needs_maps", False)
        example = [torch.zeros(1, data.channels, *data.size)] if needs_maps else []
        method.bind(student, known, *example)
        for term, reason in getattr(method, "left_out", {}).items():
            warnings.warn(f"{term} is left out: {reason}", stacklevel=2)
        known = known if method.uses_teacher else None
        if fabric.world_size > 1 and has_batchnorm(student):
            if fabric.device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(student)
            elif fabric.is_global_zero:
                warnings.warn("BatchNorm sees its process's part of a batch: only GPUs synchronise it", stacklevel=2)
        how = fabric.device, precision, exact, fabric.world_size
        about = recording.describe(student, known, data, method, settings, recipe, seed, *how)
        ranks.check_one_job(fabric, about)
        rows = recipe.epochs * len(data.train) * method.views
        about["compile"] = compiles(compile, student, rows, data.train.shape, fabric.device, precision, needs_maps)
        if teacher_run and known:
            about["teacher"]["test_top1"] = teacher_run.accuracy
            if teacher_run.path and folder:
                about["teacher"]["run"] = recording.relative_path(teacher_run.path, folder)
        run = ranks.by_first(fabric, lambda: _finished(folder, about) if resume and folder else None)
        if run:
            runs.load_weights(student, run.student_state, str(run.path))
            return run
        if fabric.device.type == "cpu" and precision == "bf16-mixed":
            for hook in faults.zero_unseen_gradients(student, torch.zeros(1, data.channels, *data.size)):
                held.callback(hook.remove)
        if known:
            held.callback(known.train, known.training)  # the caller may want to train it on
        trainer = Trainer(student, known, data, method, recipe, seed, fabric, folder, about)
        if known:
            trainer.prepare_teacher(teacher_cache, teacher_cache_gb, held)
        try:
            state = ranks.by_first(fabric, lambda: _begin(folder, about, resume) if folder else None)
            if state:
                trainer.resume(state)
            return trainer.train(progress)
        except BaseException as error:
            with suppress(OSError):
                if folder and not resuming.worth_keeping(folder):
                    resuming.clear(folder)  # nothing to go on with: leave nothing half-written
                elif folder and isinstance(error, OSError) and error.strerror and resuming.has_checkpoint(folder):
                    error.strerror += "; the last checkpoint is as it was, --resume goes on from it"
            if fabric.world_size > 1 and isinstance(error, RuntimeError) and ranks.lost(error):
                raise ConnectionError(
                    "another process of this training is gone: the same command with --resume goes on"
                ) from error
            raise


def _finished(folder: Path, about: dict[str, Any]) -> Run | None:
    """The run in a `locked` folder, if it has these settings and is done. Raises ValueError where they differ."""
    if not (folder / "run.json").exists():
        return None
    resuming.check_same(folder, about)
    if runs.read_settings(folder)["status"] != "finished":
        return None
    resuming.remove_checkpoints(folder)
    return runs.load_run(folder)


def _begin(folder: Path, about: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from; or begin the run in a `locked` folder, and None."""
    if resume and resuming.has_checkpoint(folder):
        return resuming.read_checkpoint(folder)
    resuming.begin(folder, about)
    return None


class Learner(nn.Module):
    """Student and method as one: asks the student about this rank's images, and the method about the whole batch."""

    ask: Callable[[Tensor], Output]

    def __init__(self, student: Classifier, method: Method, forward: Callable[[Tensor], Output], fabric: Fabric):
        super().__init__()
        self.student, self.method, self.fabric = student, method, fabric
        vars(self)["ask"] = forward  # which may be the student: no second part of this module

    def forward(self, x: Tensor, teacher: Output | None, batch: Batch, epoch: int) -> tuple[Tensor, Terms]:
        """x: this rank's rows; teacher, batch: of all. Returns which images were classified right, and the terms."""
        with self.fabric.autocast():  # opened once a step: held open, it goes on using stale copies of the weights
            output = self.ask(x).float()
        output = ranks.gather(output, len(batch.labels), self.fabric)
        correct = output.logits[: len(batch.labels)].argmax(1) == batch.labels
        return correct, self.method(output, teacher, batch, epoch)


class Trainer:
    """The loop: `train` walks through epochs and steps, `step` is one step, `save` and `resume` bridge a restart."""

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier | None,
        data: Dataset,
        method: Method,
        recipe: Recipe,
        seed: int,
        fabric: Fabric,
        folder: Path | None,
        about: dict[str, Any],
    ):
        if fabric.device.type == "cpu":
            hardware.keep_freed_memory()
            hardware.share_cores()
        self.fabric, self.recipe, self.seed, self.folder, self.about = fabric, recipe, seed, folder, about
        self.data = data.to(fabric.device)
        self.mean, self.std = pixel_statistics(self.data, fabric.device)
        self.method = method.to(fabric.device)
        self.student = student.to(fabric.device).to(memory_format=torch.channels_last)
        forward = compiled(self.student) if about["compile"] else self.student
        needs_maps = getattr(method, "needs_maps", False)
        if needs_maps:
            maps, plain = FeatureMaps(self.student, torch.zeros(1, data.channels, *data.size)), forward
            forward = lambda x: maps(plain, x)  # noqa: E731
        self.learner: nn.Module = Learner(self.student, self.method, forward, fabric)
        if fabric.world_size > 1:
            device = [fabric.device] if fabric.device.type == "cuda" else None
            self.learner = DistributedDataParallel(self.learner, device_ids=device, find_unused_parameters=needs_maps)
        self.teacher = None
        if teacher:
            self.teacher = FrozenTeacher(
                teacher, self.data, method.views, fabric, about["teacher"]["exact"], needs_maps
            )
        self.cache: TeacherCache | None = None
        self.optimizer = torch.optim.SGD(
            [*self.student.parameters(), *self.method.parameters()],
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.books = Recorder.empty(recipe.epochs, len(data.train.labels), fabric.device)

    def train(self, show: bool | Progress = True) -> Run:
        """Do what is left of the epochs, saving on the way; on Ctrl-C stop after the step."""
        books, epochs, count = self.books, self.recipe.epochs, len(self.data.train.labels)
        steps = views.steps(count, self.recipe.batch_size)
        title = f"{self.about['method']['title']} {self.about['model']['name'] or 'network'}"
        done = (books.epoch - 1) * steps + books.step
        bar = progress.shown(show if self.fabric.is_global_zero else False, epochs * steps, title, done)
        self.save_at, stopped = time.monotonic() + SECONDS_BETWEEN_SAVES, False
        with bar as told, interruptible() as interrupt:
            while books.epoch <= epochs and not stopped:
                self.student.train()
                self.method.train()
                for group in self.optimizer.param_groups:
                    group["lr"] = self.recipe.lr_at(books.epoch)
                started = time.perf_counter()
                if self.cache:
                    self.cache.begin(books.epoch)
                batches = views.batches(count, self.recipe.batch_size, self.seed, books.epoch)
                left = batches[books.step :]
                stored = self.data.train.read(
                    [ranks.part(index, self.fabric) for index in left], seed=self.seed, epoch=books.epoch
                )
                for index, images in zip(left, stored, strict=True):
                    index = index.to(self.fabric.device)
                    correct, terms = self.step(images, index, books.epoch, books.step)
                    books.note(index, correct, terms)
                    told.update()
                    if stopped := ranks.any_rank(interrupt.requested, books.step, self.fabric):
                        break
                    due = self.folder is not None and time.monotonic() > self.save_at and books.step < steps
                    if ranks.any_rank(due, books.step, self.fabric):
                        self.check_finite(batches)  # all ranks, so that all end where one would
                        now = time.perf_counter()
                        books.seconds, started = books.seconds + now - started, now
                        if self.folder:
                            self.save_checkpoint()
                self.check_finite(batches)
                books.seconds += time.perf_counter() - started
                if self.cache:
                    self.cache.end()
                if books.step == steps:
                    self.end_epoch()
                    told.set_postfix_str(f"epoch {len(books.history)}, test {books.history[-1]['test_top1']:.1f} %")
                    stopped = stopped or ranks.any_rank(interrupt.requested, 0, self.fabric)
                if self.folder and books.epoch <= epochs and not stopped and time.monotonic() > self.save_at:
                    self.save("running")
            return self.save("finished" if books.epoch > epochs else "interrupted")

    def step(self, images: Tensor, index: Tensor, epoch: int, step: int) -> tuple[Tensor, Terms]:
        """One step of gradient descent on the training images at `index`, of which this rank has been given its part,
        `images`; also says which were classified right."""
        torch.manual_seed(views.noise_seed(self.seed, epoch, step, self.fabric.global_rank))
        x = self.inputs(images, ranks.part(index, self.fabric), epoch)
        teacher_output = self.ask_teacher(x, index) if self.teacher else None
        batch = Batch(self.data.train.labels[index], index)
        correct, terms = self.learner(x, teacher_output, batch, epoch)

        self.optimizer.zero_grad()
        self.fabric.backward(terms.total)
        self.optimizer.step()
        return correct, terms

    def inputs(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Network input: all views of the stored `images`, augmented as those at `index` are in this epoch."""
        images = views.augment(images, self.seed, epoch, index, self.data.train.padding, self.recipe.flip)
        return views.rotate(views.normalise(images, self.mean, self.std), self.method.views)

    def ask_teacher(self, x: Tensor, index: Tensor) -> Output:
        """What the teacher says of the views of the images at `index`, of which x are this rank's as network input; or
        said in another trial."""
        assert self.teacher is not None
        if self.teacher.maps:
            return ranks.gather(self.teacher(x), len(index), self.fabric)
        features = self.cache.read(ranks.part(index, self.fabric)) if self.cache else None
        if features is None:
            features = self.teacher.features(x)
        features = ranks.gather_rows(features, len(index), self.fabric)
        if self.cache:
            self.cache.write(index, features)  # if it has not been read there
        return self.teacher.output(features)

    def prepare_teacher(self, root: str | Path | None, gigabytes: float, held: ExitStack) -> None:
        """Let the teacher take its form, and keep what it says under `root`, if given, until `held` is closed."""
        assert self.teacher is not None
        about, split = self.about, self.data.train
        if root and self.teacher.maps:
            warnings.warn("feature maps are not cached: the teacher is asked at every step", stacklevel=2)
            root = None
        if root:
            key = {
                "teacher": about["teacher"]["fingerprint"],
                "precision": about["precision"],
                "exact": about["teacher"]["exact"],
                "hardware": hardware.describe(self.fabric.device),
                "data": about["data"]["fingerprint"],
                "normalisation": [about["data"]["mean"], about["data"]["std"]],
                "seed": self.seed,
                "views": self.method.views,
                "padding": split.padding,
                "flip": self.recipe.flip,
                "torch": torch.__version__,
            }
            shape = (len(split), self.method.views, self.teacher.model.feature_width)
            kind = self.teacher.kind
            self.cache = TeacherCache(root, key, shape, gigabytes, kind, writes=self.fabric.is_global_zero)
            held.callback(self.cache.close)
        chosen = self.cache.form() if self.cache else None
        if chosen is None:
            self.teacher.choose()
            chosen = {"form": self.teacher.form, "logits_error": self.teacher.error}
            if self.cache:
                self.cache.keep_form(chosen)
        about["teacher"].update(chosen)

    def check_finite(self, batches: Sequence[Tensor]) -> None:
        """Raises FloatingPointError where a loss of this epoch is not finite, or a weight after its last step:
        gradients can be bad where the loss is not. batches: as `Recorder.check_finite` takes them."""
        self.books.check_finite(batches)
        for name, weight in [*self.student.named_parameters(), *self.method.named_parameters()]:
            if not weight.isfinite().all():
                where = self.books.place(self.books.step, batches[self.books.step - 1].tolist(), batches)
                where += ", and so may precision 32-true" * (self.about["precision"] != "32-true")
                raise FloatingPointError(f"the gradient of the loss is not finite, by the weight {name}, {where}")

    def end_epoch(self) -> None:
        """Test the student, and close the books of the epoch."""
        started = time.perf_counter()
        ranks.share_buffers(self.student, self.fabric)
        output = predict(self.student, self.data, fabric=self.fabric)
        scores = {f"test_{name}": value for name, value in output.scores()._asdict().items()}
        epsilon = getattr(self.method, "epsilon", None)
        seconds = time.perf_counter() - started
        self.books.end_epoch(self.recipe.lr_at(self.books.epoch), epsilon, scores, seconds)

    def save(self, status: str) -> Run:
        """The record so far, written to the run folder if there is one, with a checkpoint until it is finished."""
        books, data = self.books, self.data
        cpu = {name: value.detach().cpu() for name, value in self.student.state_dict().items()}
        heads = {name: value.detach().cpu() for name, value in self.method.state_dict().items()}
        truth = data.train.difficulty
        run = Run(
            settings={**self.about, "status": status, "fingerprint": runs.fingerprint(cpu)},
            history=pd.DataFrame(books.history or {"epoch": []}),
            timing=pd.DataFrame(books.timing, columns=["epoch", "seconds", "evaluation_seconds"]),
            student_state=cpu,
            method_state=heads,
            cross_entropy=books.cross_entropy.cpu().numpy(),
            difficulty=books.difficulty.cpu().numpy(),
            labels=data.train.labels.cpu().numpy(),
            ground_truth=None if truth is None else truth.half().cpu().numpy(),
            path=self.folder,
        )
        if books.history and status != "running":
            run.gallery = recording.gallery(data, run.difficulty[len(books.history) - 1])
            run.embedding = recording.embedding(self.student, predict(self.student, data, fabric=self.fabric))
        if self.folder:
            if status != "finished":
                self.save_checkpoint()
            run.save(self.folder)
            if status == "finished":
                resuming.remove_checkpoints(self.folder)
        return run

    def save_checkpoint(self) -> None:
        """Write down where the training stands. Raises OSError where that can't be done, leaving the last one."""
        assert self.folder is not None
        started = time.monotonic()
        resuming.write_checkpoint(self.folder, self.state())
        now = time.monotonic()
        self.save_at = now + max(SECONDS_BETWEEN_SAVES, (now - started) / SHARE_OF_SAVING)

    def state(self) -> dict[str, Any]:
        """All that `resume` needs to go on from here."""
        return {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "books": vars(self.books),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises ValueError where it is not one of this training."""
        try:
            runs.load_weights(self.student, state["student"], "student")
            runs.load_weights(cast(nn.Module, self.method), state["method"], "heads of the method")
            self.optimizer.load_state_dict(state["optimizer"])
            books = Recorder(**state["books"])
        except Exception as error:  # whoever made the file decides what goes wrong
            what = one_line(error)
            raise ValueError(f"the checkpoint in '{self.folder}' can't be used: {what}; overwrite the run") from error
        self.books = books.to(self.fabric.device)


class Interrupt:
    requested = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Within the block the first Ctrl-C only sets `requested`; the second raises KeyboardInterrupt as usual."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield interrupt
        return

    def request(number: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


def _check(
    student: Classifier, teacher: Classifier | None, data: Dataset, method: Method, recipe: Recipe, seed: int,
    devices: int, nodes: int,
) -> None:  # fmt: skip
    """Everything that can be known to go wrong before the first step."""
    if not (isinstance(seed, int) and 0 <= seed < 2**31):
        raise ValueError(f"seed must be a whole number from 0 to {2**31 - 1}, got {seed}")
    if method.uses_teacher and teacher is None:
        raise ValueError(f"{getattr(method, 'title', type(method).__name__)} needs a teacher")
    if teacher is student:
        raise ValueError("the teacher is the student itself: it has to be another network, or a copy")
    height, width = data.size
    if method.views > 1 and height != width:
        raise ValueError(f"rotated views need square images, {data.name} has {height}×{width}: use views=1")
    for what, count in (("devices", devices), ("nodes", nodes)):
        if not (isinstance(count, int) and count >= 1):
            raise ValueError(f"{what} must be a whole number, at least 1, got {count}")
    processes = devices * nodes
    smallest = len(data.train) // views.steps(len(data.train), recipe.batch_size) // processes
    if smallest < 1 or len(data.test) < processes:
        raise ValueError(f"{processes} processes are more than a batch, or the test set of {data.name}, has images for")
    if smallest == 1 and has_batchnorm(student):
        whose = f" for one of {processes} processes" * (processes > 1)
        batch = f"batch_size {recipe.batch_size} leaves a batch of one image{whose}"
        raise ValueError(f"{batch}: BatchNorm needs 2 at least")
    for who, model in (("student", student), ("teacher", teacher if method.uses_teacher else None)):
        if model is None:
            continue
        if model.num_classes != data.num_classes:
            raise ValueError(f"the {who} knows {model.num_classes} classes, {data.name} has {data.num_classes}")
        _try(model, who, data)


def same_folder(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to one folder."""
    return Path(one).resolve() == Path(other).resolve()


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a layer of it normalises by its batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@torch.no_grad()
def _try(model: Classifier, who: str, data: Dataset) -> None:
    """One image through the network, so that a wrong number of channels is found before anything starts."""
    was_training = model.training
    device = next(model.parameters()).device
    try:
        model.eval()(torch.zeros(1, data.channels, *data.size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:  # timm asserts sizes, the wrapper raises ValueError
        shape = "×".join(map(str, (data.channels, *data.size)))
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the {who} can't take images of {shape} pixels from {data.name}: {reason}") from error
    finally:
        model.train(was_training)
