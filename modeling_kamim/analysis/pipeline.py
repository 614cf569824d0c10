"""Run all analyses: numbers in one pass over the images, then pictures of single images."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ..objective.density import cell_density
from ..objective.keypoints import KeypointDetector, keypoint_image
from ..objective.sources.table import PAPER_DETECTORS
from ..training.figures import channels_note, save_figure, shown_in_rgb
from . import findings, plots
from .encoders import AnalysisRefused, Encoder
from .findings import Section, write_csv
from .gallery import AnalysisImages
from .keypoint_view import CELL_SIZES, TEMPERATURES, amount, keypoint_positions, weight_grid
from .measures import (
    AttentionMeasure,
    CkaMeasure,
    FourierMeasure,
    KeypointSettings,
    LossShareMeasure,
    RankMeasure,
    Reconstructor,
)
from .options import ANALYSES, AnalysisArguments
from .pictures import (
    MANY_IMAGES,
    NUM_MAPS,
    NUM_RECONSTRUCTIONS,
    pca_plane,
    query_maps,
    reconstruct,
    tsne_images,
    tsne_plane,
)

logger = logging.getLogger(__name__)
Row = dict[str, Any]
Part = TypeVar("Part")
NUM_CANDIDATES = 15
_OF_ENCODERS = {"attention": AttentionMeasure, "fourier": FourierMeasure, "rank": RankMeasure}


class AnalysisRun:
    """Analyses of several encoders on the same images.

    An analysis that an encoder does not allow is left out for it, and the reason is kept for the report.

    Args:
        args: of the command line.
        encoders: shown in every figure, in this order.
        references: from the name of an encoder to random weights of its architecture, drawn as a reference line; they
            may be among the encoders.
        images: to look at.
    """

    def __init__(
        self,
        args: AnalysisArguments,
        encoders: Sequence[Encoder],
        references: Mapping[str, Encoder],
        images: AnalysisImages,
    ):
        self.args, self.encoders, self.images = args, list(encoders), images
        self.references = {name: reference.name for name, reference in references.items()}
        self.everyone = list({encoder.name: encoder for encoder in (*encoders, *references.values())}.values())
        self.pretrained = [encoder for encoder in encoders if encoder.checkpoint is not None]
        self.output_dir = Path(args.output_dir)
        self.settings = KeypointSettings(encoders)
        self.sections = {name: Section() for name in ANALYSES if name in args.analyses}
        # two analyses need the decoder of a model
        self._reconstructor = cache(lambda encoder: Reconstructor(encoder, self.settings, args.seed))

    def run(self) -> dict[str, Section]:
        """Do all analyses, and write their figures and tables into the output directory."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        measures = self._measures()
        if measures:
            self._stream(measures)
            self._write_numbers(measures)
        pictures: dict[str, Callable[[Section], None]] = {
            "tsne": self._tsne,
            "pca": self._pca,
            "attention_maps": self._attention_maps,
            "reconstruction": self._reconstruction,
            "keypoints": self._keypoints,
        }
        chosen = [name for name in pictures if name in self.sections]
        for name in tqdm(chosen, desc="Pictures", unit="analysis", disable=not chosen):
            with self._refusing(self.sections[name]):
                pictures[name](self.sections[name])
        return self.sections

    @contextmanager
    def _refusing(self, section: Section, name: str = "") -> Iterator[None]:
        """Keep the reason of a refused analysis for the report, and go on."""
        try:
            yield
        except AnalysisRefused as refused:
            reason = f"{name}: {refused}" if name else str(refused)
            section.refused.append(reason)
            logger.warning("Refused: %s", reason)

    def _of_each(self, section: Section, encoders: Iterable[Encoder], part: Callable[[Encoder], Part]) -> list[Part]:
        """Return the parts of all encoders that allow the analysis; the others are refused."""
        parts = []
        for encoder in encoders:
            with self._refusing(section, encoder.name):
                parts.append(part(encoder))
        return parts

    # Numbers, over all images

    def _measures(self) -> dict[str, dict[str, Any]]:
        """Return the measures of the chosen analyses, by analysis and model; CKA has one for all models."""
        measures: dict[str, dict[str, Any]] = {
            name: {encoder.name: kind(encoder) for encoder in self.everyone}
            for name, kind in _OF_ENCODERS.items()
            if name in self.sections
        }
        if "cka" in self.sections:
            measures["cka"] = {"": CkaMeasure()}
        if "loss_share" in self.sections:
            section = self.sections["loss_share"]
            shares = self._of_each(section, self.pretrained, lambda e: LossShareMeasure(self._reconstructor(e)))
            measures["loss_share"] = {share.reconstructor.encoder.name: share for share in shares}
        return measures

    def _stream(self, measures: dict[str, dict[str, Any]]) -> None:
        """Feed the measures with all images; one that is refused is dropped."""

        def update(analysis: str, name: str, *batch: Any) -> None:
            if name in measures.get(analysis, {}):
                with self._refusing(self.sections[analysis], name):
                    measures[analysis][name].update(*batch)
                    return
                del measures[analysis][name]  # refused

        encoders = self.everyone if measures.keys() - {"loss_share"} else []
        with tqdm(total=len(self.images), desc="Images", unit="image") as bar:
            for first, images in self.images.batches(self.args.batch_size):
                outputs = {}
                for encoder in encoders:
                    output = encoder(images, attention=encoder.name in measures.get("attention", {}))
                    for analysis in _OF_ENCODERS:
                        update(analysis, encoder.name, output, len(images))
                    outputs[encoder.name] = output.without_attention()
                    del output  # its maps, before the next encoder makes its own
                update("cka", "", outputs)
                for encoder in self.pretrained:
                    update("loss_share", encoder.name, images, first)
                bar.update(len(images))

    def _write_numbers(self, measures: Mapping[str, Mapping[str, Any]]) -> None:
        self._write_attention(list(measures.get("attention", {}).values()))
        by_frequency, by_rank = (
            partial(draw, references=self.references) for draw in (plots.fourier_figure, plots.rank_figure)
        )
        loss_sentences = partial(findings.loss_share_sentences, settings=self.settings.describe())
        shown: dict[str, tuple[Callable[..., Figure], str, Callable[..., list[str]]]] = {
            "fourier": (by_frequency, "relative log amplitude by layer and frequency", findings.fourier_sentences),
            "cka": (plots.cka_figure, "CKA between layers and models", findings.cka_sentences),
            "rank": (by_rank, "effective rank by layer", findings.rank_sentences),
            "loss_share": (plots.loss_share_figure, "share of the masked loss by weight", loss_sentences),
        }
        for name in [name for name in shown if name in measures]:
            draw, caption, sentences = shown[name]
            section = self.sections[name]
            with self._refusing(section):
                rows = _rows(measures[name].values())
                self._show(section, name, rows, partial(draw, rows), caption)
                section.sentences += sentences(rows) if rows else []

    def _write_attention(self, measures: Sequence[AttentionMeasure]) -> None:
        distances = [row for measure in measures for row in measure.distance_rows()]
        nmis = [row for measure in measures for row in measure.nmi_rows()]
        if any(row["model"] not in self.references.values() for row in distances):
            section = self.sections["attention"]
            draw = partial(plots.attention_distance_figure, distances, self.references)
            self._show(section, "attention_distance", distances, draw, "attention distance by layer and head")
            self._show(section, "nmi", nmis, partial(plots.nmi_figure, nmis, self.references), "NMI by layer")
            section.sentences += findings.attention_sentences(distances, nmis)

    # Pictures, of a few images

    def _tsne(self, section: Section) -> None:
        indices = tsne_images(self.images)
        planes = self._of_each(section, self.encoders, lambda e: tsne_plane(e, self.images, indices, self.args.seed))
        draw = partial(plots.classes_figure, planes)
        self._show(section, "tokens_tsne", _rows(planes), draw, "t-SNE of the final tokens")
        section.sentences += findings.tsne_sentences(planes)

    def _pca(self, section: Section) -> None:
        both = ("before", "after")
        shown = (
            ("tokens_pca_one", [1], both, plots.before_after_figure, "tokens of one image"),
            ("tokens_pca_two", [1, 1], both, plots.before_after_figure, "tokens of two images"),
            ("tokens_pca_many", MANY_IMAGES, ("after",), plots.classes_figure, "tokens after self-attention"),
        )
        for name, counts, stages, draw, caption in shown:
            with self._refusing(section, name):
                indices = [0] if counts == [1] else self.images.of_classes(counts)
                plane = partial(pca_plane, images=self.images, indices=indices, stages=stages)
                # the same encoders are refused every time: say so once
                planes = self._of_each(section if name == "tokens_pca_one" else Section(), self.encoders, plane)
                self._show(section, name, _rows(planes), partial(draw, planes), caption)
                if name == "tokens_pca_one":
                    section.sentences += findings.pca_sentences(planes)

    def _spread_out(self, count: int) -> list[int]:
        """Return numbers of images of different classes where there are as many classes, else of the first images."""
        count = min(count, len(self.images))
        try:
            return self.images.of_classes([1] * count)
        except AnalysisRefused:
            return list(range(count))

    def _attention_maps(self, section: Section) -> None:
        indices = self._spread_out(NUM_MAPS)
        maps = self._of_each(section, self.encoders, lambda e: query_maps(e, self.images, indices))
        if maps:
            shown = next(encoder for encoder in self.encoders if encoder.name == maps[0].model)
            views = [shown.view(image) for image in self.images.take(indices)]
            images = [shown_in_rgb(np.rint(view).astype(np.uint8)) for view in views]
            draw = partial(plots.attention_maps_figure, images, maps)
            self._show(
                section, "attention_maps", _rows(maps, indices), draw, f"attention of a marked token{self._note}"
            )
            section.sentences += findings.attention_map_sentences(maps)

    def _reconstruction(self, section: Section) -> None:
        indices = self._spread_out(NUM_RECONSTRUCTIONS)
        parts = self._of_each(
            section, self.pretrained, lambda e: reconstruct(self._reconstructor(e), self.images, indices)
        )
        if parts:
            draw = partial(plots.reconstructions_figure, parts)
            self._show(section, "reconstruction", _rows(parts, indices), draw, f"reconstructions{self._note}")
            section.sentences += findings.reconstruction_sentences(parts, self.settings.describe())

    def _keypoints(self, section: Section) -> None:
        image = self._typical_image()
        sizes = [size for size in CELL_SIZES if image.shape[0] % size == 0]
        if not sizes:
            raise AnalysisRefused(f"no cells of {CELL_SIZES} px divide {image.shape[0]} px")
        chosen = self.settings.detector
        detectors = {name: KeypointDetector(name, chosen.footprint) for name in PAPER_DETECTORS}
        maps = {name: detector(image) for name, detector in detectors.items()}
        positions = {name: keypoint_positions(detector, image) for name, detector in detectors.items()}
        densities = {name: cell_density(keypoint_map, sizes[0]) for name, keypoint_map in maps.items()}
        draw = partial(plots.keypoints_figure, image, positions, maps, densities)
        self._draw(section, "keypoints", draw, "keypoints, their map and density")
        detectors.setdefault(chosen.name, chosen)
        grids = {name: weight_grid(detector, image, TEMPERATURES, sizes) for name, detector in detectors.items()}
        rows = [row for name, grid in grids.items() for row in _weight_rows(name, grid)]
        draw = partial(plots.weight_grid_figure, image, grids[chosen.name])
        self._show(section, "keypoint_weights", rows, draw, f"weights of {chosen.source.found}")
        section.sentences += findings.keypoint_sentences(rows)

    def _typical_image(self) -> np.ndarray:
        """Return, of the first images, the one with the median amount of keypoints, at the first model's size.

        It is as a detector sees it, `(size, size, 3)`, uint8.
        """
        candidates = self.images.take(range(min(NUM_CANDIDATES, len(self.images))))
        views = [keypoint_image(self.encoders[0].view(image), self.settings.channel) for image in candidates]
        amounts = [amount(self.settings.detector, view) for view in views]
        return views[int(np.argsort(amounts, kind="stable")[len(amounts) // 2])]

    # Files

    @property
    def _note(self) -> str:
        return channels_note(self.images.num_channels)

    def _show(self, section: Section, name: str, rows: Sequence[Row], draw: Callable[[], Figure], caption: str) -> None:
        """Write a table and the picture of it; nothing without rows."""
        if rows:
            write_csv(self.output_dir / f"{name}.csv", rows)
            section.tables.append(f"{name}.csv")
            self._draw(section, name, draw, caption)

    def _draw(self, section: Section, name: str, draw: Callable[[], Figure], caption: str) -> None:
        files = [self.output_dir / f"{name}.{file_format}" for file_format in self.args.formats]
        shown = next((f for f in ("png", "svg") if f in self.args.formats), self.args.formats[0])
        if save_figure(draw, *files, dpi=self.args.dpi):
            section.figures.append((f"{name}.{shown}", caption))
        else:
            section.refused.append(f"the picture {name} could not be drawn (see the log)")


def _rows(parts: Iterable[Any], *arguments: Any) -> list[Row]:
    return [row for part in parts for row in part.rows(*arguments)]


def _weight_rows(detector: str, grid: dict[tuple[int, float], np.ndarray]) -> list[Row]:
    return [
        {
            "detector": detector,
            "weight_patch_size": cell_size,
            "temperature": temperature,
            "mean_weight": float(weights.mean()),
            "median_weight": float(np.median(weights)),
            "weight_95th_percentile": float(np.percentile(weights, 95)),
            "max_weight": float(weights.max()),
        }
        for (cell_size, temperature), weights in grid.items()
    ]
