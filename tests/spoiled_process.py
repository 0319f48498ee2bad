"""`dlm.train` in which the second process of a training finds a loss that is not a number in its third step."""

from pathlib import Path

import hydra

from dlm.config import multirun
from dlm.console import command
from dlm.conversion.module import Conversion
from dlm.train import train

step = Conversion.training_step


def spoiled(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    return loss * float("nan") if self.global_rank == 1 and self.micro_batches == 3 else loss


Conversion.training_step = spoiled


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parents[1] / "conf"), config_name="train")
@command
def main(cfg):
    return train(cfg)


if __name__ == "__main__":
    multirun.run(main)
