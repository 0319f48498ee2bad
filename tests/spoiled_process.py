"""`dlm.train` in which the second process of a training finds a loss that is not a number in its third step."""

from dlm.config import multirun
from dlm.config.command_line import hydra_command
from dlm.conversion.module import Conversion
from dlm.train import train

step = Conversion.training_step


def spoiled(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    return loss * float("nan") if self.global_rank == 1 and self.micro_batches == 3 else loss


Conversion.training_step = spoiled


@multirun.summarized
@hydra_command("train")
def main(cfg):
    return train(cfg)


if __name__ == "__main__":
    main()
