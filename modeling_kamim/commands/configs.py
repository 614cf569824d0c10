"""List the recipes that come with this package, or copy one to change it.

kamim configs
kamim configs pretrain/kamim_vit_base__in1k__192__100ep.yaml
kamim pretrain kamim_vit_base__in1k__192__100ep.yaml --temperature 0.5
"""

import shutil
from pathlib import Path

from ..errors import InputError, did_you_mean
from .endings import run
from .program import plain_parser


def main() -> None:
    """List the configs, or copy the one that is named into the working directory."""
    parser = plain_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="copy these into the working directory")
    wanted = parser.parse_args().names
    folder = packaged()
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml"))
    if not wanted:
        print("\n".join(names))
    for name in wanted:
        copy(folder, name, names)


def config_file(path: Path) -> Path:
    """Return a config file, or the one of this name that comes with the package.

    Raises:
        InputError: if there is neither.
    """
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("configs/")
    for file in packaged().rglob("*.yaml"):
        if file.as_posix().endswith(f"/{name}"):
            return file
    raise InputError(f"there is no config file {path}; `kamim configs` lists those of this package")


def packaged() -> Path:
    """Return the folder of the configs that come with this package."""
    installed = Path(__file__).parent.parent / "configs"
    return installed if installed.is_dir() else installed.parents[1] / "configs"  # of an editable install


def copy(folder: Path, name: str, names: list[str]) -> None:
    """Copy a config into the working directory.

    Raises:
        InputError: if there is none of this name, or a file would be overwritten.
    """
    if name not in names:
        raise InputError(f"there is no config {name!r}{did_you_mean(name, names, cutoff=0.3)}")
    target = Path(Path(name).name)
    if target.exists():
        raise InputError(f"{target} is there already; move it away, or use it")
    shutil.copyfile(folder / name, target)
    print(f"copied to {target}")


if __name__ == "__main__":
    run(main)
