"""The paper's settings, data sets and figures (Tables 1 to 5 of arXiv:2407.13873)."""

from collections.abc import Sequence

Key = tuple[str, ...]
Figures = dict[tuple[Key, str], float]
# type, width x depth / patch size
ARCHITECTURES = {
    "vit 192x12/16": "ViT-T",
    "vit 384x12/16": "ViT-S",
    "vit 768x12/16": "ViT-B",
    "swin 768x12/4": "Swin-T",
    "swin 1024x24/4": "Swin-B",
}
PAPER_KAMIM = {
    "weighting": "keypoint",
    "weight_patch_size": 8,
    "temperature": 0.25,
    "weight_norm": "none",
    "keypoint_detector": "fast",
    "keypoint_detector_args": None,
    "keypoint_footprint": "circle",
}
PAPER_MASK = {"mask_patch_size": 32, "mask_ratio": 0.6}
PAPER_IMAGE_SIZE = 192
PAPER_MODEL = "ViT-B"  # of Tables 2 to 5
PAPER_DATA = "ImageNet-1k"  # of Tables 1, 2, 4 and 5
# Names (letters and digits of the last part); classes, training and validation images
PAPER_DATA_SETS: dict[str, tuple[tuple[str, ...], tuple[int, int, int]]] = {
    "ImageNet-1k": (("imagenet1k", "imagenet", "ilsvrc2012", "in1k"), (1000, 1_281_167, 50_000)),
    "iNaturalist 2021": (("inat21", "inat2021", "inaturalist2021"), (10_000, 2_686_843, 100_000)),
    "Places365": (("places365", "places365standard"), (365, 1_803_460, 36_500)),
    "CIFAR-10": (("cifar10",), (10, 50_000, 10_000)),
    "CIFAR-100": (("cifar100",), (100, 50_000, 10_000)),
}
TABLE_3_DATA = (*PAPER_DATA_SETS, "CIFAR-10 (ImageNet-1k PT)", "CIFAR-100 (ImageNet-1k PT)")
TABLE_3_COLUMNS = tuple(f"{data} {kind}" for data in TABLE_3_DATA for kind in ("LP", "FT"))
SIMMIM_ROW = ("SimMIM", "")
NO_DETECTOR_ROW = ("none (SimMIM)",)


def _figures(columns: Sequence[str], rows: dict[Key, Sequence[float]]) -> Figures:
    return {(row, column): top1 for row, line in rows.items() for column, top1 in zip(columns, line, strict=True)}


# Top-1 in percent, by the row and column labels of the tables below
PAPER_TABLES: dict[int, Figures] = {
    1: _figures(
        ("SimMIM LP", "KAMIM LP", "SimMIM FT", "KAMIM FT"),
        {
            ("ViT-T",): (12.37, 13.75, 70.49, 70.41),
            ("ViT-S",): (20.99, 22.68, 76.80, 77.02),
            ("ViT-B",): (16.12, 33.97, 76.78, 77.30),
            ("Swin-T",): (14.37, 14.53, 77.94, 78.12),
            ("Swin-B",): (20.42, 18.16, 79.58, 80.02),
        },
    ),
    2: _figures(
        ("LP", "FT"),
        {
            ("8", "0.1"): (32.97, 77.59),
            ("8", "0.25"): (33.97, 77.29),
            ("8", "0.5"): (31.95, 77.11),
            ("8", "1"): (23.93, 76.94),
            ("16", "0.1"): (31.38, 77.43),
            ("16", "0.25"): (33.05, 77.48),
            ("16", "0.5"): (30.82, 77.06),
            ("16", "1"): (29.51, 77.13),
            ("32", "0.1"): (25.71, 77.09),
            ("32", "0.25"): (31.73, 77.41),
            ("32", "0.5"): (30.91, 77.41),
            ("32", "1"): (25.73, 77.18),
            SIMMIM_ROW: (16.12, 76.78),
        },
    ),
    3: _figures(
        TABLE_3_COLUMNS,
        {
            ("SimMIM",): (
                *(16.12, 76.78, 6.92, 79.80, 26.04, 53.20),
                *(62.83, 94.13, 37.46, 78.92, 61.65, 97.03, 36.49, 84.58),
            ),
            ("KAMIM",): (
                *(33.97, 77.30, 17.60, 80.48, 40.47, 53.03),
                *(59.01, 94.12, 35.67, 77.26, 72.63, 97.43, 51.77, 85.07),
            ),
        },
    ),
    4: _figures(
        ("LP", "FT"),
        {
            NO_DETECTOR_ROW: (16.12, 76.78),
            ("FAST",): (33.97, 77.29),
            ("SIFT",): (31.31, 77.37),
            ("ORB",): (32.36, 77.17),
        },
    ),
    5: _figures(
        ("SimMIM LP", "KAMIM LP"),
        {("without LayerNorm",): (16.12, 33.97), ("with LayerNorm",): (20.51, 37.72)},
    ),
}
