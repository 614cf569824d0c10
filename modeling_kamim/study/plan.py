"""A study as a file: named arms, each pretrained with some seeds and scored by the same protocols.

A study file has these keys:

- question, criterion: texts for the report; the criterion is written before the first run.
- prepare: settings of `kamim prepare`, whose result every run reads; left out where runs read the data set itself.
- pretrain: settings of `kamim pretrain` that all arms share.
- arms: from a name to the settings of an arm. `max_steps: 0` are random weights. Two keys are the study's own: `seeds`
  (a list, [0]), and `checkpoint` (a directory or Hub id that is scored in place of a pretraining).
- protocols: from a name to settings of `kamim evaluate`. The lists `arms` and `seeds` keep a protocol to some.
- compare: pairs of arms, "arm - other", whose paired differences the report gives.
- dataset_name, output_dir: of all runs. results_dir: of the small JSON files; by default in output_dir.

In `pretrain`, an arm or a protocol the key `config` names a YAML file of settings that come first.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from ..evaluation.protocols import PROTOCOLS

_TEXTS, _PLACES = ("question", "criterion"), ("dataset_name", "output_dir", "results_dir")
KEYS = (*_TEXTS, "prepare", "pretrain", "arms", "protocols", "compare", *_PLACES)
_OWN_KEYS = {"arms": ("seeds", "checkpoint"), "protocols": ("arms", "seeds")}


@dataclass(frozen=True)
class Run:
    """A command of a study.

    Args:
        command: "prepare", "pretrain" or "evaluate".
        settings: by their names on the command line; `config` is a YAML file that comes first.
        output_dir: where it writes.
    """

    command: str
    settings: Mapping[str, Any]
    output_dir: Path

    @property
    def words(self) -> list[str]:
        """What follows the command on a command line."""
        given = {key: value for key, value in self.settings.items() if key != "config" and value is not None}
        options = [[f"--{key}", *_words(value)] for key, value in given.items()]
        config = [str(self.settings["config"])] if "config" in self.settings else []
        return [*config, *itertools.chain.from_iterable(options), "--output_dir", str(self.output_dir)]


def _words(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [word for item in value for word in _words(item)] if isinstance(value, list) else [str(value)]


@dataclass(frozen=True)
class Replicate:
    """An arm with one seed.

    Args:
        arm, seed: which one it is.
        pretraining: None where a checkpoint is scored that is there already.
        evaluations: by the names of their protocols.
    """

    arm: str
    seed: int
    pretraining: Run | None
    evaluations: Mapping[str, Run]

    @property
    def name(self) -> str:
        """As `kamim/seed-0`: also its folder."""
        return f"{self.arm}/seed-{self.seed}"


@dataclass(frozen=True)
class Study:
    """A study file; `Study.read` makes it.

    Args:
        name: of the file.
        keys: what it holds.
        dataset_name: that the runs read; None for the embedded photographs.
    """

    name: str
    keys: Mapping[str, Any] = field(repr=False)
    dataset_name: str | None = None

    @classmethod
    def read(cls, name: str, keys: Mapping[str, Any], **given: Any) -> "Study":
        """Return the study of the keys of a file.

        Args:
            given: keys that replace those of the file; None leaves them as they are.

        Raises:
            InputError: for a key that is not known, missing or of another kind, or an arm that is named and not there.
        """
        keys = {**keys, **{key: value for key, value in given.items() if value is not None}}
        for key in keys:
            if key not in KEYS:
                raise InputError(f"unknown key {key!r} in study {name}{did_you_mean(str(key), KEYS)}")
        for key in ("arms", "protocols"):
            if not _is_mapping_of_mappings(keys.get(key)):
                raise InputError(f"{key} of study {name} is {keys.get(key)!r}; give 'name: {{setting: value}}' lines")
        study = cls(name, keys, keys.get("dataset_name"))
        study._check_names()
        return study

    def shortened(self, steps: int) -> "Study":
        """Return the study with trainings of so many steps, in a folder of its own: to see whether everything runs."""
        arms = {name: {**arm, "max_steps": min(steps, arm.get("max_steps", steps))} for name, arm in self.arms.items()}
        protocols = {
            name: protocol if _is_quick(protocol) else {**protocol, "max_steps": steps}
            for name, protocol in self.protocols.items()
        }
        folder = str(self.output_dir / "trial")
        places = {"output_dir": folder, "results_dir": None}
        return Study(self.name, {**self.keys, "arms": arms, "protocols": protocols, **places}, self.dataset_name)

    @property
    def arms(self) -> Mapping[str, Mapping[str, Any]]:
        return {name: arm or {} for name, arm in self.keys["arms"].items()}

    @property
    def protocols(self) -> Mapping[str, Mapping[str, Any]]:
        return {name: protocol or {} for name, protocol in self.keys["protocols"].items()}

    @property
    def output_dir(self) -> Path:
        return Path(self.keys.get("output_dir") or f"outputs/studies/{self.name}")

    @property
    def results_dir(self) -> Path:
        """Folder of the records and of the report."""
        return Path(self.keys.get("results_dir") or self.output_dir / "results")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Arms to compare."""
        return [(first.strip(), second.strip()) for first, second in (pair.split(" - ") for pair in self._compared)]

    @property
    def _compared(self) -> Sequence[str]:
        return self.keys.get("compare") or []

    @property
    def preparation(self) -> Run | None:
        """The command that prepares the data set; None where the study has none."""
        settings = self.keys.get("prepare")
        if settings is None:
            return None
        return Run("prepare", {"dataset_name": self.dataset_name, **settings}, self.output_dir / "prepared")

    def replicates(self, arms: Sequence[str] = ()) -> list[Replicate]:
        """Return the replicates of some arms, of all where none is named: the first seeds of all arms come first.

        Raises:
            InputError: if there is no such arm.
        """
        for arm in arms:
            if arm not in self.arms:
                raise InputError(f"study {self.name} has no arm {arm!r}{did_you_mean(arm, self.arms)}")
        chosen = list(dict.fromkeys(arms or self.arms))
        rounds = itertools.zip_longest(*(self._of_arm(arm) for arm in chosen))
        return [replicate for replicate in itertools.chain.from_iterable(rounds) if replicate is not None]

    def _of_arm(self, arm: str) -> Iterator[Replicate]:
        data = {} if self.dataset_name is None else {"dataset_name": self._read_by_runs}
        shared = {**data, **(self.keys.get("pretrain") or {})}
        own = {key: value for key, value in self.arms[arm].items() if key not in _OWN_KEYS["arms"]}
        checkpoint = self.arms[arm].get("checkpoint")
        for seed in self.arms[arm].get("seeds", [0]):
            output_dir = self.output_dir / arm / f"seed-{seed}"
            pretraining = Run("pretrain", {**shared, **own, "seed": seed}, output_dir)
            evaluations = {
                name: Run(
                    "evaluate",
                    {
                        **data,
                        **{key: value for key, value in protocol.items() if key not in _OWN_KEYS["protocols"]},
                        "model_name_or_path": checkpoint or str(output_dir),
                        "seed": seed,
                    },
                    output_dir / name,
                )
                for name, protocol in self.protocols.items()
                if arm in protocol.get("arms", self.arms) and seed in protocol.get("seeds", [seed])
            }
            yield Replicate(arm, seed, None if checkpoint else pretraining, evaluations)

    @property
    def _read_by_runs(self) -> str | None:
        return str(self.preparation.output_dir) if self.preparation else self.dataset_name

    def _check_names(self) -> None:
        for arm, settings in self.arms.items():
            seeds = settings.get("seeds", [0])
            if not (isinstance(seeds, list) and seeds and all(isinstance(seed, int) for seed in seeds)):
                raise InputError(f"seeds of arm {arm} are {seeds!r}; give a list of whole numbers")
        if len(set(self._compared)) < len(self._compared) or any(pair.count(" - ") != 1 for pair in self._compared):
            raise InputError(f"compare is {self._compared!r}; give different lines 'arm - other arm'")
        named = [("compare", name) for pair in self.pairs for name in pair]
        for protocol, settings in self.protocols.items():
            named += [(f"protocol {protocol}", name) for name in settings.get("arms", [])]
        for where, name in named:
            if name not in self.arms:
                raise InputError(f"{where} names {name!r}, which is no arm of the study{did_you_mean(name, self.arms)}")


def _is_quick(protocol: Mapping[str, Any]) -> bool:
    """Whether a protocol trains nothing by steps."""
    name = protocol.get("protocol")
    return protocol.get("mode") == "reconstruction" or (name in PROTOCOLS and PROTOCOLS[name].is_cached)


def _is_mapping_of_mappings(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(v, dict | None) for v in value.values())
