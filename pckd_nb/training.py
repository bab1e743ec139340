"""Training: one loop for every method, on the device that Lightning Fabric finds."""

import ctypes
import pickle
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import recording, runs, views
from .cache import TeacherCache
from .datasets import Dataset
from .evaluation import make_fabric, pixel_statistics, predict
from .frozen import FrozenTeacher
from .methods import Batch, Supervised, Terms, resolve
from .models import Classifier, FeatureMaps, Output, WrappedClassifier, count_flops
from .recipes import Recipe, get_recipe
from .recording import Recorder
from .runs import Run

CHECKPOINT = "checkpoint.pt"
SECONDS_BETWEEN_SAVES = 10
# By benchmarks/report.md compiling WRN-16-2 (6e8 FLOPs an image) pays back after some 1e14; resnet20 (2.4e8) gains
# nothing that is larger than the noise.
FLOPS_WORTH_COMPILING, RUN_WORTH_COMPILING = 4e8, 1e15


def fit(model: Classifier, data: Dataset, recipe: str | Recipe = "classroom", **options: Any) -> Run:
    """Train `model` on labels alone, as a teacher or as the baseline. Options and errors: see `distill`."""
    return distill(model, None, data, Supervised(), recipe, **options)


def distill(
    student: Classifier,
    teacher: Classifier | Run | None,
    data: Dataset,
    method: nn.Module,
    recipe: str | Recipe = "classroom",
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    accelerator: str = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
    teacher_cache: str | Path | None = None,
    teacher_cache_gb: float = 20,
    progress: bool = True,
) -> Run:
    """Train `student` in place, with the help of a frozen `teacher`, and return the record of it.

    teacher: a network, the run of one, or None for a method that uses none.
    method: settings its caller left open come from the recipe, then the data set, then the published values; it is
    copied, not changed. seed: order and crops of the images, and the start of the method's heads.
    out: the run folder; None keeps the run in memory. resume: go on with the run there, or start where there is none.
    accelerator, precision: Lightning Fabric's names; "auto" finds the device, and takes bf16-mixed where the hardware
    computes in bfloat16, else 32-true. In bf16-mixed the teacher takes the cheapest form within 2 %, see `frozen`.
    compile: run the student through torch.compile; "auto" does so where that was measured to pay back within the run.
    teacher_cache: a folder that keeps the teacher's features for other trials with the same teacher, data, seed and
    augmentation, at most teacher_cache_gb gigabytes (10⁹ bytes) of them.
    A method that compares feature maps gets them by hooks: then the student runs uncompiled and nothing is cached.
    The first Ctrl-C (or kernel interrupt) finishes the step, saves, and returns the run so far; a second stops at once.
    Raises ValueError for settings that do not fit together, FloatingPointError for a loss that is not finite,
    FileExistsError and others as `runs.prepare`.
    """
    recipe = get_recipe(recipe).for_network(student.name)
    method, settings = resolve(method, recipe.method_settings(), {"views": data.default_views})
    folder = None if out is None else runs.prepare(out, resume=resume, overwrite=overwrite)
    teacher_run = teacher if isinstance(teacher, Run) else None
    teacher = teacher_run.model() if teacher_run else teacher
    _check(student, teacher, data, method, recipe, seed)

    if teacher_run and (learned := teacher_run.settings["data"])["classes"] != list(data.classes):
        raise ValueError(f"the teacher learned other categories, of {learned['name']}, than {data.name} has")

    fabric, precision = make_fabric(accelerator, precision)
    with torch.random.fork_rng():  # leave the caller's random numbers alone
        torch.manual_seed(seed)
        needs_maps = getattr(method, "needs_maps", False)
        example = [torch.zeros(1, data.channels, *data.size)] if needs_maps else []
        method.bind(student, teacher, *example)
        for term, reason in getattr(method, "left_out", {}).items():
            warnings.warn(f"{term} is left out: {reason}", stacklevel=2)
        teacher = teacher if method.uses_teacher else None
        about = recording.describe(student, teacher, data, method, settings, recipe, seed, fabric.device, precision)
        rows = recipe.epochs * len(data.train) * method.views
        about["compile"] = compiles(compile, student, rows, data.train.shape, fabric.device, needs_maps)
        if teacher_run and teacher:
            about["teacher"]["test_top1"] = teacher_run.accuracy
            if teacher_run.path and folder:
                about["teacher"]["run"] = recording.relative_path(teacher_run.path, folder)
        if resume and folder and (folder / "run.json").exists():
            runs.check_same(folder, about)
            if runs.read_settings(folder)["status"] == "finished":
                run = runs.load_run(folder)
                runs.load_weights(student, run.student_state, str(folder))
                return run
        trainer = Trainer(student, teacher, data, method, recipe, seed, fabric, folder, about)
        if teacher:
            trainer.prepare_teacher(teacher_cache, teacher_cache_gb)
        if resume and folder and (folder / CHECKPOINT).exists():
            trainer.resume()
        elif folder:
            runs.begin(folder, about)
        try:
            return trainer.train(progress)
        except BaseException:
            if folder and not (folder / CHECKPOINT).exists():
                runs.clear(folder)  # nothing to go on with: leave nothing half-written
            raise


class Trainer:
    """The loop: `train` walks through epochs and steps, `step` is one step, `save` and `resume` bridge a restart."""

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier | None,
        data: Dataset,
        method: nn.Module,
        recipe: Recipe,
        seed: int,
        fabric: Fabric,
        folder: Path | None,
        about: dict[str, Any],
    ):
        if fabric.device.type == "cpu":
            keep_freed_memory()
        self.fabric, self.recipe, self.seed, self.folder, self.about = fabric, recipe, seed, folder, about
        self.data = data.to(fabric.device)
        self.mean, self.std = pixel_statistics(self.data, fabric.device)
        self.method = method.to(fabric.device)
        self.student = student.to(fabric.device, memory_format=torch.channels_last)
        self.forward = compiled(self.student) if about["compile"] else self.student
        needs_maps = getattr(method, "needs_maps", False)
        if needs_maps:
            maps, plain = FeatureMaps(self.student, torch.zeros(1, data.channels, *data.size)), self.forward
            self.forward = lambda x: maps(plain, x)
        how = self.data, method.views, fabric, about["precision"], needs_maps
        self.teacher = teacher and FrozenTeacher(teacher, *how)
        self.cache: TeacherCache | None = None
        self.optimizer = torch.optim.SGD(
            [*self.student.parameters(), *self.method.parameters()],
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.books = Recorder.empty(recipe.epochs, len(data.train.labels), fabric.device)

    def train(self, show_progress: bool = True) -> Run:
        """Do what is left of the epochs, saving on the way; on Ctrl-C stop after the step."""
        books, epochs, count = self.books, self.recipe.epochs, len(self.data.train.labels)
        steps = views.steps(count, self.recipe.batch_size)
        title = f"{self.about['method']['title']} {self.about['model']['name'] or 'network'}"
        done = (books.epoch - 1) * steps + books.step
        bar = tqdm(total=epochs * steps, initial=done, desc=title, unit="step", disable=not show_progress)
        saved = time.monotonic()
        with bar, interruptible() as interrupt:
            while books.epoch <= epochs and not interrupt.requested:
                self.student.train()
                self.method.train()
                for group in self.optimizer.param_groups:
                    group["lr"] = self.recipe.lr_at(books.epoch)
                started = time.perf_counter()
                if self.cache:
                    self.cache.begin(books.epoch)
                batches = views.batches(count, self.recipe.batch_size, self.seed, books.epoch)[books.step :]
                stored = self.data.train.read(batches, seed=self.seed, epoch=books.epoch)
                for index, images in zip(batches, stored, strict=True):
                    index = index.to(self.fabric.device)
                    correct, terms = self.step(images, index, books.epoch)
                    books.note(index, correct, terms)
                    bar.update()
                    if interrupt.requested:
                        break
                books.check_finite()
                books.seconds += time.perf_counter() - started
                if self.cache:
                    self.cache.end()
                if books.step == steps:
                    self.end_epoch()
                    bar.set_postfix_str(f"epoch {len(books.history)}, test {books.history[-1]['test_top1']:.1f} %")
                if self.folder and books.epoch <= epochs and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    self.save("running")
                    saved = time.monotonic()
        return self.save("finished" if books.epoch > epochs else "interrupted")

    def step(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Terms]:
        """One step of gradient descent on the training `images` at `index`; also says which it classified right."""
        labels = self.data.train.labels[index]
        x = self.inputs(images, index, epoch)
        teacher_output = self.ask_teacher(x, index) if self.teacher else None
        with self.fabric.autocast():  # opened once a step: held open, it goes on using stale copies of the weights
            student_output = self.forward(x).float()
        terms = self.method(student_output, teacher_output, Batch(labels, index), epoch)

        self.optimizer.zero_grad()
        self.fabric.backward(terms.total)
        self.optimizer.step()
        return student_output.logits[: len(labels)].argmax(1) == labels, terms

    def inputs(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Network input: all views of the stored `images`, augmented as those at `index` are in this epoch."""
        images = views.augment(images, self.seed, epoch, index, self.data.train.padding, self.recipe.flip)
        return views.rotate(views.normalise(images, self.mean, self.std), self.method.views)

    def ask_teacher(self, x: Tensor, index: Tensor) -> Output:
        """What the teacher says of network input x, the views of the images at `index`; or said in another trial."""
        if self.teacher.maps:
            return self.teacher(x)
        features = self.cache.read(index) if self.cache else None
        if features is None:
            features = self.teacher.features(x)
            if self.cache:
                self.cache.write(index, features)
        return self.teacher.output(features)

    def prepare_teacher(self, root: str | Path | None, gigabytes: float) -> None:
        """Let the teacher take its form, and keep what it says under `root`, if given."""
        about, split = self.about, self.data.train
        if root and self.teacher.maps:
            warnings.warn("feature maps are not cached: the teacher is asked at every step", stacklevel=2)
            root = None
        if root:
            key = {
                "teacher": about["teacher"]["fingerprint"],
                "precision": about["precision"],
                "hardware": about["hardware"],
                "data": about["data"]["fingerprint"],
                "normalisation": [about["data"]["mean"], about["data"]["std"]],
                "seed": self.seed,
                "views": self.method.views,
                "padding": split.padding,
                "flip": self.recipe.flip,
                "torch": torch.__version__,
            }
            shape = (len(split), self.method.views, self.teacher.model.feature_width)
            self.cache = TeacherCache(root, key, shape, gigabytes)
        chosen = self.cache.form() if self.cache else None
        if chosen is None:
            self.teacher.choose()
            chosen = {"form": self.teacher.form, "logits_error": self.teacher.error}
            if self.cache:
                self.cache.keep_form(chosen)
        about["teacher"].update(chosen)

    def end_epoch(self) -> None:
        started = time.perf_counter()
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
                self.folder.mkdir(parents=True, exist_ok=True)
                runs.write(self.folder / CHECKPOINT, lambda file: torch.save(self.state(), file))
            run.save(self.folder)
            if status == "finished":
                (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return run

    def state(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "books": vars(self.books),
            "random": torch.get_rng_state(),
        }

    def resume(self) -> None:
        """Go on from the folder's checkpoint. Raises ValueError where it can't be read."""
        try:
            state = torch.load(self.folder / CHECKPOINT, map_location=self.fabric.device, weights_only=True)
            self.student.load_state_dict(state["student"])
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.books = Recorder(**state["books"])
            torch.set_rng_state(state["random"].cpu())
        except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            what = str(error).splitlines()[0]
            raise ValueError(f"'{self.folder / CHECKPOINT}' can't be read: {what}; overwrite the run") from error


class Interrupt:
    requested = False


def keep_freed_memory() -> None:
    """Let the C library keep memory that tensors free. By default glibc gives large pieces back to the system, which
    has to map and clear them again at every step. Other C libraries are left alone."""
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def compiles(
    wanted: bool | str, student: Classifier, rows: int, shape: tuple[int, int, int], device: torch.device,
    needs_maps: bool = False,
) -> bool:  # fmt: skip
    """Whether the student is to be compiled. rows: images it sees in the whole run, views counted, of this shape.
    needs_maps: its feature maps are taken by hooks, which compiled code need not run, so it is not.

    "auto" decides by the work there is, so that the same settings always give the same bits; where there is no working
    compiler it warns and declines. Raises ValueError for anything but True, False and "auto".
    """
    if wanted not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {wanted!r}")
    if needs_maps:
        if wanted is True:
            warnings.warn("the method takes feature maps by hooks: the student runs uncompiled", stacklevel=2)
        return False
    if wanted == "auto" and (isinstance(student, WrappedClassifier) or device.type != "cpu"):
        wanted = False  # not measured
    if wanted == "auto":
        flops = 3 * count_flops(student, shape)  # forward and backward
        wanted = flops > FLOPS_WORTH_COMPILING and rows * flops > RUN_WORTH_COMPILING
    if not wanted:
        return False
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # no compiler, or none that works: whatever it raises
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(f"torch.compile does not work here ({reason}): the student runs uncompiled", stacklevel=2)
        return False
    return True


def compiled(student: Classifier) -> Callable[[Tensor], Output]:
    """The student's forward pass with its features compiled; the last layer stays outside, its weight is an output."""
    features = torch.compile(student.features, dynamic=False)
    return lambda x: student.output(features(x))


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Within the block the first Ctrl-C only sets `requested`; the second raises KeyboardInterrupt as usual."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield interrupt
        return

    def request(number, frame):
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


def _check(
    student: Classifier, teacher: Classifier | None, data: Dataset, method: nn.Module, recipe: Recipe, seed: int
) -> None:
    """Everything that can be known to go wrong before the first step."""
    if not (isinstance(seed, int) and 0 <= seed < 2**31):
        raise ValueError(f"seed must be a whole number from 0 to {2**31 - 1}, got {seed}")
    if method.uses_teacher and teacher is None:
        raise ValueError(f"{getattr(method, 'title', type(method).__name__)} needs a teacher")
    height, width = data.size
    if method.views > 1 and height != width:
        raise ValueError(f"rotated views need square images, {data.name} has {height}×{width}: use views=1")
    smallest = len(data.train) // views.steps(len(data.train), recipe.batch_size)
    if smallest == 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules()):
        raise ValueError(f"batch_size {recipe.batch_size} leaves a batch of one image: BatchNorm needs 2 at least")
    for who, model in (("student", student), ("teacher", teacher if method.uses_teacher else None)):
        if model is None:
            continue
        if model.num_classes != data.num_classes:
            raise ValueError(f"the {who} knows {model.num_classes} classes, {data.name} has {data.num_classes}")
        _try(model, who, data)


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
