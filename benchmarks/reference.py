"""PCKD as research code is often written: in float32, with images loaded one by one. pckd_nb is compared with it.

Rows are in the order of the samples: image 0 in all its rotations, then image 1, and so on. Networks and objective are
those of pckd_nb. A test checks that both compute the same loss.
"""

import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms

from pckd_nb.data import Dataset, Split
from pckd_nb.methods import PCKD
from pckd_nb.models import Classifier, Output
from pckd_nb.recipes import Recipe

WORKERS = 2
VIEWS = 4


class PilImages(torch.utils.data.Dataset):
    """A data set of single augmented and normalised images, like the CIFAR classes of torchvision."""

    def __init__(self, split: Split, mean: tuple[float, ...], std: tuple[float, ...]):
        self.pixels = split.images.cpu().permute(0, 2, 3, 1).numpy().copy()
        self.labels = split.labels.tolist()
        size = self.pixels.shape[1:3]
        self.transform = transforms.Compose(
            [transforms.RandomCrop(size, padding=4), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def make_loader(data: Dataset, batch_size: int, workers: int = WORKERS) -> DataLoader:
    """Return a loader of shuffled batches of images, (B, C, H, W), and labels, (B,).

    It has one very long epoch, so that the start of an epoch does not count.
    """
    assert isinstance(data.train, Split)  # in memory
    images = PilImages(data.train, data.mean, data.std)
    sampler = RandomSampler(images, num_samples=1_000_000 * len(images))
    return DataLoader(images, batch_size, sampler=sampler, num_workers=workers)


def four_views(images: Tensor) -> Tensor:
    """Return the four rotations of images (B, C, H, W) as (4·B, C, H, W), in the order of the samples."""
    stack = torch.stack([torch.rot90(images, turns, (2, 3)) for turns in range(VIEWS)], dim=1)
    return stack.flatten(0, 1)


def preview_weights(cross_entropy: Tensor, threshold: float) -> Tensor:
    """Return the preview weight of every sample, (B,)."""
    mean = cross_entropy.mean().item()
    weights = []
    for value in cross_entropy:
        difficulty = value.item() / mean
        weights.append(1.0 if difficulty <= threshold else math.exp(-(difficulty**2)))
    return torch.tensor(weights, device=cross_entropy.device)


def contrast(
    u_s: Tensor, u_t: Tensor, labels: Tensor, temperature: float = 4.0, base_temperature: float = 0.07
) -> Tensor:
    """Return L_CC of every row, (N,), from scores (N, C). It computes the whole similarity matrix of 2N × 2N values."""
    scores = torch.cat([u_s, u_t], dim=0)
    all_labels = torch.cat([labels, labels])
    same_label = torch.eq(all_labels.view(-1, 1), all_labels.view(1, -1)).float()
    not_self = 1 - torch.eye(len(all_labels), device=all_labels.device)
    positive = same_label * not_self

    similarity = torch.matmul(scores, scores.T) / temperature
    similarity = similarity - similarity.max(dim=1, keepdim=True).values.detach()
    exponential = torch.exp(similarity) * not_self
    log_probability = similarity - torch.log(exponential.sum(1, keepdim=True))
    mean_positive = (positive * log_probability).sum(1) / positive.sum(1)
    loss = -(temperature / base_temperature) * mean_positive
    return loss.view(2, -1).sum(0)


class PlainLoop:
    """A plain training loop.

    Parameters
    ----------
    student, teacher : Classifier
        Networks that only this loop uses.
    data : Dataset
    method : PCKD
        Gives the loss weights, temperature, ε, and initial parameters of the heads. It must be bound to the networks.
    recipe : Recipe
        Learning rate, momentum, weight decay and batch size.
    device : torch.device
    workers : int
        Number of processes that load images.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        data: Dataset,
        method: PCKD,
        recipe: Recipe,
        device: torch.device,
        workers: int = WORKERS,
    ):
        self.device, self.method = device, method
        self.student, self.teacher = student.to(device), teacher.to(device).eval()
        student_dim, teacher_dim = student.feature_width, teacher.feature_width
        hidden = 16 * teacher_dim
        projector = nn.Sequential(
            nn.Linear(student_dim, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, teacher_dim),
        )
        embed_student, embed_teacher = nn.Linear(student_dim, student_dim), nn.Linear(student_dim, teacher_dim)
        heads = {"projector": projector, "embed_student": embed_student, "embed_teacher": embed_teacher}
        self.heads = nn.ModuleDict(heads).to(device)
        self.heads.load_state_dict(method.state_dict())
        self.optimizer = torch.optim.SGD(
            [*self.student.parameters(), *self.heads.parameters()],
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            foreach=False,
            fused=False,
        )
        self.loader = make_loader(data, recipe.batch_size, workers)
        self.batches = iter(self.loader)
        self.student.train()
        self.heads.train()
        self.losses: list[float] = []
        self.correct: list[float] = []

    def settle(self) -> None:
        """Drop the batches that the workers made before the clock started."""
        for _ in range(self.loader.num_workers * (self.loader.prefetch_factor or 0)):
            next(self.batches)

    def loss(self, student: Output, teacher: Output, labels: Tensor, epoch: int) -> Tensor:
        """Return the objective, a scalar, of the rows of a batch and the labels of its B images."""
        m = self.method
        upright = student.logits[::VIEWS]
        cross_entropy = F.cross_entropy(upright, labels, reduction="none")
        v = preview_weights(cross_entropy.detach(), m.epsilon**epoch)

        log_p_s = F.log_softmax(upright / m.temperature, dim=1)
        p_t = F.softmax(teacher.logits[::VIEWS] / m.temperature, dim=1)
        kd = F.kl_div(log_p_s, p_t, reduction="none").sum(1) * m.temperature**2

        projected = F.normalize(self.heads["projector"](student.features), dim=1)
        fa = (2 - 2 * (projected * F.normalize(teacher.features, dim=1)).sum(1)).mean()

        loss = cross_entropy.mean() + m.beta_kd * (v * kd).mean() + m.beta_fa * fa
        same = student.centers.shape == teacher.centers.shape
        if same and student.bias is not None and teacher.bias is not None:
            student_centers = torch.cat([student.centers, student.bias.unsqueeze(1)], dim=1)
            teacher_centers = torch.cat([teacher.centers, teacher.bias.unsqueeze(1)], dim=1)
            loss = loss + m.beta_ca * F.mse_loss(student_centers, teacher_centers.detach())

        e_s = F.normalize(self.heads["embed_student"](student.features), dim=1)
        e_t = F.normalize(self.heads["embed_teacher"](student.features), dim=1)
        u_s, u_t = torch.matmul(e_s, student.centers.T), torch.matmul(e_t, teacher.centers.detach().T)
        cc = contrast(u_s, u_t, labels.repeat_interleave(VIEWS))
        return loss + m.beta_cc * (v.repeat_interleave(VIEWS) * cc).mean()

    def step(self, epoch: int = 1) -> None:
        """Load a batch, do one training step, and record loss and accuracy, as such code usually does."""
        images, labels = next(self.batches)
        images, labels = images.to(self.device), labels.to(self.device)
        x = four_views(images)
        with torch.no_grad():
            teacher = self.teacher(x)
        student = self.student(x)
        loss = self.loss(student, teacher, labels, epoch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.correct.append((student.logits[::VIEWS].argmax(1) == labels).float().mean().item())
