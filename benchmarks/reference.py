"""The peer to beat: PCKD as research code of this field is usually written. Plain, float32, NCHW, one image at a time.

Rows are sample-major here, as a stack of views gives them: image 0 turned four times, then image 1, …
The networks and the objective are those of pckd_nb; a test holds the two losses equal.
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
    """One augmented, normalised image after the other, as torchvision's CIFAR classes give them."""

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
    """Shuffled batches of (B, C, H, W) and (B,). One endless epoch: its start would weigh too much in a short one."""
    assert isinstance(data.train, Split)  # in memory
    images = PilImages(data.train, data.mean, data.std)
    endless = RandomSampler(images, num_samples=1_000_000 * len(images))
    return DataLoader(images, batch_size, sampler=endless, num_workers=workers)


def four_views(images: Tensor) -> Tensor:
    """The four rotations of (B, C, H, W) as (4·B, C, H, W), sample-major."""
    stack = torch.stack([torch.rot90(images, turns, (2, 3)) for turns in range(VIEWS)], dim=1)
    return stack.flatten(0, 1)


def preview_weights(cross_entropy: Tensor, threshold: float) -> Tensor:
    """v of every sample, (B,), one after the other."""
    mean = cross_entropy.mean().item()
    weights = []
    for value in cross_entropy:
        difficulty = value.item() / mean
        weights.append(1.0 if difficulty <= threshold else math.exp(-(difficulty**2)))
    return torch.tensor(weights, device=cross_entropy.device)


def contrast(
    u_s: Tensor, u_t: Tensor, labels: Tensor, temperature: float = 4.0, base_temperature: float = 0.07
) -> Tensor:
    """L_CC of every row, (N,), over the whole 2N×2N matrix with a mask of equal labels. u_s, u_t: (N, C)."""
    scores = torch.cat([u_s, u_t], dim=0)
    both = torch.cat([labels, labels])
    same_label = torch.eq(both.view(-1, 1), both.view(1, -1)).float()
    not_itself = 1 - torch.eye(len(both), device=both.device)
    positive = same_label * not_itself

    similarity = torch.matmul(scores, scores.T) / temperature
    similarity = similarity - similarity.max(dim=1, keepdim=True).values.detach()
    exponential = torch.exp(similarity) * not_itself
    log_probability = similarity - torch.log(exponential.sum(1, keepdim=True))
    mean_positive = (positive * log_probability).sum(1) / positive.sum(1)
    loss = -(temperature / base_temperature) * mean_positive
    return loss.view(2, -1).sum(0)


class PlainLoop:
    """Student, teacher, heads, data and optimizer of one training; `step` is one step of it.

    student, teacher: networks of this loop alone · method: where the objective's numbers come from, already bound, and
    the weights its heads start with · recipe: learning rate, momentum, weight decay, batch size.
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
        narrow, wide = student.feature_width, teacher.feature_width
        hidden = 16 * wide
        projector = nn.Sequential(
            nn.Linear(narrow, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, wide)
        )
        embed_student, embed_teacher = nn.Linear(narrow, narrow), nn.Linear(narrow, wide)
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
        """Throw away what the workers made while nobody asked: it would be free of charge."""
        for _ in range(self.loader.num_workers * (self.loader.prefetch_factor or 0)):
            next(self.batches)

    def loss(self, student: Output, teacher: Output, labels: Tensor, epoch: int) -> Tensor:
        """The objective, a scalar, of sample-major rows and the labels of their B images."""
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
        """Load a batch, and one step of gradient descent on it, with the running figures such code prints."""
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
