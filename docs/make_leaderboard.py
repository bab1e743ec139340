"""Write the tables of docs/leaderboard.md from data/paper/published_results.csv, and draw its pictures.

Run it with `python docs/make_leaderboard.py`.
"""

import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from make_results import fill, rows_of
from PIL import Image

from pckd_nb.catalogue import PAIRS
from pckd_nb.figures import leaderboard as draw_leaderboard
from pckd_nb.leaderboard import MARKS, compare, find_numbers, list_pairs, load_published, measured_numbers, range_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "leaderboard.md"
PICTURES = ROOT / "docs" / "images"
RUNS = ROOT / "data" / "runs"
CIFAR_PAIRS = PAIRS[:-1]  # the last pair is for ImageNet
WIDTH = 800  # pixels of a picture
COLORS = 48  # of a picture. More colours make the file larger, not better.


def tables() -> dict[str, str]:
    """Return the generated parts of the page in Markdown, each with the name that marks its place in the page."""
    published = load_published()
    everything = pd.concat([published, measured_numbers(RUNS)], ignore_index=True)
    numbers = {pair: find_numbers(pair, published=everything) for pair in CIFAR_PAIRS}
    addresses = source_addresses(pd.concat(numbers.values()))
    return {
        "counts": counts(published),
        "marks": "\n".join(f"- **{mark}**: {text}." for mark, text in MARKS.items()),
        "ours": ours(pd.concat(numbers.values())),
        "pairs": "\n\n".join(pair_section(pair, rows, addresses) for pair, rows in numbers.items()),
        "sources": sources_table(pd.concat(numbers.values()), addresses),
        "links": "\n".join(f"[s{number}]: {address}" for address, number in addresses.items()),
    }


def counts(published: pd.DataFrame) -> str:
    """Return sentences that count methods with several numbers."""
    pairs = list_pairs(published)
    cells = published[(published["teacher"] != "") & (published["method"] != "student alone")]
    copies, tested, lower, teachers = 0, 0, 0, 0
    for _, cell in cells.groupby(["dataset", "teacher", "student", "method"]):
        own, reproduced, copied = (
            set(cell.loc[cell["source_kind"] == kind, "top1"]) for kind in ("own", "reproduced", "copied")
        )
        teachers += cell["top1"].nunique() > 1 and cell["teacher_top1"].nunique() > 1
        copies += bool(own and copied - own - reproduced)
        tested += bool(own and reproduced)
        lower += bool(own and reproduced and max(reproduced) < max(own))
    return (
        f"The table behind this page has {len(published):,} numbers from {published['link'].nunique()} files and "
        "issues. "
        f"They belong to {pairs['methods'].sum()} combinations of a method and a pair of networks.\n\n"
        f"- **{pairs['differing'].sum()} of these {pairs['methods'].sum()} combinations have more than one number.**\n"
        f"- In {teachers} of these {pairs['differing'].sum()}, the numbers come from teachers of different accuracy.\n"
        f"- In {copies} combinations, a copy differs from everything that the authors or others measured.\n"
        f"- Only {tested} combinations have a number of the authors and a number of somebody else. In {lower} of them, "
        "the highest reproduced number is lower than the authors' highest number."
    )


def ours(numbers: pd.DataFrame) -> str:
    """Return a sentence about the runs of this package."""
    count = (numbers["source_kind"] == "ours").sum()
    if count:
        return f"The column *ours* has {count} results of our [recorded runs](../data/runs/README.md)."
    return (
        "None of our [recorded runs](../data/runs/README.md) is on CIFAR-100. So these tables have no number of this "
        "package."
    )


def source_addresses(numbers: pd.DataFrame) -> dict[str, int]:
    """Return the web addresses of all sources, each with its number in the links of the page."""
    return {address: number for number, address in enumerate(sorted(set(numbers["link"]) - {""}), 1)}


def short_name(source: str) -> str:
    """Return a short name of a source, such as "DKD issue 7" or "RepDistiller"."""
    if found := re.match(r"note on arXiv [\d.]+ \((\w+)\)", source):
        return f"note on {found[1]}"
    if found := re.match(r"([\w+-]+ issue \d+)", source):
        return found[1]
    if found := re.match(r"(\w+) released log", source):
        return f"{found[1]} log"
    return re.split(r" README| report| repository| benchmarks| 2021|,", source)[0].rpartition("/")[2]


def pair_section(pair: tuple[str, str], numbers: pd.DataFrame, addresses: dict[str, int]) -> str:
    """Return the heading, the picture and the table of one pair."""
    table = compare(numbers)
    name = " → ".join(pair).replace("_", r"\_")
    text = summary(numbers, table)
    alt = f"Dot plot of the published accuracies for {' → '.join(pair)}, one row per method. {text}"
    return f"## {name}\n\n{text}\n\n![{alt}](images/{picture_name(pair)})\n\n{pair_table(numbers, table, addresses)}"


def summary(numbers: pd.DataFrame, table: pd.DataFrame) -> str:
    """Return sentences with the number of methods and the widest range."""
    published = numbers[numbers["source_kind"] != "ours"].groupby("method")["top1"]
    low, high = published.min(), published.max()
    widest = (high - low).idxmax()
    differing = (published.nunique() > 1).sum()
    return (
        f"{len(table)} methods, {published.size().sum()} numbers. {differing} methods have more than one number. The "
        f"widest range is that of {widest}: {range_text(low[widest], high[widest])}."
    )


def picture_name(pair: tuple[str, str]) -> str:
    """Return the name of the picture of a pair."""
    return f"leaderboard_{'-'.join(pair)}.png"


def pair_table(numbers: pd.DataFrame, table: pd.DataFrame, addresses: dict[str, int]) -> str:
    """Return the table of one pair, with a link for the source of every number."""
    kinds = ["own", "reproduced", "copied", *(["ours"] if table["ours_count"].any() else [])]
    lines = [["method", "marks", *kinds, "gain", "student alone", "teacher"]]
    for _, row in table.iterrows():
        of_method = numbers[numbers["method"] == row["method"]]
        cells = [values(of_method[of_method["source_kind"] == kind], addresses) for kind in kinds]
        ranges = [range_text(row[f"{name}_low"], row[f"{name}_high"]) for name in ("gain", "alone", "teacher")]
        cells += ["" if text == "-" else text for text in ranges]
        lines.append([row["method"].replace("*", r"\*"), row["marks"], *cells])
    return rows_of(lines)


def values(numbers: pd.DataFrame, addresses: dict[str, int]) -> str:
    """Return the distinct values of some numbers, from high to low, each with links to its sources."""
    cells = []
    for top1, rows in numbers.sort_values("top1", ascending=False, kind="stable").groupby("top1", sort=False):
        links = [
            f"[{short_name(source)}][s{addresses[link]}]" if link else source
            for source, link in zip(rows["source"], rows["link"], strict=True)
        ]
        shown = f"{top1:.2f}" if round(top1, 2) == top1 else f"{top1:g}"
        cells.append(f"{shown} {', '.join(dict.fromkeys(links))}")
    return "; ".join(cells)


def sources_table(numbers: pd.DataFrame, addresses: dict[str, int]) -> str:
    """Return the table of all sources, with links to the paper and to the place where the numbers were seen."""
    lines = [["source", "year", "paper", "seen in", "numbers"]]
    published = numbers[numbers["link"] != ""]
    for source, rows in sorted(published.groupby("source"), key=lambda item: item[0].lower()):
        paper = re.search(r"arXiv (\d+\.\d+)", source)
        year = rows["year"].iloc[0]
        places = dict(zip(rows["checked_in"], rows["link"], strict=True))
        links = [f"[{place_name(place)}][s{addresses[link]}]" for place, link in places.items()]
        lines.append(
            [
                source.replace("*", r"\*"),
                "" if pd.isna(year) else str(year),
                f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else "",
                ", ".join(links),
                str(len(rows)),
            ]
        )
    return rows_of(lines)


def place_name(place: str) -> str:
    """Return a short name of the place where a number was seen: the repository, or the file if it is not a README."""
    if place.startswith("https://"):
        return place.removeprefix("https://github.com/")
    repository, _, file = place.partition("@")[0].partition(":")
    return (repository if file == "README.md" else file.rpartition("/")[2]).replace("_", r"\_")


def draw(pair: tuple[str, str], file: Path) -> None:
    """Draw the picture of one pair."""
    figure = draw_leaderboard(pair, runs=RUNS)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=WIDTH / figure.get_figwidth())
    plt.close(figure)
    with Image.open(buffer) as image:
        small = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    small.save(file, optimize=True)


def main() -> None:
    """Write the tables of docs/leaderboard.md, and draw its pictures."""
    PAGE.write_text(fill(PAGE.read_text("utf-8"), tables()), "utf-8")
    for pair in CIFAR_PAIRS:
        draw(pair, PICTURES / picture_name(pair))


if __name__ == "__main__":
    main()
