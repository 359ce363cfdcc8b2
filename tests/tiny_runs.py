"""Runs of seconds: opened on a folder's `tiles.npy`, trained, and finished up to the images and the CSV."""

import pandas as pd
from conftest import TINY, K

from pfiles import checkpoints
from pfiles.latents import mean_channel_softmax
from pfiles.session import open_run

OVERRIDES = TINY | {"clusters.epochs": 1, "autoencoder.polish.epochs": 1}
STAGES = ("training", "finetuning1", "finetuning2")


def opened(folder, **changed):
    given = {
        "notebook": "part_test", "n_clusters": K, "data": str(folder / "tiles.npy"), "preset": "demo",
        "overrides": OVERRIDES, "out": str(folder / "out"),
    }  # fmt: skip
    return open_run(**(given | changed))


def parameters(folder, **changed):
    run = {"n_clusters": K, "data": str(folder / "tiles.npy"), "preset": "demo", "out": str(folder / "out")}
    return run | {"overrides": OVERRIDES} | changed


def train(run):
    run.train_autoencoder(*run.new_autoencoder())
    for stage in STAGES:
        networks = run.new_networks() if stage == "training" else run.networks(checkpoints.START[stage])
        if stage == "training" and run.clustering == "classifier":
            run.train_clusters(networks.clusterer)
        run.train(stage, networks)


def finish(run):
    train(run)
    run.write_training_images()
    run.draw_to_folder(run.assigned[0][run.chosen])
    table = pd.DataFrame(mean_channel_softmax(run.vqvae, run.codes).numpy())
    table["cluster"], table["probability"] = (column.numpy() for column in run.assigned)
    run.write_latent_csv(table)
