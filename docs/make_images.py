"""Draw the README's pictures from the recorded runs: python docs/make_images.py"""

from pathlib import Path

import pckd_nb as pckd

ROOT = Path(__file__).parents[1]


def main() -> None:
    methods = ("teacher", "supervised", "kd", "pckd")
    seeds = [
        [pckd.load_run(path / method) for method in methods] for path in sorted(ROOT.glob("data/runs/shapes100/seed*"))
    ]
    figures = {
        "accuracy": pckd.figures.accuracy([run for runs in zip(*seeds, strict=True) for run in runs]),
        "difficulty": pckd.figures.difficulty_gallery(seeds[0][-1], rows=3),
    }
    for name, figure in figures.items():
        # No version or date inside: the same runs give the same bytes.
        figure.savefig(ROOT / "docs" / "images" / f"{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
