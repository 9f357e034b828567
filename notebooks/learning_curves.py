"""Draws the evaluation returns of all runs of some experiments, one panel each: the figure of the README.

Usage, in the folder of mlflow.db: python notebooks/learning_curves.py OUT.png EXPERIMENT [EXPERIMENT ...]
FOLDER:EXPERIMENT is one of the database in another folder.
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from mlflow import MlflowClient

TITLES = {"control": "InvertedPendulum-v5"}  # of suites


def curves(client: MlflowClient, experiment: str) -> dict[str, list[tuple[int, float]]]:
    """Evaluation returns by seed: ``(environment step, mean return)``, of the finished runs."""
    identifier = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([identifier], filter_string="attributes.status = 'FINISHED'")
    runs = [run for run in runs if "seed" in run.data.tags]  # a parent of many seeds has none
    histories = {r.data.tags["seed"]: client.get_metric_history(r.info.run_id, "eval/return_mean") for r in runs}
    return {seed: [(point.step, point.value) for point in history] for seed, history in sorted(histories.items())}


def main(out: str, experiments: list[str]) -> None:
    """Writes the figure to ``out``."""
    size = (4.6 * len(experiments), 3.2)
    figure, axes = plt.subplots(1, len(experiments), figsize=size, squeeze=False, constrained_layout=True)
    for axis, place in zip(axes[0], experiments):
        folder, _, experiment = place.rpartition(":")
        by_seed = curves(MlflowClient(f"sqlite:///{folder or '.'}/mlflow.db"), experiment)
        for seed, points in by_seed.items():
            axis.plot(*zip(*points), marker="o", markersize=2.5, linewidth=1.2, label=f"seed {seed}")
            print(experiment, "seed", seed, points)
        axis.set(title=TITLES.get(experiment, experiment), xlabel="environment steps")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7, ncols=2)
    axes[0][0].set_ylabel("mean evaluation return")
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
