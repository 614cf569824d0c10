"""Everything that loads a checkpoint."""

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS
from modeling_kamim.commands.parser import parse
from modeling_kamim.evaluation.classifiers import build_classifier
from modeling_kamim.evaluation.comparison import load_pretrained_model
from modeling_kamim.hub.export import export_checkpoint
from modeling_kamim.models.backbone import load_backbone


def loaders(tmp_path):
    """Everything that loads a checkpoint."""

    def classifier(path):
        words = ["--model_name_or_path", str(path), "--use_cpu", "--output_dir", str(tmp_path / "out")]
        _, args, _ = parse(CLASSIFICATION_ARGUMENTS, words)
        return build_classifier(args, ["a", "b"])

    return {
        "load_backbone": lambda path: load_backbone(str(path), "vit", "base", None, "mean"),
        "build_classifier": classifier,
        "load_pretrained_model": lambda path: load_pretrained_model(str(path)),
        "export_checkpoint": lambda path: export_checkpoint(str(path), tmp_path / "exported", "timm"),
    }


LOADERS = ["load_backbone", "build_classifier", "load_pretrained_model", "export_checkpoint"]
