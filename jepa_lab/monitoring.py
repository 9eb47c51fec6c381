"""What a run from the command line writes about its training: history as CSV and JSON, and figures.

Book: chapter 12.
"""

from dataclasses import dataclass
from pathlib import Path

from jepa_lab.monitor import TrainingMonitor
from jepa_lab.training import Trainer


@dataclass(frozen=True)
class MonitoringConfig:
    """With a `folder`, each run writes `history.csv`, `history.json` and, with `figures`, `losses.png` and (where there
    is steering) `steering.png` into a folder of its own in it. For TensorBoard or W&B see `trainer.trackers`."""

    folder: str = ""
    figures: bool = True

    def ready(self, folder: Path) -> None:
        """Make the folder and see whether it can be written: better now than after the training.

        Raises: OSError naming the path.
        """
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / "trial.part"
        trial.write_bytes(b"")
        trial.unlink()

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
