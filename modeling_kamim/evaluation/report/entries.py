"""Names and order of results in reports: model, method, data, protocol, layer, accuracy."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ...hub.markup import MISSING
from ...objective.targets import TARGETS
from ...objective.weighting import method_name
from ..protocols import PROBED_BLOCK, PROTOCOLS
from ..results import AVERAGED, MEASURED, is_number
from .paper import ARCHITECTURES, PAPER_DATA_SETS, PAPER_IMAGE_SIZE, PAPER_KAMIM, PAPER_MASK, Key

Item = TypeVar("Item")
TITLES = {name: protocol.title for name, protocol in PROTOCOLS.items()}
# In the layouts of the paper's tables
KINDS = {"paper": "LP", "paper_layernorm": "LP", "finetune": "FT", "cached": "cached-LP"}
NO_SETTINGS = {"provenance", "seed", "seeds", "num_seeds", "time", "device", "kamim", "versions", "model"}


@dataclass(frozen=True)
class Entry:
    """What the tables show of a row of `summarize_seeds`."""

    row: dict[str, Any]

    def shown(self, name: str) -> str:
        return _show(self.row.get(name))

    @property
    def image_size(self) -> str:
        """In pixels: one number for a square, height x width for a rectangle."""
        size = self.row.get("image_size")
        return " x ".join(map(_show, size)) if isinstance(size, list) else _show(size)

    @property
    def origin(self) -> dict[str, Any]:
        return self.row["provenance"]

    @property
    def kamim(self) -> dict[str, Any]:
        return _mapping(self.origin.get("kamim"))

    @property
    def figures(self) -> dict[str, Any]:
        return _mapping(self.origin.get("model"))

    @property
    def architecture(self) -> str:
        """As the paper names it, or type, width, depth and patch size."""
        kind, *sizes = (_show(self.figures.get(key)) for key in ("model_type", "hidden_size", "depth", "patch_size"))
        name = "{} {}x{}/{}".format(kind, *sizes)
        return ARCHITECTURES.get(name, name)

    @property
    def parameters(self) -> str:
        """Number of parameters, in millions."""
        parameters = self.figures.get("parameters")
        return f"{parameters / 1e6:.1f}M" if parameters is not None and is_number(parameters) else MISSING

    @property
    def model(self) -> str:
        checkpoint = self.origin.get("checkpoint")
        return f"random weights ({self.architecture})" if checkpoint is None else _show(checkpoint)

    @property
    def method(self) -> str:
        weighting = self.kamim.get("weighting")
        if weighting is None:
            return "none" if self.origin.get("checkpoint") is None else MISSING
        return method_name(_show(weighting), "mae" in _show(self.kamim.get("method")).split("-"))

    @property
    def detector(self) -> str:
        return _show(self.kamim.get("keypoint_detector")).upper()

    @property
    def cell(self) -> Key:
        """w_ps and T."""
        return (_show(self.kamim.get("weight_patch_size")), _show(self.kamim.get("temperature")))

    @property
    def described_method(self) -> str:
        kamim, details = self.kamim, []
        if self.method.startswith("KAMIM"):
            w_ps, temperature = self.cell
            details += [self.detector, f"w_ps {w_ps}", f"T {temperature}", _show(kamim.get("keypoint_source"))]
            details += ["points"] * (kamim.get("keypoint_footprint") == "point")
            details += ["mean weight 1"] * (kamim.get("weight_norm") == "mean")
        details += ["loss predictor"] * bool(kamim.get("loss_predictor"))
        details += ["easy to hard masks"] * (kamim.get("masking") == "easy_to_hard")
        if is_number(kamim.get("temperature_end")):
            details.append(f"T to {_show(kamim['temperature_end'])}")
        if is_number(kamim.get("selection_ratio")) and kamim["selection_ratio"] < 1:
            details.append(f"{_show(kamim.get('selection'))} {kamim['selection_ratio']:.0%} of the images")
        if kamim.get("target") in TARGETS and kamim["target"] != "pixels":
            details.append(TARGETS[kamim["target"]].words)
        if kamim.get("base_model") is not None:
            details.append(f"from {_show(kamim['base_model'])}")
        return f"{self.method} ({', '.join(details)})" if details else self.method

    @property
    def has_papers_objective(self) -> bool:
        """Whether pixels are predicted by their absolute error, from random weights, as earlier versions always did."""
        kamim = self.kamim
        plain = {"target": "pixels", "loss": "l1", "loss_predictor": False, "temperature_end": None}
        plain |= {"base_model": None, "selection_ratio": 1}
        return all(kamim.get(key, value) == value for key, value in plain.items())

    def _differs(self, settings: Mapping[str, Any]) -> set[str]:
        return {key for key, value in settings.items() if _show(self.kamim.get(key)) != _show(value)}

    def suits(self, *free: str) -> bool:
        """Return whether this is SimMIM or KAMIM as in the paper's tables, but for some settings."""
        settings = set() if self.method == "SimMIM" else self._differs(PAPER_KAMIM)
        settings |= {"layer_norm"} if self.row.get("layer_norm") else set()
        is_papers = self.method in ("SimMIM", "KAMIM") and self.has_papers_objective
        return is_papers and self.kind is not None and settings <= set(free)

    @property
    def reads_papers_layer(self) -> bool:
        """Whether the layer is the one that the paper's evaluation reads."""
        depth = self.figures.get("depth")
        last = {"final", "last stage", _show(depth), MISSING}
        reads_last = self.row["protocol"] == "finetune" or self.figures.get("model_type") == "swin"
        reads_last |= isinstance(depth, int) and depth <= PROBED_BLOCK
        return self.shown("layer") in (last if reads_last else {str(PROBED_BLOCK)})

    @property
    def kind(self) -> str | None:
        """Of `KINDS`, where layer and pooling are the paper's."""
        is_papers = self.reads_papers_layer and self.shown("pooling") in ("mean", MISSING)
        return KINDS.get(self.row["protocol"]) if is_papers else None

    @property
    def pooling(self) -> str:
        return f"{self.shown('pooling')} + LayerNorm" if self.row.get("layer_norm") else self.shown("pooling")

    @property
    def images(self) -> str:
        return f"{_count(self.row.get('num_train_images'))} / {_count(self.row.get('num_validation_images'))}"

    @property
    def fingerprint(self) -> str:
        """Of the validation images."""
        return _show(self.origin.get("validation_fingerprint"))

    @property
    def paper_data(self) -> str | None:
        """The paper's data set of which these are all the images."""
        name = _paper_name(_show(self.origin.get("dataset")))
        sizes = [self.row.get(key) for key in ("num_classes", "num_train_images", "num_validation_images")]
        return name if name and sizes == list(PAPER_DATA_SETS[name][1]) else None

    @property
    def pretrained_on(self) -> str | None:
        """The data set of pretraining; None where it is not known."""
        name = self.kamim.get("dataset_name")
        return None if name is None else _paper_name(_show(name)) or _show(name)

    @property
    def data(self) -> str:
        """Data set, and that of pretraining where it is known to be another."""
        name = _show(self.origin.get("dataset"))
        other = self.pretrained_on not in (None, name, _paper_name(name))
        return f"{self.paper_data or name} ({self.pretrained_on} PT)" if other else self.paper_data or name

    @property
    def is_comparable(self) -> bool:
        """Whether data, pretraining data, masks and image size are known to be ones of the paper's."""
        is_papers_size = self.row.get("image_size") == PAPER_IMAGE_SIZE and not self._differs(PAPER_MASK)
        return self.paper_data is not None and self.pretrained_on is not None and is_papers_size

    @property
    def top1(self) -> str:
        """Percent, with the deviation where there are several seeds."""
        return percent(self.row["top1"], self.row["top1_std"])

    @property
    def top1_with_interval(self) -> str:
        interval = self.row.get("top1_interval")
        if not (isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))):
            return self.top1
        return f"{self.top1} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"

    @property
    def top5(self) -> str:
        return percent(self.row["top5"], self.row["top5_std"])

    @property
    def seeds(self) -> str:
        seeds = self.row["seeds"]
        return ", ".join(map(_show, seeds)) if len(seeds) <= 5 else f"{len(seeds)} seeds"

    @property
    def labels(self) -> Key:
        """What the first table shows of the settings."""
        data, protocol = _show(self.origin.get("dataset")), self.shown("protocol")
        protocol = TITLES.get(protocol, protocol)
        return (self.model, self.described_method, data, protocol, self.shown("layer"), self.pooling)

    @property
    def settings(self) -> dict[str, str]:
        """Of the evaluation, the checkpoint and the libraries, in this order."""
        settings = {**self.row, **self.kamim, **self.origin, **_mapping(self.origin.get("versions"))}
        measured = {*MEASURED, *(f"{name}_std" for name in AVERAGED)}
        return {key: _show(value) for key, value in settings.items() if key not in NO_SETTINGS | measured}

    @property
    def run(self) -> Key:
        """Equal for the layers of one evaluation."""
        of_a_layer = ("layer", "num_seeds", "learning_rate")
        settings = [f"{key}={value}" for key, value in self.settings.items() if key not in of_a_layer]
        return (*self.labels[:4], self.pooling, self.images, *settings)

    @property
    def contest(self) -> Key:
        """Equal for results whose top-1 may be compared."""
        return (*self.labels[2:5], self.images)

    def order(self) -> tuple:
        """Return a sorting key: of equal data, protocol and layer the best comes first."""
        _, _, data, protocol, layer, _ = self.labels
        known = list(TITLES.values())
        rank = known.index(protocol) if protocol in known else len(known)
        return (data, rank, protocol, natural_order(layer), self.images, -self.row["top1"], self.labels)


def grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Return items by key, both in the order in which they come."""
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def _paper_name(name: str) -> str | None:
    """Return the paper's name of a data set with this public name."""
    plain = re.sub(r"[^a-z0-9]", "", re.split(r"[/:]", name)[-1].lower())
    return next((paper for paper, (names, _) in PAPER_DATA_SETS.items() if plain in names), None)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _show(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:g}"
    text = " ".join(value.split()) if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text[:8] if re.fullmatch(r"[0-9a-f]{40,}", text) else text or MISSING


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _show(value)


def percent(share: float | None, deviation: float | None = None) -> str:
    """Return a share in [0, 1] as the tables show it, in percent."""
    if share is None:
        return MISSING
    return f"{100 * share:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def natural_order(text: str) -> tuple[int, float, str]:
    """Return a sorting key: numbers by size, then words."""
    return (0, float(text), text) if re.fullmatch(r"\d+(\.\d+)?", text) else (1, 0.0, text)
