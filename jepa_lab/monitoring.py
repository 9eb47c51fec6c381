"""What a run from the command line writes about its training: history as CSV and JSON, and figures.

Book: chapter 12.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jepa_lab.explanation import Explanation
from jepa_lab.files import write_atomic
from jepa_lab.monitor import TrainingMonitor
from jepa_lab.training import Trainer


@dataclass(frozen=True)
class MonitoringConfig:
    """With a `folder`, each run writes `history.csv`, `history.json` and, with `figures`, `losses.png` and (where there
    is steering) `steering.png` into a folder of its own in it. For TensorBoard or W&B see `trainer.trackers`.

    A run on texts also explains there, every `explain_every` epochs (0: never), what its model predicts for the first
    `explain_pairs` validation questions: `explanations/epochNNN.json`, a list of `Explanation`s.

    Raises: ValueError for counts that are too small, and for explanations without a folder.
    """

    folder: str = ""
    figures: bool = True
    explain_every: int = 0
    explain_pairs: int = 3

    def __post_init__(self):
        if self.explain_every < 0 or self.explain_pairs < 1:
            raise ValueError(
                "monitoring.explain_every must be 0 or more and explain_pairs at least 1, got "
                f"{self.explain_every} and {self.explain_pairs}"
            )
        if self.explain_every and not self.folder:
            raise ValueError("monitoring.explain_every needs monitoring.folder: the folder that it writes to")

    def write_explanations(self, explanations: Sequence[Explanation], folder: Path, epoch: int) -> Path:
        """Write those of an epoch; returns the path."""
        place = folder / "explanations"
        place.mkdir(parents=True, exist_ok=True)
        content = json.dumps([asdict(one) for one in explanations], indent=1, allow_nan=False) + "\n"
        return write_atomic(place / f"epoch{epoch:03d}.json", content.encode())

    def ready(self, folder: Path, fresh: bool) -> None:
        """Make the folder and see whether it can be written: better now than after the training. A `fresh` run, one
        that does not go on with another, removes the explanations of the run that was there before.

        Raises: OSError naming the path.
        """
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / "trial.part"
        trial.write_bytes(b"")
        trial.unlink()
        for old in (folder / "explanations").glob("epoch*.json") if fresh else ():
            old.unlink()

    def export(self, trainer: Trainer, folder: Path) -> list[Path]:
        """Write the files of a trainer that has run; returns their paths."""
        monitor = TrainingMonitor.from_trainer(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        written = [monitor.export_history(folder / f"history.{suffix}") for suffix in ("csv", "json")]
        if not self.figures:
            return written
        from matplotlib.pyplot import close  # here, since drawing stands at the other end of the import graph

        close(monitor.plot_losses(folder / "losses.png"))
        written.append(folder / "losses.png")
        if any(name.startswith("steering/") for name in monitor.history):
            close(monitor.plot_steering_distribution(folder / "steering.png"))
            written.append(folder / "steering.png")
        return written
