"""Write report.md: every figure with a sentence on what it shows, and the CSV files behind it."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_text
from ..hub.markup import markdown
from ..training.run_directory import WRITTEN_HERE
from .attention import COLLAPSED_NMI, UNIFORM_ENTROPY, collapse
from .options import ANALYSES
from .pictures import AttentionMaps, Reconstructions, TokenPlane

Row = dict[str, Any]


@dataclass
class Section:
    """What an analysis gives.

    Args:
        figures: files and what they show.
        tables: CSV files.
        sentences: what can be read from it.
        refused: models or figures that it does not allow, with the reason.
    """

    figures: list[tuple[str, str]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def write_csv(file: Path, rows: Sequence[Row]) -> None:
    """Write rows with a header; numbers with 6 digits, missing ones empty."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return value


def write_report(file: Path, sections: dict[str, Section], facts: Iterable[str]) -> None:
    """Write the report.

    Args:
        file: report.md; figures and tables are beside it.
        sections: by analysis.
        facts: lines about models and images, shown first.
    """
    lines = ["# What was learned", "", *(f"- {markdown(fact)}" for fact in facts)]
    for name, section in sections.items():
        title = ANALYSES[name]
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += [f"![{caption}]({figure})\n" for figure, caption in section.figures]
        lines += [f"- {sentence}" for sentence in section.sentences]
        lines += [f"- Refused: {markdown(reason)}" for reason in section.refused]
        if section.tables:
            lines += ["", "Numbers: " + ", ".join(f"[{table}]({table})" for table in section.tables)]
    write_text(file, "\n".join([*lines, "", f"<!-- {WRITTEN_HERE} -->"]) + "\n")


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["model"], []).append(row)
    return groups


def attention_sentences(distances: Sequence[Row], nmis: Sequence[Row]) -> list[str]:
    """Return the range of distance and NMI of each model, and whether its attention has collapsed."""
    nmi_of = _by_model([row for row in nmis if row["head"] == "mean"])
    sentences = []
    for name, rows in _by_model([row for row in distances if row["head"] == "mean"]).items():
        nmi = [row["nmi"] for row in nmi_of[name]]
        words = [collapse(row["nmi"], row["entropy"]) for row in nmi_of[name]]
        low, high = min(row["distance"] for row in rows), max(row["distance"] for row in rows)
        uniform = {round(row["uniform_distance"], 1) for row in rows}
        within = " within its windows" if any(row["windows"] > 1 for row in rows) else ""
        sentences.append(
            f"**{markdown(name)}**: distance {low:.1f} to {high:.1f} px (uniform attention{within}: "
            f"{_range(uniform)} px), NMI {min(nmi):.4f} to {max(nmi):.4f}. {_collapse_sentence(words)}"
        )
    sentences.append(
        f"A layer counts as collapsed where the mean NMI is below {COLLAPSED_NMI:g}: its maps hardly depend on the "
        f"query. Where their entropy is {UNIFORM_ENTROPY:.0%} of uniform attention's or more, they hardly depend on "
        "the key either, and a long distance is that of looking at everything alike, no sign of attention to global "
        "structure. Attention to CLS is left out (`prefix_share`); distances are pixels of each model's own input."
    )
    return sentences


def _range(values: set[float]) -> str:
    return f"{min(values):.1f}" if len(values) == 1 else f"{min(values):.1f} to {max(values):.1f}"


def _collapse_sentence(words: Sequence[str]) -> str:
    uniform, independent, count = words.count("uniform"), words.count("query-independent"), len(words)
    if uniform + independent == 0:
        return "No layer has collapsed."
    chosen = [str(layer) for layer, word in enumerate(words, 1) if word != "selective"]
    which = "in every layer" if len(chosen) == count else f"in {len(chosen)} of {count} layers ({', '.join(chosen)})"
    if uniform == 0:
        return f"Attention has **collapsed** {which}: all queries look at the same tokens."
    alike = "all of these" if independent == 0 else f"{uniform} of these"
    return f"Attention has **collapsed** {which}, and in {alike} it is close to uniform."


def fourier_sentences(rows: Sequence[Row]) -> list[str]:
    """Return the relative log amplitude at the highest frequency, of the first and last layer."""
    sentences = []
    for name, group in _by_model(rows).items():
        highest: dict[int, float] = {row["layer"]: row["relative_log_amplitude"] for row in group}
        values = list(highest.values())
        steps = [later - earlier for earlier, later in zip(values, values[1:], strict=False)]
        trend = "falls in every layer" if all(s < 0 for s in steps) else "does not fall in every layer"
        ends = f"{values[0]:.2f} at layer {min(highest)}, {values[-1]:.2f} at layer {max(highest)}"
        sentences.append(f"**{markdown(name)}**: {ends}; it {trend}.")
    sentences.append(
        "Values are of the highest frequency, less those of frequency 0 (the mean token): lower means smoother tokens, "
        "or a larger mean. Frequencies are in units of π per token, so of models with other patches they are others "
        "in the image (`cycles_per_pixel`)."
    )
    return sentences


def cka_sentences(rows: Sequence[Row]) -> list[str]:
    """Return CKA between the final outputs of all pairs of models."""
    final = [row for row in rows if row["layer"] == row["other_layer"] == "final"]
    names = list(_by_model(rows))
    pairs = [
        f"{markdown(row['model'])} and {markdown(row['other_model'])}: {row['cka']:.2f}"
        for row in final
        if names.index(row["model"]) < names.index(row["other_model"])
    ]
    between = f"Final outputs, {'; '.join(pairs)}." if pairs else "There is one model."
    return [
        f"{between} Linear CKA of the images' mean patch tokens with unbiased HSIC, which can fall slightly outside "
        "[0, 1]; a high value between a model and random weights says that both pass on the same simple statistics."
    ]


def rank_sentences(rows: Sequence[Row]) -> list[str]:
    """Return RankMe at the final output."""
    sentences = []
    for name, group in _by_model(rows).items():
        final = {row["features"]: row for row in group if row["layer"] == "final"}
        parts = [
            f"{row['rankme']:.1f} ({row['rankme_centered']:.1f} with the mean taken off) of at most "
            f"{min(row['dimension'], row['num_rows'])} for {features}"
            for features, row in final.items()
        ]
        sentences.append(f"**{markdown(name)}**: final output {', '.join(parts)}.")
    sentences.append(
        "RankMe is the exponential of the entropy of the singular values; it says how many directions the features "
        "use, not whether they are useful, and noise has full rank."
    )
    return sentences


def loss_share_sentences(rows: Sequence[Row], settings: str) -> list[str]:
    """Return the share of the tenth of the cells with the largest weights."""
    sentences = []
    for name, group in _by_model(rows).items():
        top = {row["loss_weighting"]: row for row in group if row["quantile"] == row["num_quantiles"]}
        least = next(row for row in group if row["quantile"] == 1)
        sentences.append(
            f"**{markdown(name)}**: the tenth of the masked cells with the largest weights (mean "
            f"{top['keypoint']['mean_weight']:.1f}, against {least['mean_weight']:.1f} in the lowest tenth) carries "
            f"{top['none']['share']:.0%} of the loss without weights and {top['keypoint']['share']:.0%} with them."
        )
    return [*sentences, f"Weights of Eq. 2: {settings}. Cells of equal weight share their loss equally."]


def tsne_sentences(planes: Sequence[TokenPlane]) -> list[str]:
    """Return the agreement of neighbors, before the reduction to two dimensions."""
    sentences = [
        f"**{markdown(plane.model)}**: the nearest token of another image is of the same class for "
        f"{plane.agreement[0]:.0%} of the tokens (chance {plane.agreement[1]:.0%}), in the features themselves."
        for plane in planes
        if plane.agreement is not None
    ]
    return [*sentences, "In a t-SNE only who is near whom means something; sizes of clusters and gaps do not."]


def pca_sentences(planes: Sequence[TokenPlane]) -> list[str]:
    """Return how self-attention changes the spread of the tokens."""
    sentences = [
        f"**{markdown(plane.model)}**, layer {plane.layer}: the tokens of an image differ by {plane.spreads[0]:.2f} of "
        f"their length before self-attention and by {plane.spreads[1]:.2f} after it."
        for plane in planes
        if plane.spreads is not None
    ]
    return [
        *sentences,
        "Before: what enters the self-attention module (behind its LayerNorm); after: what leaves it, the residual "
        "not added, in one plane fitted to both. Attention that has collapsed gives every token of an image the same "
        "output.",
    ]


def attention_map_sentences(maps: Sequence[AttentionMaps]) -> list[str]:
    """Return the largest attention on one key, in multiples of uniform attention."""
    peaks = [f"{markdown(part.model)} {float(part.maps.max()) * part.maps[0].size:.1f}" for part in maps]
    return [
        f"Largest attention of the marked token on one key, in multiples of uniform attention: {', '.join(peaks)}. "
        "Mean over the heads of the last layer; all maps share one scale, so flat maps look flat."
    ]


def reconstruction_sentences(parts: Sequence[Reconstructions], settings: str) -> list[str]:
    """Return the masked error on the images shown."""
    errors = [f"{markdown(part.model)} {float(part.errors.mean()):.3f}" for part in parts]
    return [
        f"Mean absolute error over the masked pixels of these images (normalized): {', '.join(errors)}. A few images "
        f"say nothing about the models; scores are `kamim reconstruct`'s. {settings}."
    ]


def keypoint_sentences(rows: Sequence[Row]) -> list[str]:
    """Return the weights of the image shown, at the paper's setting."""
    parts = [
        f"{row['detector'].upper()}: mean {row['mean_weight']:.1f}, largest {row['max_weight']:.1f}"
        for row in rows
        if row["temperature"] == 0.25 and row["weight_patch_size"] == min(r["weight_patch_size"] for r in rows)
    ]
    return [
        f"Weights of this image at T 0.25 and the smallest cells, {'; '.join(parts)}. Of 15 images it has the "
        "median number of keypoints; others differ."
    ]
