"""Made-up results of evaluations."""

IMAGENET = {"num_classes": 1000, "num_train_images": 1_281_167, "num_validation_images": 50_000}
KAMIM = {
    "weighting": "keypoint",
    "temperature": 0.25,
    "weight_norm": "none",
    "weight_patch_size": 8,
    "keypoint_detector": "fast",
    "keypoint_detector_args": None,
    "keypoint_footprint": "circle",
    "keypoint_source": "online",
    "mask_patch_size": 32,
    "mask_ratio": 0.6,
    "dataset_name": "ILSVRC/imagenet-1k",
}
VIT_B = {"model_type": "vit", "hidden_size": 768, "depth": 12, "patch_size": 16, "parameters": 85_758_720}


def result(top1, protocol="paper", kamim=KAMIM, model=VIT_B, data="ILSVRC/imagenet-1k", name="local:mine", **values):
    origin = {"dataset": data, "checkpoint": name, "model": model, "kamim": kamim, "versions": {"torch": "2.15"}}
    return {
        "protocol": protocol,
        "mode": "finetune" if protocol == "finetune" else "linear_probe",
        "layer": 12 if protocol == "finetune" else 8,
        "pooling": "mean",
        "layer_norm": protocol == "paper_layernorm",
        "augmentation": "paper",
        "seed": 0,
        "top1": top1,
        "top5": 1.0,
        "image_size": 192,
        **IMAGENET,
        "provenance": {**origin, "validation_fingerprint": values.pop("validation_fingerprint", "f")},
        **values,
    }
