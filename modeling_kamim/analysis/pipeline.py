"""Run all analyses: the numbers in one pass over the images, then the pictures of single images."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ..objective.density import cell_density
from ..objective.keypoints import DETECTORS, KeypointDetector
from ..training.figures import save_figure
from . import findings as report
from . import plots as figures
from .encoders import AnalysisRefused, Encoder
from .findings import Section, write_csv
from .gallery import AnalysisImages
from .keypoint_view import CELL_SIZES, TEMPERATURES, keypoint_positions, weight_grid
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
    TokenPlane,
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
_STREAMED = ("attention", "fourier", "cka", "rank", "loss_share")


class AnalysisRun:
    """Analyses of several encoders on the same images.

    An analysis that an encoder does not allow is left out for it, and the reason is kept for the report.

    Args:
        args: of the command line.
        encoders: shown in every figure, in this order.
        references: from the name of an encoder to random weights of its architecture, shown where a reference line is;
            they may be among the encoders.
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
        self.output_dir = Path(args.output_dir)
        self.settings = KeypointSettings(encoders)
        self.sections = {name: Section() for name in ANALYSES if name in args.analyses}
        self._reconstructors: dict[str, Reconstructor | AnalysisRefused] = {}

    def run(self) -> dict[str, Section]:
        """Do all analyses, and write their figures and tables into the output directory."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if any(name in self.sections for name in _STREAMED):
            self._stream()
        pictures: dict[str, Callable[[Section], None]] = {
            "tsne": self._tsne,
            "pca": self._pca,
            "attention_maps": self._attention_maps,
            "reconstruction": self._reconstruction,
            "keypoints": self._keypoints,
        }
        chosen = [name for name in pictures if name in self.sections]
        for name in tqdm(chosen, desc="Pictures", unit="analysis", disable=not chosen):
            self._guarded(self.sections[name], "", pictures[name], self.sections[name])
        return self.sections

    # Numbers, over all images

    def _stream(self) -> None:
        everyone = self.everyone
        attention = {e.name: AttentionMeasure(e) for e in everyone} if "attention" in self.sections else {}
        fourier = {e.name: FourierMeasure(e) for e in everyone} if "fourier" in self.sections else {}
        rank = {e.name: RankMeasure(e) for e in everyone} if "rank" in self.sections else {}
        cka = CkaMeasure() if "cka" in self.sections else None
        loss_share = self._loss_share_measures() if "loss_share" in self.sections else {}
        runs_encoders = bool(attention or fourier or rank or cka)

        with tqdm(total=len(self.images), desc="Images", unit="image") as bar:
            for first, images in self.images.batches(self.args.batch_size):
                outputs = {}
                for encoder in everyone if runs_encoders else []:
                    output = encoder(images, attention=encoder.name in attention)
                    for name, measures in (("attention", attention), ("fourier", fourier), ("rank", rank)):
                        self._update(name, measures, encoder.name, output, len(images))
                    outputs[encoder.name] = output.without_attention()
                    del output  # its maps, before the next encoder makes its own
                if cka is not None:
                    cka.update(outputs)
                self._update_each("loss_share", loss_share, images, first)
                bar.update(len(images))

        self._write_attention(list(attention.values()))
        self._write_fourier(list(fourier.values()))
        if cka is not None:
            self._guarded(self.sections["cka"], "", self._write_cka, cka)
        self._write_rank(list(rank.values()))
        self._write_loss_share(list(loss_share.values()))

    def _update(self, analysis: str, measures: dict[str, Any], name: str, *batch: Any) -> None:
        """Feed a model's measure; one that is refused is dropped."""
        if name in measures and not self._guarded(self.sections[analysis], name, measures[name].update, *batch):
            del measures[name]

    def _update_each(self, analysis: str, measures: dict[str, Any], *batch: Any) -> None:
        for name in list(measures):
            self._update(analysis, measures, name, *batch)

    def _guarded(self, section: Section, name: str, step: Callable[..., Any], *arguments: Any) -> bool:
        """Whether a step was allowed; if not, the reason is kept."""
        try:
            step(*arguments)
        except AnalysisRefused as refused:
            self._refuse(section, name, refused)
            return False
        return True

    def _refuse(self, section: Section, name: str, refused: AnalysisRefused) -> None:
        reason = f"{name}: {refused}" if name else str(refused)
        section.refused.append(reason)
        logger.warning("Refused: %s", reason)

    def _loss_share_measures(self) -> dict[str, LossShareMeasure]:
        measures = {}
        for encoder in self._pretrained():
            try:
                measures[encoder.name] = LossShareMeasure(self._reconstructor(encoder))
            except AnalysisRefused as refused:
                self._refuse(self.sections["loss_share"], encoder.name, refused)
        return measures

    def _pretrained(self) -> list[Encoder]:
        return [encoder for encoder in self.encoders if encoder.checkpoint is not None]

    def _reconstructor(self, encoder: Encoder) -> Reconstructor:
        if encoder.name not in self._reconstructors:
            try:
                self._reconstructors[encoder.name] = Reconstructor(encoder, self.settings, self.args.seed)
            except AnalysisRefused as refused:
                self._reconstructors[encoder.name] = refused
        found = self._reconstructors[encoder.name]
        if isinstance(found, AnalysisRefused):
            raise found
        return found

    def _write_attention(self, measures: Sequence[AttentionMeasure]) -> None:
        distances = [row for measure in measures for row in measure.distance_rows()]
        nmis = [row for measure in measures for row in measure.nmi_rows()]
        if any(row["model"] not in self.references.values() for row in distances):
            section = self.sections["attention"]
            self._table(section, "attention_distance", distances)
            self._table(section, "nmi", nmis)
            draw = partial(figures.attention_distance_figure, distances, self.references)
            self._figure(section, "attention_distance", draw, "attention distance by layer and head")
            self._figure(section, "nmi", partial(figures.nmi_figure, nmis, self.references), "NMI by layer")
            section.sentences += report.attention_sentences(distances, nmis)

    def _write_fourier(self, measures: Sequence[FourierMeasure]) -> None:
        rows = [row for measure in measures for row in measure.rows()]
        if rows:
            section = self.sections["fourier"]
            self._table(section, "fourier", rows)
            draw = partial(figures.fourier_figure, rows, self.references)
            self._figure(section, "fourier", draw, "relative log amplitude by layer and frequency")
            section.sentences += report.fourier_sentences(rows)

    def _write_cka(self, measure: CkaMeasure) -> None:
        rows = measure.rows()
        section = self.sections["cka"]
        self._table(section, "cka", rows)
        self._figure(section, "cka", partial(figures.cka_figure, rows), "CKA between layers and models")
        section.sentences += report.cka_sentences(rows)

    def _write_rank(self, measures: Sequence[RankMeasure]) -> None:
        rows = [row for measure in measures for row in measure.rows()]
        if rows:
            section = self.sections["rank"]
            self._table(section, "rank", rows)
            draw = partial(figures.rank_figure, rows, self.references)
            self._figure(section, "rank", draw, "effective rank by layer")
            section.sentences += report.rank_sentences(rows)

    def _write_loss_share(self, measures: Sequence[LossShareMeasure]) -> None:
        rows = [row for measure in measures for row in measure.rows()]
        if rows:
            section = self.sections["loss_share"]
            self._table(section, "loss_share", rows)
            draw = partial(figures.loss_share_figure, rows)
            self._figure(section, "loss_share", draw, "share of the masked loss by weight")
            section.sentences += report.loss_share_sentences(rows, self.settings.describe())

    # Pictures, of a few images

    def _of_each(self, section: Section, encoders: Iterable[Encoder], part: Callable[[Encoder], Part]) -> list[Part]:
        """The parts of all encoders that allow the analysis; the others are refused."""
        parts = []
        for encoder in encoders:
            try:
                parts.append(part(encoder))
            except AnalysisRefused as refused:
                self._refuse(section, encoder.name, refused)
        return parts

    def _tsne(self, section: Section) -> None:
        indices = tsne_images(self.images)
        planes = self._of_each(section, self.encoders, lambda e: tsne_plane(e, self.images, indices, self.args.seed))
        self._planes(section, "tokens_tsne", planes, figures.classes_figure, "t-SNE of the final tokens")
        section.sentences += report.tsne_sentences(planes)

    def _pca(self, section: Section) -> None:
        both = ("before", "after")
        shown = (
            ("tokens_pca_one", [1], both, figures.before_after_figure, "tokens of one image"),
            ("tokens_pca_two", [1, 1], both, figures.before_after_figure, "tokens of two images"),
            ("tokens_pca_many", MANY_IMAGES, ("after",), figures.classes_figure, "tokens after self-attention"),
        )
        for name, counts, stages, draw, caption in shown:
            try:
                indices = [0] if counts == [1] else self.images.of_classes(counts)
            except AnalysisRefused as refused:
                self._refuse(section, name, refused)
                continue
            plane = partial(pca_plane, images=self.images, indices=indices, stages=stages)
            # the same encoders are refused every time: say so once
            planes = self._of_each(section if name == "tokens_pca_one" else Section(), self.encoders, plane)
            self._planes(section, name, planes, draw, caption)
            if name == "tokens_pca_one":
                section.sentences += report.pca_sentences(planes)

    def _planes(
        self,
        section: Section,
        name: str,
        planes: Sequence[TokenPlane],
        draw: Callable[[Sequence[TokenPlane]], Figure],
        caption: str,
    ) -> None:
        if planes:
            self._table(section, name, [row for plane in planes for row in plane.rows()])
            self._figure(section, name, partial(draw, planes), caption)

    def _spread_out(self, count: int) -> list[int]:
        """Numbers of images of different classes where there are as many classes, else of the first images."""
        count = min(count, len(self.images))
        try:
            return self.images.of_classes([1] * count)
        except AnalysisRefused:
            return list(range(count))

    def _attention_maps(self, section: Section) -> None:
        indices = self._spread_out(NUM_MAPS)
        maps = self._of_each(section, self.encoders, lambda e: query_maps(e, self.images, indices))
        if maps:
            self._table(section, "attention_maps", [row for part in maps for row in part.rows(indices)])
            shown = next(encoder for encoder in self.encoders if encoder.name == maps[0].model)
            images = [shown.view(image) for image in self.images.take(indices)]
            draw = partial(figures.attention_maps_figure, images, maps)
            self._figure(section, "attention_maps", draw, "attention of a marked token")
            section.sentences += report.attention_map_sentences(maps)

    def _reconstruction(self, section: Section) -> None:
        indices = self._spread_out(NUM_RECONSTRUCTIONS)
        parts = self._of_each(
            section, self._pretrained(), lambda e: reconstruct(self._reconstructor(e), self.images, indices)
        )
        if parts:
            self._table(section, "reconstruction", [row for part in parts for row in part.rows(indices)])
            self._figure(section, "reconstruction", partial(figures.reconstructions_figure, parts), "reconstructions")
            section.sentences += report.reconstruction_sentences(parts, self.settings.describe())

    def _keypoints(self, section: Section) -> None:
        image = self._typical_image()
        sizes = [size for size in CELL_SIZES if image.shape[0] % size == 0]
        if not sizes:
            raise AnalysisRefused(f"no cells of {CELL_SIZES} px divide {image.shape[0]} px")
        footprint = self.settings.detector.footprint
        detectors = {name: KeypointDetector(name, footprint) for name in DETECTORS}
        maps = {name: detector(image) for name, detector in detectors.items()}
        draw = partial(
            figures.keypoints_figure,
            image,
            {name: keypoint_positions(detector, image) for name, detector in detectors.items()},
            maps,
            {name: cell_density(keypoint_map, sizes[0]) for name, keypoint_map in maps.items()},
        )
        grids = {name: weight_grid(detector, image, TEMPERATURES, sizes) for name, detector in detectors.items()}
        rows = [row for name, grid in grids.items() for row in _weight_rows(name, grid)]
        self._table(section, "keypoint_weights", rows)
        self._figure(section, "keypoints", draw, "keypoints, their map and density")
        chosen = self.settings.detector.name
        draw = partial(figures.weight_grid_figure, image, grids[chosen])
        self._figure(section, "keypoint_weights", draw, f"weights of {chosen.upper()} keypoints")
        section.sentences += report.keypoint_sentences(rows)

    def _typical_image(self) -> np.ndarray:
        """Of the first images the one with the median number of keypoints, at the first model's size."""
        views = [
            self.encoders[0].view(image) for image in self.images.take(range(min(NUM_CANDIDATES, len(self.images))))
        ]
        counts = [len(self.settings.detector.detect(view)) for view in views]
        return views[int(np.argsort(counts, kind="stable")[len(counts) // 2])]

    # Files

    def _table(self, section: Section, name: str, rows: Sequence[Row]) -> None:
        write_csv(self.output_dir / f"{name}.csv", rows)
        section.tables.append(f"{name}.csv")

    def _figure(self, section: Section, name: str, draw: Callable[[], Figure], caption: str) -> None:
        files = [self.output_dir / f"{name}.{file_format}" for file_format in self.args.formats]
        shown = next((f for f in ("png", "svg") if f in self.args.formats), self.args.formats[0])
        if save_figure(draw, *files, dpi=self.args.dpi):
            section.figures.append((f"{name}.{shown}", caption))
        else:
            section.refused.append(f"the picture {name} could not be drawn (see the log)")


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
